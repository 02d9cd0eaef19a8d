"""How much the joins of a worker may hold, and which inputs wait on the broker so that they do not hold more."""

from __future__ import annotations

from collections.abc import Mapping

from stream.join.config import JoinConfig
from stream.join.core import JoinCore
from stream.kafka.input_record import TopicPartition
from stream.metrics import WorkerMetrics

CACHE_MEMORY_SHARE = 1 / 4  # beside what the cores take: exposures whose clicks come soon
_PAUSE_MEMORY_SHARE = 1 / 2  # above it inputs that are at all ahead wait
_MIN_PAUSED_LEAD_MS = 60_000  # live: an input so far ahead waits whatever the memory


class MemoryBound:
    """The bound ``config.join_memory_bytes``.

    Live, an input that is a minute ahead of the slowest one (or twice the idle timeout: in normal traffic none is)
    waits; above half of the bound every input that is ahead does. At the bound the cores shed memory
    (`stream.join.core`).

    Parameters
    ----------
    live : whether there is a wall clock. A replay's inputs may be far apart, and are bounded by its player.
    """

    def __init__(self, config: JoinConfig, metrics: WorkerMetrics, *, live: bool) -> None:
        lead_ms = config.ms("allowed_lateness_s") + config.ms("display_lead_s")
        self._most = config.join_memory_bytes
        self._far_ms = max(_MIN_PAUSED_LEAD_MS, 2 * config.ms("idle_timeout_s"), 2 * lead_ms) if live else None
        self._metrics = metrics
        metrics.gauge("join_memory_limit_bytes").set(self._most)

    def enforce(self, cores: Mapping[int, JoinCore]) -> frozenset[TopicPartition]:
        """Let the cores, by their partitions, shed what is over the bound; return the inputs that are to wait."""
        taken = {partition: core.bytes for partition, core in cores.items()}
        total = sum(taken.values())
        if total > self._most:
            for partition, core in cores.items():
                core.shed_memory((total - self._most) * taken[partition] // total)
        self._metrics.gauge("join_memory_bytes").set(total)
        by_ms = 0 if total > self._most * _PAUSE_MEMORY_SHARE else self._far_ms
        if by_ms is None:
            return frozenset()
        return frozenset((topic, partition) for partition, core in cores.items() for topic in core.ahead(by_ms))
