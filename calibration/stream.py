"""The calibrator of a stream: score with the map, then count the labels, forget old rows, refit."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibration.bins import BinState, LogitGrid, check_rows
from calibration.curve import CalibrationMap
from calibration.isotonic import PRIOR_WEIGHT, fit_map

_MAGIC: Final = b"MSCS"
_FORMAT: Final = 1
# magic, format, rows seen, since decay, since refit, bytes of state
_HEADER: Final = struct.Struct("<4sHxxqqqI")
_LONGEST_ROWS: Final = 2.0**62
_DECAYS_PER_HALF_LIFE: Final = 32  # forgetting in steps of 2 %: truncation stays below 1e-4 of a row a bin


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratorConfig:
    """How fast the calibrator follows, and how much evidence it asks for."""

    # In rows of one calibrator; math.inf never forgets. 8,000 holds the weight of 11,500 rows: at a CTR near
    # one half that follows a bias moving by 0.05 log-odds in 8,000 rows within 5 %, and costs 6e-5 of log loss
    # where there is no bias. At a CTR of 1 % a row tells 25 times less: give it 100 times the rows there.
    half_life_rows: float = 8_000.0
    refit_every_rows: int = 1_000  # a fit takes 1 ms
    prior_weight: float = PRIOR_WEIGHT  # see fit_map
    grid: LogitGrid = field(default_factory=LogitGrid)

    def __post_init__(self) -> None:
        if not self.half_life_rows >= 1:
            raise ValueError(
                f"half_life_rows={self.half_life_rows} must be 1 or more: the calibrator would hold nothing. "
                "Use 8000 for a first try, math.inf to never forget."
            )
        if self.refit_every_rows < 1:
            raise ValueError(f"refit_every_rows={self.refit_every_rows} must be 1 or more: the map would never move.")
        if not (math.isfinite(self.prior_weight) and self.prior_weight > 0):
            raise ValueError(
                f"prior_weight={self.prior_weight} must be positive and finite: a few rows would bend the "
                f"map. The default is {PRIOR_WEIGHT:g}."
            )

    @property
    def decay_every_rows(self) -> int:
        """Rows between two decays."""
        return max(1, round(min(self.half_life_rows, _LONGEST_ROWS) / _DECAYS_PER_HALF_LIFE))

    @property
    def decay_factor(self) -> float:
        """What one decay leaves."""
        return float(0.5 ** (self.decay_every_rows / self.half_life_rows))


class StreamingCalibrator:
    """Counts settled examples and corrections, and gives the map fitted to the recent ones.

    Everything hangs on the rows alone: no clock, no random source. `state` does not depend on how the rows
    were cut into batches; the map does, since it is refitted at the end of the batch that makes
    refit_every_rows full.
    """

    def __init__(self, config: CalibratorConfig | None = None) -> None:
        self.config = config or CalibratorConfig()
        self.rows_seen = 0
        self._state = BinState(self.config.grid)
        self._map = CalibrationMap.identity()
        self._since_decay = 0
        self._since_refit = 0

    @property
    def state(self) -> BinState:
        """The live sums; `copy()` them to keep them."""
        return self._state

    def map(self) -> CalibrationMap:
        """The newest map; its version counts the refits."""
        return self._map

    def update(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.bool_],
        weight: NDArray[np.float32] | None = None,
        retract_mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Learn B rows: (B,) raw logits as they were served, (B,) labels, (B,) weights (1 when None).

        retract_mask : (B,) true for corrections: late clicks, each of which replaces the negative of the same
        logit and weight counted before. They are not new rows, so they age nothing. A negative that lost a
        part of its weight to decay since is retracted in full, which is wrong by label delay / half-life of
        its weight.

        Raises ValueError for bad rows, and then nothing was learned.
        """
        logits, labels = np.asarray(logits), np.asarray(labels)
        weight = None if weight is None else np.asarray(weight)
        late = np.zeros(logits.shape, dtype=np.bool_) if retract_mask is None else np.asarray(retract_mask)
        check_rows(logits, labels, weight)
        _check_corrections(logits, labels, late)
        state = self._state.copy()
        counted = np.cumsum(~late) + self._since_decay
        every, factor = self.config.decay_every_rows, self.config.decay_factor
        cuts = (np.flatnonzero(~late & (counted % every == 0)) + 1).tolist()
        done = 0
        for cut in cuts:
            _count(state, logits, labels, weight, late, slice(done, cut))
            state.decay(factor)
            done = cut
        _count(state, logits, labels, weight, late, slice(done, None))
        self._state = state
        self.rows_seen += int(np.count_nonzero(~late))
        self._since_decay = (self._since_decay + int(np.count_nonzero(~late))) % every
        self._refit_after(len(logits))

    def to_bytes(self) -> bytes:
        """All that a restart needs beside the config, little-endian: counters, state, map."""
        state, curve = self._state.to_bytes(), self._map.to_bytes()
        counters = (self.rows_seen, self._since_decay, self._since_refit, len(state))
        return _HEADER.pack(_MAGIC, _FORMAT, *counters) + state + curve

    @classmethod
    def resumed(cls, state: BinState, rows_seen: int, config: CalibratorConfig | None = None) -> StreamingCalibrator:
        """The calibrator that held ``state`` after ``rows_seen`` rows: its sums go on bit-equally, its map is refitted.

        Raises ValueError when the state has another grid than the config.
        """
        calibrator = cls(config)
        calibrator._state.merge(state)
        calibrator.rows_seen = rows_seen
        calibrator._since_decay = rows_seen % calibrator.config.decay_every_rows
        calibrator._map = fit_map(calibrator._state, prior_weight=calibrator.config.prior_weight, version=1)
        return calibrator

    @classmethod
    def from_bytes(cls, data: bytes, config: CalibratorConfig | None = None) -> StreamingCalibrator:
        """The calibrator that `to_bytes` wrote; it goes on bit-equally.

        Raises ValueError for data of another format, cut short or damaged, or of another grid than the
        config's.
        """
        if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
            raise ValueError(
                f"calibrator snapshot of {len(data)} bytes starts with {data[:4]!r}, expected {_MAGIC!r}: "
                "it was written by something else; take an older snapshot."
            )
        _, fmt, rows_seen, since_decay, since_refit, size = _HEADER.unpack_from(data)
        if fmt != _FORMAT:
            raise ValueError(f"calibrator snapshot has format {fmt}, expected {_FORMAT}: take one of this release.")
        calibrator = cls(config)
        calibrator._state = BinState.from_bytes(data[_HEADER.size : _HEADER.size + size])
        calibrator._map = CalibrationMap.from_bytes(data[_HEADER.size + size :])
        if calibrator._state.grid != calibrator.config.grid:
            raise ValueError(
                f"calibrator snapshot has {calibrator._state.grid}, the config {calibrator.config.grid}: "
                "their bins mean different logits. Set the snapshot's grid, or start without it."
            )
        calibrator.rows_seen = rows_seen
        calibrator._since_decay, calibrator._since_refit = since_decay, since_refit
        return calibrator

    def _refit_after(self, rows: int) -> None:
        self._since_refit += rows
        if self._since_refit >= self.config.refit_every_rows:
            self._since_refit = 0
            self._map = fit_map(self._state, prior_weight=self.config.prior_weight, version=self._map.version + 1)


