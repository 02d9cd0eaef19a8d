"""Settings of the embedding table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from learners.table.sketch import MOST_SIGHTINGS

_MOST_ROWS, _MOST_SKETCH = 1 << 40, 1 << 32  # beyond any machine's memory; they are counted in 64 bits
_EPOCHS_TO_EXPIRY = 64  # a row goes at most 1/32 later than asked
_IDLE_EPOCH_MS = 3_600_000  # without expiry: the hour of the last sighting decides eviction


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """Which keys get a row, for how long, and how a row starts."""

    admit_after: int = 1  # sightings, the admitting one included
    expire_after_s: float | None = None  # unseen in event time; None: never
    max_rows: int | None = 20_000_000  # besides the default rows; None: as many as fit into this machine's memory
    init_scale: float = 0.01  # standard deviation of the start values: an unseen id must hardly move the logit
    start_from_default: bool = False  # start values around the column's default row instead of around 0
    accumulator_half_life_s: float | None = None  # of what a row remembers of its gradients' size; None: forever
    seed: int = 0
    sketch_bytes: int = 1 << 24  # of which half a million to a million sightings are remembered

    def __post_init__(self) -> None:
        if not 1 <= self.admit_after <= MOST_SIGHTINGS:
            raise ValueError(
                f"admit_after={self.admit_after} must be 1..{MOST_SIGHTINGS}: the sketch counts no further, so no key "
                "would ever get a row. Lower it."
            )
        if self.expire_after_s is not None and not _EPOCHS_TO_EXPIRY <= self.expire_after_s < math.inf:
            raise ValueError(
                f"expire_after_s={self.expire_after_s} must be at least {_EPOCHS_TO_EXPIRY} s, or None for never: the "
                "last sighting is known to a 64th of it, and no finer than a second. Raise it."
            )
        if self.max_rows is not None and not 1 <= self.max_rows <= _MOST_ROWS:
            raise ValueError(
                f"max_rows={self.max_rows} must be 1..{_MOST_ROWS}, or None: below it no key could have a row, and no "
                "machine holds more. Take what its memory has room for."
            )
        if not (math.isfinite(self.init_scale) and self.init_scale >= 0):
            raise ValueError(
                f"init_scale={self.init_scale} must be finite and not negative: every row would start as NaN or "
                "mirrored. Use 0.01."
            )
        half_life_s = self.accumulator_half_life_s
        if half_life_s is not None and not half_life_s > 0:
            raise ValueError(
                f"accumulator_half_life_s={half_life_s} must be positive, or None for no decay: every row would learn "
                "at the rate of a new one. Take some weeks."
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed={self.seed} must be 0..2^63−1: it is mixed with 64-bit keys. Take a smaller one.")
        if self.sketch_bytes < 64 or self.sketch_bytes & (self.sketch_bytes - 1) or self.sketch_bytes > _MOST_SKETCH:
            nearest = min(_MOST_SKETCH, 1 << max(6, self.sketch_bytes.bit_length()))
            raise ValueError(
                f"sketch_bytes={self.sketch_bytes} must be a power of two of 64 to {_MOST_SKETCH}: cells are addressed "
                f"by the low bits of a hash. Take {nearest}."
            )

    @property
    def epoch_ms(self) -> int:
        """The unit of last seen times."""
        if self.expire_after_s is None:
            return _IDLE_EPOCH_MS
        return max(1000, math.ceil(self.expire_after_s * 1000 / _EPOCHS_TO_EXPIRY))

    @property
    def halvings_per_epoch(self) -> float:
        """Of accumulators; 0: they do not decay."""
        return self.epoch_ms / 1000 / self.accumulator_half_life_s if self.accumulator_half_life_s else 0.0

    @property
    def epochs_kept(self) -> int | None:
        """A row last seen in epoch e is gone in epoch e + epochs_kept + 1: unseen for at least ``expire_after_s``."""
        if self.expire_after_s is None:
            return None
        return math.ceil(self.expire_after_s * 1000 / self.epoch_ms)
