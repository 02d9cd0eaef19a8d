"""How far the inputs of a partition's join have come: their records, their watermarks, what may be committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.join.commit_tracker import CommitTracker
from stream.join.config import JoinConfig
from stream.join.output import Records
from stream.join.state.kernels import Open
from stream.join.watermarks import Watermarks
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, INPUTS, SERVED

_WATERMARK_INPUTS = (SERVED, IMPRESSIONS, CLICKS)  # inputs that hold the watermark back
_SAMPLE_EVENTS = 15  # of a step: their median says how far they have come


class Arrived(NamedTuple):
    """The rows of some records that were not seen before, as indices, (B,), and their records' numbers."""

    rows: NDArray[np.intp]
    numbers: NDArray[np.uint32]
    records: Records  # those that were not seen before
    redelivered: int  # records


class JoinInputs:
    """The inputs by topic. A record is finished when each of its rows is; `poll` says how far time has come."""

    def __init__(self, config: JoinConfig) -> None:
        self._commits = {topic: CommitTracker() for topic in INPUTS}
        self._watermarks = Watermarks(_WATERMARK_INPUTS, config.ms("allowed_lateness_s"), config.ms("idle_timeout_s"))
        self._newest_conversion_ms = 0

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(commits.bytes for commits in self._commits.values())

    @property
    def were_read(self) -> bool:
        """Whether a record has come."""
        return any(len(commits) for commits in self._commits.values())

    @property
    def reached_ms(self) -> int:
        """The watermark of the last poll, 0 before the first that knew."""
        return self._watermarks.reached_ms or 0

    def start_at(self, offsets: Mapping[str, int]) -> None:
        """Go on from committed offsets: records before them count as redelivered."""
        for topic, offset in offsets.items():
            self._commits[topic].start_at(offset)

    def log_cut(self, topic: str, offset: int) -> None:
        """The input's log goes on with other records than those that came: from ``offset`` on they are new."""
        self._commits[topic].log_cut(offset)

    def arrive(self, topic: str, records: Records) -> Arrived:
        """Take note of records. What their rows say of the time is told later, by `move_time`."""
        commits = self._commits[topic]
        seen = commits.seen(records.offsets)
        new = Records(*(column[~seen] for column in records))
        numbers = commits.start(new.offsets, new.rows) if len(new.offsets) else np.zeros(0, np.uint32)
        return Arrived(np.flatnonzero(np.repeat(~seen, records.rows)), numbers, new, int(np.count_nonzero(seen)))

    def move_time(
        self, topic: str, ts_ms: NDArray[np.int64], arrived: Arrived, refused: NDArray[np.bool_] | None = None
    ) -> None:
        """Let records that arrived, whose rows are of these times, move the input's time.

        A row that was refused, (B,), moves nothing, and none moves time beyond what its record may.
        """
        records = arrived.records
        if not len(records.offsets):
            return
        moved = self._see(topic, ts_ms, records, refused)
        promises = np.minimum(records.promise_ms, records.until_ms)
        furthest = int(np.argmax(promises))
        if promises[furthest] and self.promise(topic, int(promises[furthest])):
            moved = furthest
        if moved is not None:
            self._commits[topic].pin(int(records.offsets[moved]))

    def _see(
        self, topic: str, ts_ms: NDArray[np.int64], records: Records, refused: NDArray[np.bool_] | None
    ) -> int | None:
        """Move the watermark by the newest event; the index of its record, if it moved."""
        if not len(ts_ms):
            return None
        if ts_ms.max() > records.until_ms.min():
            ts_ms = np.minimum(ts_ms, np.repeat(records.until_ms, records.rows))
        counting = ts_ms
        if refused is not None and refused.any():
            counting = ts_ms[~refused]
            if not len(counting):
                return None
            ts_ms = np.where(refused, 0, ts_ms)
        newest = int(np.argmax(ts_ms))
        newest_ms = int(ts_ms[newest])
        if topic == CONVERSIONS:
            self._newest_conversion_ms = max(self._newest_conversion_ms, newest_ms)
        if not self._watermarks.seen(topic, newest_ms, _typical_ms(counting)):
            return None
        return int(np.searchsorted(np.cumsum(records.rows), newest, side="right"))

    def promise(self, topic: str, watermark_ms: int) -> bool:
        """No event earlier than `watermark_ms` will follow; return whether that moved the input's watermark."""
        return self._watermarks.promised(topic, watermark_ms)

    def unfinished(self, topic: str) -> Open:
        """The unfinished rows of an input's records, for the kernels that finish them."""
        return self._commits[topic].open

    def finish(self, topic: str, numbers: NDArray[np.uint32]) -> None:
        """Rows are finished, by the numbers of their records."""
        self._commits[topic].finish(numbers)

    def offsets_of(self, topic: str, numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The offsets of records with unfinished rows."""
        return self._commits[topic].offsets_of(numbers)

    def poll(self, now_ms: int | None) -> int | None:
        """The watermark, None before every input has spoken; `now_ms` as in `Watermarks.poll`."""
        return self._watermarks.poll(now_ms)

    def advance_to(self, watermark_ms: int) -> None:
        """Move the watermark whatever the inputs say; it never goes back."""
        self._watermarks.advance_to(watermark_ms)

    def ahead(self, by_ms: int) -> frozenset[str]:
        """Inputs ahead of the slowest by more than ``by_ms``.

        Conversions, which wait in little memory and may be all that still comes, only where ``by_ms`` is 0.
        """
        waits = not by_ms and self._newest_conversion_ms > self.reached_ms
        return self._watermarks.ahead(by_ms) | (frozenset([CONVERSIONS]) if waits else frozenset())

    def to_commit(self) -> dict[str, int]:
        """The first offset to read again, by input; none where nothing came yet."""
        return {topic: at for topic, one in self._commits.items() if (at := one.to_commit()) is not None}


def _typical_ms(ts_ms: NDArray[np.int64]) -> int:
    """The median of some of the times."""
    some = np.sort(ts_ms[:: max(1, len(ts_ms) // _SAMPLE_EVENTS)])
    return int(some[len(some) // 2])
