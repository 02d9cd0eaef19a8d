"""Slots of keys against a dict."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.sessions.key_slots import KeySlots

KEYS = st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=60)


@given(st.lists(KEYS, max_size=8), KEYS)
def test_slots_are_numbered_as_keys_come(batches: list[list[int]], wanted: list[int]) -> None:
    """Repeated, adjacent and zero keys; what never came has slot 0."""
    slots, expected = KeySlots(), dict[int, int]()
    for batch in batches:
        found = slots.admit(np.array(batch, np.uint64))
        assert found.tolist() == [expected.setdefault(key, len(expected) + 1) for key in batch]
    assert slots.keys().tolist() == list(expected)
    assert len(slots) == len(expected)
    assert slots.look_up(np.array(wanted, np.uint64)).tolist() == [expected.get(key, 0) for key in wanted]


def test_it_grows_and_keeps_every_slot() -> None:
    """A hundred thousand keys, in batches smaller and larger than all before."""
    slots, keys = KeySlots(), np.random.default_rng(1).permutation(np.arange(1, 100_001, dtype=np.uint64))
    for batch in np.split(keys, [10, 5_000, 5_001, 60_000]):
        slots.admit(batch)
    assert slots.look_up(keys).tolist() == list(range(1, 100_001))
    assert not slots.look_up(keys + np.uint64(100_000)).any()
