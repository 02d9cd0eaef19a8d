"""Which share of its conversions has come of each click of an archive.

Conversions come hours or days after their click. A click labelled as one that did not convert, because it did not
yet, would be a fake negative; so it pays its term softplus(z) of the conversion head only to the share F(age) of the
conversions that come by its age at the archive's end, where all conversions that are in the archive pay theirs. Both
sums then belong to the same clicks, and the head is right on average at once (`calibration.delay_law` measures F from
the archive's own conversions, free of truncation). What converts later teaches nobody: the learner takes only
conversions of clicks whose term it paid itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.delay_law import DelayLaw
from calibration.delay_prior import DelayPrior
from learners.examples.examples import Examples
from learners.examples.kinds import CONVERSION


def conversion_shares(examples: Examples, end_ms: int, horizon_s: float, prior: DelayPrior) -> NDArray[np.float32]:
    """F(age at ``end_ms``) of the click of each row's impression, (N,); 1 where there is none.

    What comes later than the archive is long, the prior says.
    """
    click_ms = examples.click_ms()
    law = DelayLaw(horizon_s, prior=prior)
    found = np.flatnonzero((examples.columns["kind"] == CONVERSION) & (click_ms >= 0))
    law.add(click_ms[found], np.maximum(examples.columns["known_ms"][found] - click_ms[found], 0))
    law.advance(end_ms)
    shares = law.share(np.maximum(end_ms - click_ms, 0)).astype(np.float32)
    return np.where(click_ms < 0, np.float32(1), shares)
