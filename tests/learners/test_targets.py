"""What examples teach the heads."""

from __future__ import annotations

import numpy as np
import pytest

from learners.examples import Examples
from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.rows import Rows
from learners.targets import Targets, arrivals, outcomes

# impressions 1: not clicked · 2: clicked, converts · 3: settled as not clicked, clicked later, converts
KIND = [SETTLED, SETTLED, SETTLED, CORRECTION, CONVERSION, CONVERSION]
EXAMPLES = Examples(
    spec_name="toy",
    spec_hash="0",
    rows=Rows(np.ones((6, 1), np.uint64), np.zeros((6, 0), np.float32)),
    columns={
        "kind": np.array(KIND, np.uint8),
        "impression_id": np.array([1, 2, 3, 3, 2, 3], np.uint64),
        "label": np.array([0, 1, 0, 1, 1, 1], np.uint8),
        "known_ms": np.array([10, 20, 30, 40, 50, 60]),
        "weight": np.array([1, 1, 2, 2, 1, 2], np.float32),
    },
)
BOTH = ("click", "conversion")


def arrived(rows: slice, heads: tuple[str, ...]) -> Targets:
    """What some of the rows teach as they arrive."""
    kind, label, weight = (EXAMPLES.columns[name][rows] for name in ("kind", "label", "weight"))
    return arrivals(kind, label, heads, weight=weight)


def test_outcomes_are_all_that_became_known() -> None:
    """One row an impression, with its label in the end, or as it stood at a time."""
    settled = EXAMPLES.settled()
    assert outcomes(EXAMPLES, settled, BOTH).labels.tolist() == [[False, False], [True, True], [True, True]]
    assert outcomes(EXAMPLES, settled, BOTH, before_ms=50).labels.tolist() == [
        [False, False],
        [True, False],
        [True, False],
    ]
    one = outcomes(EXAMPLES, settled, ("click",), before_ms=40)
    assert one.labels.tolist() == [False, True, False]
    assert one.weight.tolist() == [1, 1, 2]


def test_arrivals_speak_to_their_own_head_alone() -> None:
    """A correction says nothing about conversions, a conversion nothing about clicks."""
    targets = arrived(slice(0, 6), BOTH)
    assert targets.weight.tolist() == [[1, 1], [1, 1], [2, 2], [2, 0], [0, 1], [0, 2]]
    learned = np.where(targets.weight > 0, targets.labels, -1).tolist()
    assert learned == [[0, 0], [1, 0], [0, 0], [1, -1], [-1, 1], [-1, 1]]


def test_arrivals_of_one_head_are_vectors() -> None:
    """Settled rows and the correction, as a model of clicks alone learns them."""
    targets = arrived(slice(2, 4), ("click",))
    assert targets.labels.tolist() == [False, True]
    assert targets.weight.dtype == np.float32


def test_rows_without_weights_count_once() -> None:
    """As those of the stream."""
    kind, label = EXAMPLES.columns["kind"], EXAMPLES.columns["label"]
    assert arrivals(kind, label, BOTH).weight.tolist() == [[1, 1], [1, 1], [1, 1], [1, 0], [0, 1], [0, 1]]
    assert arrivals(kind, label, BOTH).weight.dtype == np.float32


def test_a_head_without_labels_is_refused() -> None:
    """By its name."""
    with pytest.raises(ValueError, match="head 'like' must be 'click' or 'conversion'"):
        outcomes(EXAMPLES, np.array([0]), ("click", "like"))
    with pytest.raises(ValueError, match="head 'like' must be 'click' or 'conversion'"):
        arrived(slice(0, 1), ("click", "like"))
