"""Foreign values in messages."""

from __future__ import annotations

from typing import Any

import pytest

from learners.features.shown import SHOWN_LENGTH, cut, shown

NESTED: list[Any] = []
for _ in range(5_000):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        b"x" * 1_000_000,
        10**10_000,
        -(10**10_000),
        NESTED,
        [1] * 1_000_000,
        {"a" * 999: {"b" * 999: 1}},
    ],
    ids=["text", "bytes", "integer", "negative", "nested", "list", "objects"],
)
def test_whatever_it_is_it_is_shown_in_a_line(value: Any) -> None:
    """Python itself refuses to write out some of these, and takes seconds for others."""
    assert 0 < len(shown(value)) <= SHOWN_LENGTH + 1


def test_short_values_are_shown_as_they_are() -> None:
    """And cutting says that it cut."""
    assert [shown(one) for one in ("a", 7, None, 0.5, [1, 2])] == ["'a'", "7", "None", "0.5", "[1, 2]"]
    assert shown(10**100) == "an integer of 333 bits"
    assert cut("abc", 2) == "ab…"
