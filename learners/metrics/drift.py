"""Notices that the model has become worse (or better) than it was: ADWIN over the log loss of batches."""

from __future__ import annotations

import math
from typing import Any

from learners.metrics.quality import entropy


class DriftWatch:
    """ADWIN (Bifet & Gavaldà, SDM 2007) over normalised entropy, the log loss over that of the click rate.

    Normalised, because a click rate that merely rises or falls moves the log loss without any fault of the model.
    It finds changes in either direction. The first one made in a process imports river.

    Parameters
    ----------
    delta
        Significance of one test: smaller is slower and surer. 0.002 is ADWIN's own default.
    rows
        Batches are pooled to at least so many rows: the loss of a handful is noise.
    """

    def __init__(self, *, delta: float = 0.002, rows: int = 512) -> None:
        from river import drift  # two seconds, which only who watches need wait for

        adwin: Any = drift.ADWIN  # its own signature is not annotated
        self._detector = adwin(delta=delta)
        self._pool_rows = rows
        self._rows, self._clicks, self._loss = 0, 0, 0.0

    def update(self, *, rows: int, clicks: int, loss: float) -> bool:
        """Add a batch of ``rows`` with ``clicks`` clicks and a summed log loss; True when it proves a change.

        Raises
        ------
        ValueError
            A loss that is not finite: ADWIN would never recover from it.
        """
        if not math.isfinite(loss):
            raise ValueError(
                f"a log loss of {loss} over {rows} rows must be finite: the detector would stay blind from then on. "
                "Stop publishing and go back to a snapshot."
            )
        self._rows, self._clicks, self._loss = self._rows + rows, self._clicks + clicks, self._loss + loss
        if self._rows < self._pool_rows or not 0 < self._clicks < self._rows:
            return False
        self._detector.update(self._loss / self._rows / entropy(self._clicks / self._rows))
        self._rows, self._clicks, self._loss = 0, 0, 0.0
        return bool(self._detector.drift_detected)
