"""Which record of the examples topic holds which exposed row: by the rows' numbers, which count exposures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FIRST_RECORDS = 256


class ExposureIndex:
    """The number of the first exposed row in each record, and the record's offset; both ascend. 16 bytes a record."""

    def __init__(self) -> None:
        self._starts = np.zeros(_FIRST_RECORDS, np.int64)
        self._offsets = np.zeros(_FIRST_RECORDS, np.int64)
        self._count = 1  # what comes before any note is in the record at 0

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self._starts.nbytes + self._offsets.nbytes

    def note(self, first_number: int, offset: int) -> None:
        """Note that the rows from ``first_number`` on stand in the record at ``offset``, or in later ones."""
        if self._starts[self._count - 1] == first_number:  # the record before holds none
            self._offsets[self._count - 1] = offset
            return
        if self._count == len(self._starts):
            self._resize(2 * self._count)
        self._starts[self._count], self._offsets[self._count] = first_number, offset
        self._count += 1

    def find(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The offset of each row's record, and the row's index among the exposures of it, (B,) each."""
        at = np.searchsorted(self._starts[: self._count], numbers, side="right") - 1
        return self._offsets[at], numbers - self._starts[at]

    def forget(self, first_number: int) -> None:
        """Forget the records that hold only rows before ``first_number``, once they are most of all."""
        gone = int(np.searchsorted(self._starts[: self._count], first_number, side="right")) - 1
        if 2 * gone >= self._count:  # to move the rest each time would cost all that is kept
            self._count -= gone
            for array in (self._starts, self._offsets):
                array[: self._count] = array[gone : gone + self._count].copy()
            if 4 * self._count < len(self._starts) and len(self._starts) > _FIRST_RECORDS:
                self._resize(max(_FIRST_RECORDS, 2 * self._count))

    def _resize(self, size: int) -> None:
        for name in ("_starts", "_offsets"):
            resized = np.zeros(size, np.int64)
            resized[: self._count] = getattr(self, name)[: self._count]
            setattr(self, name, resized)
