"""Clicks whose conversions are awaited, in Redis."""
