"""Lines that libraries repeat: aiokafka reports each of thousands of attempts to reach a broker that is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class SeldomRepeated(logging.Filter):
    """Lets a line pass once in ``every_s``, by its logger and its text before values are put in.

    The next one that passes tells how many did not.
    """

    def __init__(self, every_s: float = 10.0, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._now = now
        self._passed_at: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, line: logging.LogRecord) -> bool:
        """Return whether the line passes."""
        kind, now = (line.name, str(line.msg)), self._now()
        if now - self._passed_at.get(kind, -self._every_s) < self._every_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._passed_at[kind] = now
        if left_out := self._left_out.pop(kind, 0):
            line.msg, line.args = f"{line.getMessage()} (and {left_out} like it)", None
        return True
