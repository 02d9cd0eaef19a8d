"""What breaks systems of this kind, tried on real programs."""
