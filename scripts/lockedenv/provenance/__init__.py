"""What produced a result: the session manifest, comparing two of them, the same on every node,
known vulnerabilities."""
