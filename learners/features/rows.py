"""A batch of encoded impressions, as every learner reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """A batch of B encoded impressions.

    ids : (B, F) uint64, one 64-bit hash per id field of the feature spec, salted by field; 0 means missing.
    dense : (B, K) float32, the dense inputs of the feature spec.
    """

    ids: NDArray[np.uint64]
    dense: NDArray[np.float32]
