"""environment.yml -> the locks."""
