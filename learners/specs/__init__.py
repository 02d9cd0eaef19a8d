"""Feature specs as data: one TOML file a dataset."""
