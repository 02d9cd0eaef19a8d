"""Threads that share chunks."""

from __future__ import annotations

import time
from threading import Lock

import pytest

from learners.nn.threads import ChunkThreads

CHUNKS = [slice(at, at + 1) for at in range(7)]


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_what_must_happen_in_order_does(threads: int, count: int) -> None:
    """However long the work on a chunk takes, and each thread does both for its own chunks."""
    done: list[int] = []
    owners: dict[int, int] = {}
    lock = Lock()

    def work(thread: int, chunk: slice) -> None:
        time.sleep(0.002 * ((chunk.start * 5) % 3))
        with lock:
            owners[chunk.start] = thread

    def in_order(thread: int, chunk: slice) -> None:
        assert owners[chunk.start] == thread
        done.append(chunk.start)

    ChunkThreads(threads).each(CHUNKS[:count], work, in_order)
    assert done == list(range(count))
    assert set(owners) == set(range(count))


@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("late", [False, True])
def test_what_one_raises_ends_all(place: int, late: bool) -> None:
    """No thread waits for a turn that never comes; nothing is done behind the failure; the next batch works."""
    done: list[int] = []

    def fail(thread: int, chunk: slice) -> None:
        if chunk.start == place:
            raise ArithmeticError(f"chunk {place}")

    def note(thread: int, chunk: slice) -> None:
        if late:
            fail(thread, chunk)
        done.append(chunk.start)

    threads = ChunkThreads(3)
    with pytest.raises(ArithmeticError, match=f"chunk {place}"):
        threads.each(CHUNKS, (lambda thread, chunk: None) if late else fail, note)
    assert done == list(range(len(done)))
    assert len(done) <= place
    done.clear()
    threads.each(CHUNKS, lambda thread, chunk: None, lambda thread, chunk: done.append(chunk.start))
    assert done == list(range(7))
