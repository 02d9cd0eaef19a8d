"""A foreign value in a message: cut to a line, whatever it is, without ever being written out whole."""

from __future__ import annotations

import reprlib
from typing import Any

SHOWN_LENGTH = 80
_LONGEST_INTEGER_BITS = 256  # Python refuses to write out integers of some thousand digits


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, SHOWN_LENGTH, SHOWN_LENGTH

    def repr_int(self, x: int, level: int) -> str:
        """Digits while they fit, else how long they are."""
        bits = x.bit_length()
        return repr(x) if bits <= _LONGEST_INTEGER_BITS else f"an integer of {bits} bits"


_short = _Short()


def shown(value: Any, length: int = SHOWN_LENGTH) -> str:
    """``value`` as Python writes it, cut to ``length`` characters and "…"; nesting and size cost nothing."""
    return cut(_short.repr(value[: length + 1] if isinstance(value, (str, bytes)) else value), length)


def cut(text: str, length: int = SHOWN_LENGTH) -> str:
    """``text``, or its first ``length`` characters and "…"."""
    return text if len(text) <= length else text[:length] + "…"
