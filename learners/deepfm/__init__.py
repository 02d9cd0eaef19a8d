"""The DeepFM: model, network, deltas, state."""
