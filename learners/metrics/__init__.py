"""How good predictions are, and when a stream of them goes astray."""
