"""The only raw clients of a broker."""
