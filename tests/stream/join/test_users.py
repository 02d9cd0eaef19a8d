"""Whose impression it is: the served row says so, whatever an event says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.join.core import JoinCore
from stream.join.in_memory import MemoryJoin
from stream.join.output import JoinOutput
from stream.records.partition import partition_of
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS
from tests.stream.join_harness import CONFIG, Joined, events, rebuilt, served, short

WRONG = 4  # by how much a user key is wrong


@pytest.fixture
def join() -> Joined:
    """A core to which impression 7 was served."""
    joined = Joined()
    joined.served(served((7, 0), (8, 0)), 0)
    return joined


def reasons(out: JoinOutput) -> list[tuple[str, str]]:
    """Topic and reason of what was rejected."""
    return [(reject.topic, reject.reason) for reject in out.rejects]


def test_an_impression_of_another_user_displays_nothing(join: Joined) -> None:
    """It is put aside at once, with what to do; the user's own display counts, and has the served row's user."""
    join.impressions(events((7, 1, 0, WRONG)), 0)
    out = join.poll()
    assert reasons(out) == [(IMPRESSIONS, "wrong_user")]
    assert "user_key=12 is not the user" in out.rejects[0].detail
    assert "as text" in out.rejects[0].detail
    join.impressions(events((7, 1)), 1)
    assert short(join.advance(10).examples) == [(EXPOSURE, 7)]


@pytest.mark.parametrize("state", ["served", "displayed", "exposed", "exposed in an earlier life", "clicked"])
def test_a_click_of_another_user_clicks_nothing(join: Joined, state: str) -> None:
    """In whatever state the row is; the user's own click counts afterwards."""
    if state != "served":
        join.impressions(events((7, 1)), 0)
    if state == "clicked":
        join.clicks(events((7, 2)), 0)
    if state.startswith("exposed") or state == "clicked":
        out = join.advance(5)
        join = rebuilt(join, out) if state.endswith("life") else join
    join.clicks(events((7, 2, 0, WRONG)), 1)
    out = join.poll()
    assert reasons(out) == [(CLICKS, "wrong_user")]
    if state == "served":
        join.impressions(events((7, 1)), 0)
    join.clicks(events((7, 2)), 2)
    out = join.poll()
    expected = [] if state == "clicked" else [(CLICK, 7)]
    assert [one for one in short(out.examples) if one[0] == CLICK] == expected
    assert not out.rejects


def test_a_conversion_of_another_user_converts_nothing(join: Joined) -> None:
    """At the time of the user's own, which counts."""
    join.impressions(events((7, 1)), 0)
    join.clicks(events((7, 2)), 0)
    join.poll()
    join.conversions(events((7, 9, 2.5, WRONG), (7, 9, 2.5)), 0)
    out = join.poll()
    assert reasons(out) == [(CONVERSIONS, "wrong_user")]
    assert short(out.examples) == [(CONVERSION, 7)]
    assert out.offsets[CONVERSIONS] == 1


@pytest.mark.parametrize("first", [0, WRONG])
def test_events_that_wait_do_not_stand_for_those_of_another_user(first: int) -> None:
    """Of one id and time, before the row comes: both wait, and each has its end."""
    join = Joined()
    for offset, wrong in enumerate((first, WRONG - first)):
        join.impressions(events((7, 1, 0, wrong)), offset)
        join.clicks(events((7, 2, 0, wrong)), offset)
    assert join.core.waiting_events == 4
    join.served(served((7, 0)), 0)
    out = join.poll()
    assert short(out.examples) == [(EXPOSURE, 7), (CLICK, 7)]
    assert sorted(reasons(out)) == [(CLICKS, "wrong_user"), (IMPRESSIONS, "wrong_user")]


def test_users_are_told_apart_by_every_bit(join: Joined) -> None:
    """Also by those that a 64-bit float loses."""
    for bit in range(64):
        join.impressions(events((7, 1, 0, 1 << bit)), bit)
    out = join.advance(10)
    assert (reasons(out), out.examples) == ([(IMPRESSIONS, "wrong_user")] * 64, None)


def home_of(user_key: int, partitions: int) -> int:
    """Where Kafka's own partitioner puts a user."""
    return int(partition_of(np.array([user_key], np.uint64), partitions)[0])


@pytest.mark.parametrize(
    ("topic", "feed"),
    [
        (IMPRESSIONS, Joined.impressions),
        (CLICKS, Joined.clicks),
        (CONVERSIONS, Joined.conversions),
    ],
)
def test_an_event_in_the_wrong_partition_is_named_at_once(
    topic: str, feed: Callable[[Joined, object, int], None]
) -> None:
    """With both partitions and the remedy; it neither waits nor moves time, and holds no offset."""
    home = home_of(8, 4)
    join = Joined()
    join.core = JoinCore(CONFIG, (home + 1) % 4, partitions=4)
    join.join = MemoryJoin(join.core, 2, 2)
    feed(join, events((7, 1)), 0)
    out = join.poll()
    assert reasons(out) == [(topic, "wrong_partition")]
    assert f"lies in partition {(home + 1) % 4}, its user's is {home} of 4" in out.rejects[0].detail
    assert "murmur2" in out.rejects[0].detail
    assert join.core.waiting_events == 0
    assert out.offsets == {topic: 1}
    assert not join.core.ahead() & {IMPRESSIONS, CLICKS}


def test_an_event_in_its_own_partition_waits() -> None:
    """Its row may still come."""
    join = Joined()
    join.core = JoinCore(CONFIG, home_of(8, 4), partitions=4)
    join.impressions(events((7, 1)), 0)
    join.core.poll()
    assert join.core.waiting_events == 1
