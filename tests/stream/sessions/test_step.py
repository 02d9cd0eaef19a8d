"""How many rows a step of the session store takes."""

from __future__ import annotations

from stream.sessions.step import MAX_STEP_ROWS, StepRows


def test_a_slow_step_makes_the_next_ones_smaller_and_fast_full_ones_larger_again() -> None:
    """Between the bounds; a small step that is fast says nothing about large ones."""
    rows = StepRows()
    assert rows.most == MAX_STEP_ROWS
    rows.took(8_000, 1.0)
    assert rows.most == 4_000
    rows.took(600, 0.9)
    assert rows.most == 300
    for _ in range(5):
        rows.took(300, 5.0)
    assert rows.most == 256
    rows.took(100, 0.01)
    assert rows.most == 256
    for _ in range(10):
        rows.took(rows.most, 0.01)
    assert rows.most == MAX_STEP_ROWS
    rows.took(8_192, 0.1)
    assert rows.most == MAX_STEP_ROWS


def test_a_step_without_an_answer_counts_as_a_very_slow_one() -> None:
    """It may have been applied all the same."""
    rows = StepRows()
    rows.failed()
    assert rows.most == MAX_STEP_ROWS // 4
    for _ in range(5):
        rows.failed()
    assert rows.most == 256
