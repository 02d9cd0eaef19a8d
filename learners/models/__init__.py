"""All other learners, and the registry of all."""
