"""Examples on their way to training: kinds, archives, splits in time."""
