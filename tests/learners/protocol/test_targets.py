"""What labelled impressions teach the heads."""

from __future__ import annotations

import numpy as np
import pytest

from learners.examples.examples import Examples
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.rows import Rows
from learners.protocol.targets import outcomes

# impressions 1: not clicked · 2: clicked, converts · 3: clicked later, converts
KIND = [EXPOSURE, EXPOSURE, EXPOSURE, CLICK, CLICK, CONVERSION, CONVERSION]
EXPOSURES = np.array([0, 1, 2])
EXAMPLES = Examples(
    spec_name="toy",
    spec_hash="0",
    rows=Rows(np.ones((7, 1), np.uint64), np.zeros((7, 0), np.float32)),
    columns={
        "kind": np.array(KIND, np.uint8),
        "impression_id": np.array([1, 2, 3, 2, 3, 2, 3], np.uint64),
        "label": np.zeros(7, np.uint8),
        "known_ms": np.array([10, 20, 30, 35, 40, 50, 60]),
        "weight": np.array([1, 1, 2, 1, 2, 1, 2], np.float32),
    },
)
BOTH = ("click", "conversion")


def test_outcomes_are_all_that_became_known() -> None:
    """One row an impression, with its label in the end, or as it stood at a time."""
    assert outcomes(EXAMPLES, EXPOSURES, BOTH).labels.tolist() == [[False, False], [True, True], [True, True]]
    assert outcomes(EXAMPLES, EXPOSURES, BOTH, before_ms=55).labels.tolist() == [
        [False, False],
        [True, True],
        [True, False],
    ]
    one = outcomes(EXAMPLES, EXPOSURES, ("click",), before_ms=40)
    assert one.labels.tolist() == [False, True, False]
    assert one.weight.tolist() == [1, 1, 2]


def test_the_weight_of_every_head_is_that_of_the_exposure() -> None:
    """A sampled exposure stands for as many clicks as for displays."""
    weight = outcomes(EXAMPLES, EXPOSURES, BOTH).weight
    assert weight.tolist() == [[1, 1], [1, 1], [2, 2]]
    assert weight.dtype == np.float32


def test_some_rows_are_taken_by_their_places() -> None:
    """Labels and weights together, in the order of the places."""
    some = outcomes(EXAMPLES, EXPOSURES, ("click",)).at(np.array([2, 0]))
    assert some.labels.tolist() == [True, False]
    assert some.weight.tolist() == [2, 1]


def test_a_head_without_labels_is_refused() -> None:
    """By its name."""
    with pytest.raises(ValueError, match="head 'like' must be 'click' or 'conversion'"):
        outcomes(EXAMPLES, EXPOSURES, ("click", "like"))
