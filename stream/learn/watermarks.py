"""Event time of several partitions together."""

from __future__ import annotations

from collections.abc import Mapping


class LeastWatermark:
    """The least watermark of all partitions, 0 until each of them was heard. ``heard`` : by partition, so far."""

    def __init__(self, partitions: int, heard: Mapping[int, int]) -> None:
        self._partitions = partitions
        self._heard = dict(heard)

    def hear(self, partition: int, watermark_ms: int) -> int:
        """Take a partition's watermark, which never goes back; return the least of all."""
        self._heard[partition] = max(watermark_ms, self._heard.get(partition, 0))
        return min(self._heard.values()) if len(self._heard) == self._partitions else 0

    def state(self) -> dict[int, int]:
        """By partition, for the snapshot."""
        return dict(sorted(self._heard.items()))
