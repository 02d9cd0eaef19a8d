"""Kinds are mixed evenly, so that a record read in part holds as many clicks per display as the whole."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.learn.learn_order import in_learn_order
from stream.learn.loop import Learned, LearningLoop
from tests.stream.learn.test_loop import CONFIG, model
from tests.stream.pipeline import START_MS, example_rows


@given(st.lists(st.sampled_from([EXPOSURE, CLICK, CONVERSION, 9]), max_size=60))
def test_it_is_that_of_a_slow_sort_and_the_same_again(kinds: list[int]) -> None:
    """By (i + 1/2) / n of the i-th of n rows of a kind, as exact fractions; of equal ones the first comes first."""
    rows = example_rows(len(kinds), seed=1, kind=np.array(kinds, np.uint8))
    count, seen, keys = Counter(kinds), Counter[int](), []
    for kind in kinds:
        keys.append(Fraction(2 * seen[kind] + 1, 2 * count[kind]))
        seen[kind] += 1
    expected = sorted(range(len(kinds)), key=keys.__getitem__)
    mixed = in_learn_order(rows)
    assert mixed.impression_id.tolist() == rows.impression_id[expected].tolist()
    assert in_learn_order(mixed).impression_id.tolist() == mixed.impression_id.tolist()


@pytest.mark.parametrize("displays", [160, 1600])
def test_no_batch_of_a_long_record_is_of_displays_alone(displays: int) -> None:
    """An eighth are clicks in every batch, although all stand at the record's end."""
    kind = np.repeat(np.array([EXPOSURE, CLICK], np.uint8), [displays, displays // 7])
    loop = LearningLoop(model(), CONFIG, 1)
    outcomes = loop.step(example_rows(len(kind), seed=2, kind=kind), 0, 0, START_MS)
    clicks = [
        int((one.rows.kind == CLICK).sum()) for one in outcomes if isinstance(one, Learned) and len(one.rows) == 16
    ]
    assert len(clicks) >= displays // 16
    assert set(clicks) <= {1, 2, 3}
