"""The table of topics."""

from __future__ import annotations

import re

import pytest

from stream.records import topics
from stream.records.topics import INPUTS, MAX_PARTITIONS, topic_table


def test_inputs_and_examples_share_one_partition_count() -> None:
    """A user's rows of every input lie in the same partition number, so one worker sees them all."""
    table = {topic.name: topic for topic in topic_table(7)}
    assert {table[name].partitions for name in (*INPUTS, topics.EXAMPLES)} == {7}
    assert {table[name].partitions for name in (topics.WEIGHTS, topics.CALIBRATION, topics.JOURNAL)} == {1}


def test_every_constant_is_in_the_table_and_nothing_else() -> None:
    """The names that code uses are exactly the topics that get created."""
    constants = {value for name, value in vars(topics).items() if name.isupper() and str(value).startswith("ads.")}
    assert constants == {topic.name for topic in topic_table(1)}
    assert len(constants) == 9


def test_only_the_calibration_state_is_compacted_and_kept_for_ever() -> None:
    """Calibrator states are the newest per partition; everything else ages out."""
    kept = [t.name for t in topic_table(1) if t.cleanup_policy == "compact" or t.retention_ms == -1]
    assert kept == [topics.CALIBRATION]


def test_names_are_legal_and_prefixed() -> None:
    """With a prefix every topic is another topic, with a name that Kafka accepts."""
    plain, prefixed = topic_table(2), topic_table(2, prefix="blue.")
    assert [t.name for t in prefixed] == ["blue." + t.name for t in plain]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,249}", t.name) for t in prefixed)


def test_a_rejected_record_fits_the_dead_letter_topic() -> None:
    """The largest input record, wrapped with its reason, is not too large to be kept."""
    table = {topic.name: topic for topic in topic_table(1)}
    largest = max(table[name].max_message_bytes for name in INPUTS)
    assert table[topics.DEADLETTER].max_message_bytes >= largest + 65_536


@pytest.mark.parametrize("partitions", [0, -1, MAX_PARTITIONS + 1])
def test_impossible_partition_counts_are_refused(partitions: int) -> None:
    """The error names the value, the bound and the variable to set."""
    with pytest.raises(ValueError, match=rf"partitions={partitions} .*1 and {MAX_PARTITIONS}.*MILLSTREAM_PARTITIONS"):
        topic_table(partitions)


def test_a_topic_without_a_replica_is_refused() -> None:
    """The error names the value, the bound and the variable to set."""
    with pytest.raises(ValueError, match=r"replication_factor=0 must be at least 1.*MILLSTREAM_REPLICATION_FACTOR"):
        topic_table(1, replication_factor=0)
