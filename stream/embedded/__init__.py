"""Servers that are started where none is given."""
