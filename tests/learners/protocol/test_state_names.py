"""Names of a state's arrays."""

from __future__ import annotations

import numpy as np

from learners.protocol.state_names import prefixed, under


def test_under_is_the_inverse_of_prefixed() -> None:
    """Of a part alone, whatever stands beside it; a name may hold its own prefix once more."""
    part = {"a": np.zeros(1), "x.a": np.ones(2)}
    whole = {**prefixed("x.", part), "y.a": np.zeros(3)}
    assert list(whole) == ["x.a", "x.x.a", "y.a"]
    assert under("x.", whole) == part
