"""What is wanted, as data: environments, lock files, tables of facts with their sources."""
