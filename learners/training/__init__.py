"""Training of a base from an archive."""
