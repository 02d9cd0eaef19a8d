"""Session features: a fold of the examples."""
