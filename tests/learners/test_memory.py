"""Memory that is used again, and pages provided ahead of their use."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learners import pages
from learners.memory import Spare, reserved
from learners.pages import Ahead, touch


def address(array: NDArray[Any]) -> int:
    """Where it begins."""
    return array.ctypes.data


def test_memory_that_came_back_serves_the_next_array() -> None:
    """Of the same size or a little more; while a view is held it does not come back."""
    spare = Spare()
    first = spare.array((1000, 3), np.float32)
    place, view = address(first), first[5:7, 1:]
    del first
    assert address(spare.array((1000,), np.float32)) != place
    del view
    assert address(spare.array((1100, 3), np.float32)) == place


def test_an_array_does_not_take_the_memory_of_a_much_larger_one() -> None:
    """It would be missing there."""
    spare = Spare()
    place = address(spare.array((100_000,), np.uint8))
    small = spare.array((10,), np.uint8)
    assert address(small) != place
    assert address(spare.array((100_000,), np.uint8)) == place


def test_outgrown_memory_is_given_up() -> None:
    """What is kept stays in proportion to what is asked for."""
    spare = Spare()
    for size in range(10_000, 200_000, 5_000):
        spare.array((size,), np.uint8)
    assert spare.bytes < 2 * 200_000


def test_providing_gives_up_all_other_memory() -> None:
    """Only what was named is at hand afterwards."""
    spare = Spare()
    spare.array((50_000,), np.uint8)
    named = spare.array((1000, 2), np.uint64)
    spare.provide([named])
    assert spare.bytes == 0
    del named
    assert 16_000 <= spare.bytes <= 20_000


def test_touching_changes_nothing() -> None:
    """Zero and other bytes, also those that another thread writes meanwhile."""
    memory = reserved((1 << 20,), np.uint8)
    memory[4096] = 7
    touching = threading.Thread(target=lambda: [touch(memory, 0, 1 << 20) for _ in range(2000)])
    touching.start()
    count = 0
    while touching.is_alive():
        count = (count + 1) % 256
        memory[8192] = count
        assert memory[8192] == count
    assert memory[4096] == 7
    assert np.count_nonzero(memory) <= 2


def test_pages_ahead_are_provided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the used part, not again before half of them are used, and not for a small array."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "touch", lambda memory, first, last: asked.append((first, last)))
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.run)
    mib = 1 << 20
    ahead = Ahead(reserved((40 * mib,), np.uint8))
    for used in (mib, 10 * mib, 11 * mib, 12 * mib, 13 * mib, 39 * mib):
        ahead.reach(used, 4 * mib)
    assert asked == [(10 * mib, 14 * mib), (14 * mib, 17 * mib), (39 * mib, 40 * mib)]
