"""Kinds of example: every event of an impression is one."""

from __future__ import annotations

EXPOSURE, CLICK, CONVERSION = 0, 1, 2
"""The impression was displayed; it was clicked; its click converted. Each comes when it happens, none waits."""
