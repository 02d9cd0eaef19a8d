"""Topics that exist already, as their settings stand: what differs from what is needed, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import structlog

from stream.records.topics import Topic

MAX_MESSAGE_BYTES = "max.message.bytes"
BATCH_ROOM_BYTES = 1 << 10  # of the limit: headers of the batch, key and headers of its one record

_FOR_EVER = -1

_log = structlog.get_logger(__name__)


class UnfitSetting(NamedTuple):
    """A setting of a topic that is not what the table says, in a way that matters."""

    topic: str
    setting: str
    found: str
    needed: str
    consequence: str

    @property
    def remedy(self) -> str:
        """The command that mends it."""
        return (
            f"kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {self.topic} "
            f"--add-config {self.setting}={self.needed}"
        )


def unfit_settings(topic: Topic, found: Mapping[str, str]) -> Iterator[UnfitSetting]:
    """What differs so that records are lost, refused or cut smaller; what is only larger or kept longer fits."""
    for setting, needed, consequence in (
        *_limits(topic, found),
        *_retention(topic, found),
        *_replicas(topic, found),
    ):
        yield UnfitSetting(topic.name, setting, found[setting], needed, consequence)


def _limits(topic: Topic, found: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    bytes_at_most = _number(found, MAX_MESSAGE_BYTES)
    if bytes_at_most is not None and bytes_at_most < topic.max_message_bytes:
        consequence = "records are cut smaller; one that cannot be cut is refused, and ends who writes it"
        yield MAX_MESSAGE_BYTES, str(topic.max_message_bytes), consequence


def _retention(topic: Topic, found: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    policy = {one.strip() for one in found.get("cleanup.policy", topic.cleanup_policy).split(",")}
    if topic.cleanup_policy == "delete" and "compact" in policy:
        consequence = "records without a key are refused; of those with one all but the newest are deleted, read or not"
        yield "cleanup.policy", topic.cleanup_policy, consequence
    if topic.cleanup_policy == "compact" and policy != {"compact"}:
        consequence = "states are deleted with time, and what restores them begins without"
        yield "cleanup.policy", topic.cleanup_policy, consequence
        return
    kept_ms = _number(found, "retention.ms")
    if topic.cleanup_policy == "delete" and kept_ms is not None and _FOR_EVER < kept_ms < topic.retention_ms:
        consequence = "records are deleted earlier: a worker that is away for longer loses them"
        yield "retention.ms", str(topic.retention_ms), consequence
    kept_bytes = _number(found, "retention.bytes")
    if "delete" in policy and kept_bytes is not None and kept_bytes > _FOR_EVER:
        consequence = "old records are deleted when a partition grows beyond it, whether they were read or not"
        yield "retention.bytes", "-1", consequence


def _replicas(topic: Topic, found: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    in_sync = _number(found, "min.insync.replicas")
    if in_sync is not None and in_sync > topic.replication_factor:
        consequence = (
            f"every write is refused: there are never so many replicas (MILLSTREAM_REPLICATION_FACTOR="
            f"{topic.replication_factor})"
        )
        yield "min.insync.replicas", str(topic.replication_factor), consequence


def warn_of_unfit(table: Iterable[Topic], found: Mapping[str, Mapping[str, str]]) -> None:
    """Say what differs in the topics that exist; they are left as they are, since somebody may have meant it."""
    for topic in table:
        for unfit in unfit_settings(topic, found.get(topic.name, {})):
            _log.warning("a topic is not set as is needed", **unfit._asdict(), remedy=unfit.remedy)


def record_limit(found: Mapping[str, str], most_bytes: int) -> int:
    """How large a record of a topic may be by its settings, and at most ``most_bytes``."""
    limit = _number(found, MAX_MESSAGE_BYTES)
    return most_bytes if limit is None else min(most_bytes, max(limit - BATCH_ROOM_BYTES, 1))


def _number(found: Mapping[str, str], setting: str) -> int | None:
    text = found.get(setting, "")
    return int(text) if text.lstrip("-").isdigit() else None
