"""Lines on stderr, with the seconds since the start."""

from __future__ import annotations

import time

from rich.console import Console

_console = Console(stderr=True, highlight=False, markup=False)
_started_s = time.monotonic()


def say(line: str) -> None:
    """Print a line."""
    _console.print(f"{elapsed_s():7.1f} s  {line}", soft_wrap=True)


def elapsed_s() -> float:
    """Seconds since the start."""
    return time.monotonic() - _started_s
