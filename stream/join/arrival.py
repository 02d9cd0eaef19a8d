"""When records came: what they may tell of the time.

A client writes the times of its events, and most often that of its records too. One whose clock is wrong, or who lies,
must not move the time of a whole partition, by which other users' rows are dropped. So, where there is a wall clock,

- a record came by now, whatever its time says;
- an event or a promise moves its input's time no further than to when its record came, but for what clocks differ,
- and no further than half a display horizon beyond what three quarters of the records read with it say together. That
  counts while a backlog is worked off, where now is far away.

In a replay the log alone says what time it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.join.config import JoinConfig
from stream.kafka.input_record import InputRecord

UNBOUNDED_MS: Final = 1 << 62
_BULK: Final = 0.75  # of the records of a step


class Clock(NamedTuple):
    """The wall clock of a step; how far one record may be ahead of those read with it; what clocks differ, in ms."""

    now_ms: int
    ahead_ms: int = UNBOUNDED_MS
    skew_ms: int = 0

    @classmethod
    def of(cls, now_ms: int, config: JoinConfig) -> Clock:
        """Rows are dropped a display horizon after they were served: half of it is left to what is not ahead."""
        return cls(now_ms, config.ms("display_horizon_s") // 2, config.ms("allowed_lateness_s"))


class Arrivals(NamedTuple):
    """Of M records of one input."""

    produced_ms: NDArray[np.int64]  # (M,) Kafka's time of the record, at most now
    until_ms: NDArray[np.int64]  # (M,) how far each may move the input's time

    @classmethod
    def of(cls, records: Sequence[InputRecord], clock: Clock | None) -> Arrivals:
        """Those of some records, at least one where there is a clock; None: a replay."""
        produced_ms = np.array([record.produced_ms for record in records], np.int64)
        if clock is None or not len(records):
            return cls(produced_ms, np.full(len(records), UNBOUNDED_MS, np.int64))
        produced_ms = np.minimum(produced_ms, clock.now_ms)
        bulk = int((len(records) - 1) * _BULK)
        bulk_ms = int(np.partition(produced_ms, bulk)[bulk])
        return cls(produced_ms, np.minimum(produced_ms, bulk_ms + clock.ahead_ms) + clock.skew_ms)
