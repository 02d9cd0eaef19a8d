"""All other learners of the family, and its registry."""
