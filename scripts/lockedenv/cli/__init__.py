"""One module a command: options in, exit status out."""
