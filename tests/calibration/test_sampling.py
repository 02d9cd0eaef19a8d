"""The correction for sampled negatives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.logistic import logit, sigmoid
from calibration.sampling import to_full_stream, to_sampled_stream


@given(st.floats(0.001, 0.999), st.floats(0.001, 1))
def test_correction_equals_the_formula_for_probabilities(p: float, rate: float) -> None:
    """Adding log(rate) to the log-odds is q = p / (p + (1 - p) / rate)."""
    corrected = sigmoid(to_full_stream(logit(np.array([p])), rate))[0]
    assert corrected == pytest.approx(p / (p + (1 - p) / rate), rel=1e-9)


@given(st.floats(-20, 20), st.floats(0.001, 1))
def test_correction_and_its_inverse_cancel(log_odds: float, rate: float) -> None:
    """There and back is the same log-odds; a rate of 1 changes nothing."""
    there = to_full_stream(np.array([log_odds]), rate)
    assert to_sampled_stream(there, rate)[0] == pytest.approx(log_odds, abs=1e-12)
    assert to_full_stream(np.array([log_odds]), 1.0)[0] == log_odds


def test_ctr_of_a_sample_becomes_that_of_the_stream() -> None:
    """10 clicks and 90 of 990 negatives are a CTR of 10 % in the sample and 1 % in the stream."""
    assert sigmoid(to_full_stream(logit(np.array([0.1])), 90 / 990))[0] == pytest.approx(0.01)


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5, float("nan")])
def test_rate_that_is_no_share_is_refused(rate: float) -> None:
    """Rates outside (0, 1] raise with the value."""
    with pytest.raises(ValueError, match=f"negative_rate={rate}"):
        to_full_stream(np.zeros(1), rate)
