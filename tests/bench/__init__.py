"""Benchmarks: ratios to a peer measured in the same run, on the same rows and core. ``python -m tests.bench``."""
