"""A new base against the line that serves, on the same impressions."""

from __future__ import annotations

import numpy as np
import pytest

from learners.examples.kinds import CLICK, EXPOSURE
from stream.learn.base_gate import Scored, Tail, Verdict, verdict

COUNT = 40_000


def tail(new_bias: float = 0.0, new_noise: float = 0.0, first_half: float = 0.0, count: int = COUNT) -> Scored:
    """Displays at CTR 5 % in the order of their times, then their clicks; the serving line is right.

    The new line is so far off in level, in its order of the rows, and in the level of the first half.
    """
    rng = np.random.default_rng(0)
    z = rng.normal(-3.4, 1.0, count).astype(np.float32)
    clicked = rng.random(count) < 1 / (1 + np.exp(-z))
    new = z + np.float32(new_bias) + rng.normal(0, new_noise, count).astype(np.float32)
    new[: count // 2] += np.float32(first_half)
    kind = np.concatenate([np.full(count, EXPOSURE), np.full(clicked.sum(), CLICK)]).astype(np.uint8)
    every = np.concatenate([np.arange(count), np.flatnonzero(clicked)])
    return Scored(kind, every.astype(np.uint64), every * 10, z[every], new[every])


def judged(rows: Scored, until_ms: int = 10 * COUNT) -> Verdict:
    """The verdict, which there is."""
    found = verdict(rows, until_ms)
    assert found is not None
    return found


def test_a_base_that_is_as_good_is_taken() -> None:
    """Also one that differs by noise, and one that was far off only at first, before it had learned what was new."""
    assert judged(tail()).worse == ""
    assert judged(tail(new_bias=0.02, new_noise=0.05)).worse == ""
    assert judged(tail(first_half=2.0)).worse == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"new_bias": 0.5}, "O/E 0."),
        ({"new_bias": -0.5}, "O/E 1."),
        ({"new_noise": 1.0}, "normalised entropy"),
        ({"new_noise": 1.0}, "AUC 0."),
    ],
)
def test_a_base_that_is_worse_in_a_figure_is_refused_with_it(options: dict[str, float], said: str) -> None:
    """Level, entropy or order; both lines' figures are told."""
    found = judged(tail(**options))  # type: ignore[arg-type]
    assert said in found.worse
    assert found.figures()["serving_observed_over_expected"] == pytest.approx(1.0, abs=0.05)


def test_what_is_not_mature_does_not_count() -> None:
    """The newest displays lack clicks in both lines' eyes."""
    assert judged(tail(), until_ms=5 * COUNT).base.rows == COUNT // 4


def test_of_few_clicks_nothing_is_said() -> None:
    """A tail of seconds, or none."""
    assert verdict(None, 10) is None
    assert verdict(tail(count=500), 10 * COUNT) is None


def test_where_too_little_came_rows_that_the_base_knows_are_judged() -> None:
    """However few; they tell a collapsed base, and the verdict says what it is judged on, all mature ones."""
    few = verdict(tail(count=500), 10 * COUNT, seen=True)
    assert few is not None
    assert (few.worse, few.base.rows) == ("", 500)
    assert few.figures()["clicks"] == few.clicks > 10
    assert "also those that the base was trained on" in few.judged_on
    collapsed = verdict(tail(count=500)._replace(logit=np.where(np.arange(500 + few.clicks) % 2, 60, -60)), 10 * COUNT,
                        seen=True)  # fmt: skip
    assert collapsed is not None
    for said in ("O/E", "normalised entropy", "AUC"):
        assert said in collapsed.worse
    assert verdict(tail(count=500), 0, seen=True) is None, "none is mature"


@pytest.mark.parametrize(("options", "said"), [({"new_bias": -0.32}, "O/E 1.3"), ({"new_noise": 0.4}, "AUC")])
def test_a_base_that_is_a_little_worse_is_refused_with_figures(options: dict[str, float], said: str) -> None:
    """By a level that promises too little by a third, by an order that is 0.01 worse; known rows or new ones."""
    for seen in (False, True):
        found = verdict(tail(**options, count=4 * COUNT), 40 * COUNT, seen=seen)
        assert found is not None
        assert said in found.worse
        assert 0.6 < float(found.figures()["base_auc"]) <= float(found.figures()["serving_auc"]) < 0.9


def test_a_tail_keeps_its_newest_rows_in_bounded_memory() -> None:
    """Whole parts go, oldest first."""
    kept = Tail(most_rows=1_000)
    assert kept.rows() is None
    rows = tail(count=3_000)
    for start in range(0, 3_000, 150):
        kept.add(Scored(*(column[start : start + 150] for column in rows)))  # type: ignore[arg-type]
    found = kept.rows()
    assert found is not None
    assert found.impression_id.tolist() == list(range(1_950, 3_000))
