"""The one table of topics: names, partitions, retention and limits. Nothing here talks to a broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SERVED = "ads.served.v1"
IMPRESSIONS = "ads.impressions.v1"
CLICKS = "ads.clicks.v1"
CONVERSIONS = "ads.conversions.v1"
EXAMPLES = "ads.examples.v1"
WEIGHTS = "ads.weights.v1"
CALIBRATION = "ads.calibration.v1"
JOURNAL = "ads.journal.v1"
DEADLETTER = "ads.deadletter.v1"

INPUTS = (SERVED, IMPRESSIONS, CLICKS, CONVERSIONS)

_MIB = 1 << 20
_DAY_MS = 86_400_000
MAX_PARTITIONS = 4096  # one node cannot hold more with comfort, and a typing error is cheaper to find here


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic as it must exist on the broker."""

    name: str  # with the prefix
    partitions: int
    replication_factor: int
    cleanup_policy: Literal["delete", "compact"]
    retention_ms: int  # -1: for ever
    max_message_bytes: int
    key: str  # what a record's key holds
    doc: str

    def config(self) -> dict[str, str]:
        """Return the broker's settings of this topic, as strings."""
        return {
            "cleanup.policy": self.cleanup_policy,
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(self.max_message_bytes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    name: str
    key: str
    doc: str
    per_input_partition: bool = False
    compact: bool = False
    retention_ms: int = 7 * _DAY_MS  # covers a long weekend without workers
    max_message_bytes: int = _MIB


# fmt: off
_ROWS = (
    _Row(name=SERVED, key="user key", per_input_partition=True, max_message_bytes=4 * _MIB,
         doc="what serving answered: ids, logit, p, version, variant"),
    _Row(name=IMPRESSIONS, key="user key", per_input_partition=True, doc="ads that were displayed"),
    _Row(name=CLICKS, key="user key", per_input_partition=True, doc="ads that were clicked"),
    _Row(name=CONVERSIONS, key="user key", per_input_partition=True, doc="what a click led to, with its value"),
    _Row(name=EXAMPLES, key="none: the partition is that of its inputs", per_input_partition=True,
         max_message_bytes=8 * _MIB, doc="served rows with their label, its delay and its kind"),
    _Row(name=WEIGHTS, key="model", retention_ms=_DAY_MS, max_message_bytes=8 * _MIB,
         doc="deltas of the weights, and where their snapshots lie"),
    _Row(name=CALIBRATION, key="input partition", compact=True, retention_ms=-1, max_message_bytes=8 * _MIB,
         doc="each partition's calibrator state"),
    _Row(name=JOURNAL, key="model", doc="which offsets made which version"),
    _Row(name=DEADLETTER, key="topic, partition, offset", retention_ms=30 * _DAY_MS, max_message_bytes=8 * _MIB,
         doc="rejected records with their reason"),
)
# fmt: on


def topic_table(partitions: int, replication_factor: int = 1, prefix: str = "") -> tuple[Topic, ...]:
    """Return every topic, the four inputs and the examples with `partitions` partitions, the others with one.

    `prefix` is put before every name, so that several streams (or tests) share one broker.
    Raises ValueError for counts that no broker takes.
    """
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise ValueError(
            f"partitions={partitions} must be between 1 and {MAX_PARTITIONS}: the inputs cannot be created otherwise. "
            "Set MILLSTREAM_PARTITIONS."
        )
    if replication_factor < 1:
        raise ValueError(
            f"replication_factor={replication_factor} must be at least 1: a topic without a replica holds no records. "
            "Set MILLSTREAM_REPLICATION_FACTOR to at most the number of brokers."
        )
    return tuple(
        Topic(
            name=prefix + row.name,
            partitions=partitions if row.per_input_partition else 1,
            replication_factor=replication_factor,
            cleanup_policy="compact" if row.compact else "delete",
            retention_ms=row.retention_ms,
            max_message_bytes=row.max_message_bytes,
            key=row.key,
            doc=row.doc,
        )
        for row in _ROWS
    )
