"""Feature spec and hashing, embedding table, DeepFM, base and incremental training, metrics, snapshots, deltas."""
