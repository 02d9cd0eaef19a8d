"""What waits between a consumer and the runner that works it off."""

from __future__ import annotations

import asyncio

from stream.agents.inbox import Inbox
from stream.kafka.input_record import InputRecord
from stream.records.topics import EXAMPLES


def records(first: int, count: int, value: bytes = b"x") -> list[InputRecord]:
    """Records of partition 0 from an offset on."""
    return [InputRecord(EXAMPLES, 0, offset, value, 0) for offset in range(first, first + count)]


async def test_what_waits_is_taken_in_its_order_and_at_most_so_much_at_once() -> None:
    """Nothing is taken twice, nothing skipped."""
    inbox = Inbox(at_once=3)
    await inbox.put(records(0, 4))
    assert inbox.is_full
    assert [[one.offset for one in inbox.take()] for _ in range(3)] == [[0, 1, 2], [3], []]


async def test_a_put_goes_in_whole_and_the_next_one_waits_for_room() -> None:
    """By the number of items, and by their bytes."""
    for inbox in (Inbox(max_items=2), Inbox(max_bytes=3)):
        await inbox.put(records(0, 3))
        waiting = asyncio.create_task(inbox.put(records(3, 1)))
        await asyncio.sleep(0)
        assert (len(inbox), waiting.done()) == (3, False)
        inbox.take()
        await waiting
        assert [one.offset for one in inbox.take()] == [3]


async def test_a_record_without_a_value_takes_its_place() -> None:
    """A tombstone must be worked off like any other."""
    inbox = Inbox()
    await inbox.put([InputRecord(EXAMPLES, 0, 5, None, 0)])
    assert [one.offset for one in inbox.take()] == [5]


async def test_it_says_when_something_waits() -> None:
    """Or when there is something else to do."""
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.filled())
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.wake()
    await waiting
    assert inbox.take() == []
    await inbox.put(records(0, 1))
    await inbox.filled()


async def test_cleared_it_is_empty_and_has_room() -> None:
    """What was dropped comes again after the next assignment."""
    inbox = Inbox(max_items=1)
    await inbox.put(records(0, 5))
    inbox.clear()
    assert len(inbox) == 0
    await asyncio.wait_for(inbox.put(records(9, 1)), timeout=1)
    assert [one.offset for one in inbox.take()] == [9]
