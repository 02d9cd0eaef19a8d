"""Snapshots in a store: written whole or not at all."""