def merged_map(states: Iterable[BinState], *, prior_weight: float = PRIOR_WEIGHT, version: int = 0) -> CalibrationMap:
    """The map of several partitions together: their sums added up, then one fit.

    Their order does not matter to a bit. Without decay the result is that of one worker that saw every row;
    with decay each partition forgets by its own rows, so P equal partitions remember P half-lives. No states
    give the identity. Raises ValueError when the grids differ.
    """
    total: BinState | None = None
    for state in states:
        if total is None:
            total = state.copy()
        else:
            total.merge(state)
    if total is None:
        return CalibrationMap.identity(version)
    return fit_map(total, prior_weight=prior_weight, version=version)


def _count(
    state: BinState,
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    weight: NDArray[np.float32] | None,
    late: NDArray[np.bool_],
    rows: slice,
) -> None:
    """Add the rows, and take back the negatives that corrections among them replace."""
    state.add(logits[rows], labels[rows], None if weight is None else weight[rows])
    if late[rows].any():
        at = np.flatnonzero(late[rows]) + (rows.start or 0)
        state.retract(logits[at], np.zeros(len(at), dtype=np.bool_), None if weight is None else weight[at])


def _check_corrections(logits: NDArray[np.float32], labels: NDArray[np.bool_], late: NDArray[np.bool_]) -> None:
    if late.shape != logits.shape or late.dtype != np.bool_:
        raise ValueError(
            f"retract_mask is {late.dtype} {late.shape}, expected bool {logits.shape}: give one flag a row, or None."
        )
    if labels.shape == logits.shape and bool((late & ~labels.astype(np.bool_)).any()):
        row = int(np.argmax(late & ~labels.astype(np.bool_)))
        raise ValueError(
            f"row {row} retracts a negative but has label 0: nothing was learned. Only a late click is a correction."
        )
