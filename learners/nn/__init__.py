"""The dense parts of a network and their optimiser."""
