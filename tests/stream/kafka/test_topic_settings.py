"""Topics that somebody else made."""

from __future__ import annotations

import pytest

from stream.kafka.topic_settings import BATCH_ROOM_BYTES, record_limit, unfit_settings
from stream.records.topics import CALIBRATION, EXAMPLES, Topic, topic_table

TABLE = {topic.name: topic for topic in topic_table(4)}


def of(name: str) -> Topic:
    """The topic of the table."""
    return TABLE[name]


@pytest.mark.parametrize("topic", TABLE.values(), ids=lambda topic: topic.name)
def test_a_topic_as_in_the_table_fits(topic: Topic) -> None:
    """So does one that takes more, keeps longer, or says nothing of itself."""
    longer = {"max.message.bytes": str(16 << 20), "retention.ms": "-1", "retention.bytes": "-1"}
    for found in ({}, topic.config(), {**topic.config(), **longer}, {"min.insync.replicas": "1"}):
        assert [*unfit_settings(topic, found)] == []


@pytest.mark.parametrize(
    ("name", "setting", "found", "needed"),
    [
        (EXAMPLES, "max.message.bytes", "1048588", str(8 << 20)),
        (EXAMPLES, "retention.ms", "3600000", "604800000"),
        (EXAMPLES, "retention.bytes", "1000000", "-1"),
        (EXAMPLES, "cleanup.policy", "compact", "delete"),
        (EXAMPLES, "cleanup.policy", "compact,delete", "delete"),
        (EXAMPLES, "min.insync.replicas", "2", "1"),
        (CALIBRATION, "cleanup.policy", "delete", "compact"),
    ],
)
def test_what_loses_or_refuses_records_is_named(name: str, setting: str, found: str, needed: str) -> None:
    """With what comes of it and the command that mends it."""
    (unfit,) = unfit_settings(of(name), {setting: found})
    assert unfit[:4] == (name, setting, found, needed)
    assert unfit.consequence
    assert f"--entity-name {name} --add-config {setting}={needed}" in unfit.remedy


def test_a_record_may_be_as_large_as_its_topic_takes() -> None:
    """Headers are within that; a topic that says nothing takes what ours do."""
    assert record_limit({"max.message.bytes": "1048588"}, 8 << 20) == 1_048_588 - BATCH_ROOM_BYTES
    assert record_limit({"max.message.bytes": str(64 << 20)}, 8 << 20) == 8 << 20
    assert record_limit({}, 8 << 20) == 8 << 20
