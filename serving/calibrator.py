"""The map in use: every partition's calibration state, added up and fitted on a cadence of event time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.bins import BinState
from calibration.curve import CalibrationMap
from calibration.stream import merged_map
from serving.cohorts import CohortFigures
from stream.records import CalibrationRecord


class HotCalibrator:
    """Holds the newest state of each examples partition and the map fitted to their sum.

    The version of a map is the sum of the versions of the states in it: every serving process that holds the same
    states answers with the same map under the same version. Single-threaded, as `HotModel`.

    Parameters
    ----------
    refit_interval_s : event time between two fits (a fit takes about 1 ms, and states come from every partition).
    """

    def __init__(self, refit_interval_s: float = 1.0) -> None:
        if refit_interval_s < 0:
            raise ValueError(
                f"refit_interval_s={refit_interval_s} must not be negative: the map would never move. Use 0 to refit "
                "at every change."
            )
        self.map = CalibrationMap.identity()
        self.conversion_map = CalibrationMap.identity()  # of P(conversion | click)
        self._refit_interval_ms = refit_interval_s * 1000.0
        self._records: dict[int, CalibrationRecord] = {}
        self._states: dict[int, BinState] = {}
        self._fitted_at_ms: tuple[float, float] = (-np.inf, -np.inf)
        self._fitted_partitions = 0
        self._stale = False
        self.refits = 0

    @property
    def watermark_ms(self) -> int | None:
        """The least watermark of the partitions heard, or None before the first."""
        return min((record.watermark_ms for record in self._records.values()), default=None)

    @property
    def rows(self) -> int:
        """Examples that the states were made of."""
        return sum(record.rows for record in self._records.values())

    def offer(self, record: CalibrationRecord) -> bool:
        """Take a partition's state; False when a newer one of that partition is held already.

        Raises ValueError for a state that is damaged or has another grid; what was held stays.
        """
        held = self._records.get(record.partition)
        if held is not None and (record.version, record.watermark_ms) <= (held.version, held.watermark_ms):
            return False
        if held is None or record.version != held.version:
            state = BinState.from_bytes(record.state)
            self._refuse_other_grid(record.partition, state)
            self._states[record.partition] = state
            self._stale = True
        self._records[record.partition] = record
        self._refit_when_due()
        return True

    def figures(self) -> Sequence[CohortFigures]:
        """How good served p was, by cohort of display time; what the states hold of it."""
        return ()

    def _refuse_other_grid(self, partition: int, state: BinState) -> None:
        for other, held in self._states.items():
            if other != partition and held.grid != state.grid:
                raise ValueError(
                    f"the calibration state of partition {partition} has {state.grid}, that of partition {other} has "
                    f"{held.grid}: they cannot be added, so the older state stays. Run all workers with one grid."
                )

    def _refit_when_due(self) -> None:
        """Fit when the slowest or the fastest partition has advanced: an idle one must not freeze the map."""
        watermarks = [record.watermark_ms for record in self._records.values()]
        reached = (min(watermarks), max(watermarks))
        advance_ms = max(now - fitted for now, fitted in zip(reached, self._fitted_at_ms, strict=True))
        newcomers = len(self._records) > self._fitted_partitions
        if not self._stale or (advance_ms < self._refit_interval_ms and not newcomers):
            return
        version = sum(record.version for record in self._records.values())
        self.map = merged_map(self._states.values(), version=version)
        self._fitted_at_ms, self._fitted_partitions, self._stale = reached, len(self._records), False
        self.refits += 1
