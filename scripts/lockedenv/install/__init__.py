"""Plans a set-up, and carries it out."""
