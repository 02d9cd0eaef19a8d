"""Kinds of example."""

from __future__ import annotations

SETTLED, CORRECTION, CONVERSION = 0, 1, 2
"""The one settled outcome of an impression, a click after settlement, a conversion of a settled click."""
