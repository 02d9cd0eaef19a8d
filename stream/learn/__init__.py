"""The learning loop and what drives it."""
