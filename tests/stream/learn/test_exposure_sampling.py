"""A learner that learns a share of the exposures comes to the same probabilities as one that learns all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from learners.deepfm.model import DeepFM
from learners.examples.kinds import EXPOSURE
from learners.features.shape import ModelShape
from learners.nn.heads import Head
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.learn.outcomes import Learned
from stream.records.examples import concat
from tests.stream.click_log import clicked_log
from tests.stream.pipeline import SMALL, SPEC

RATE = 0.05


@pytest.mark.parametrize("exposure_rate", [1.0, 0.1, 0.025])
def test_the_mean_prediction_is_the_true_rate_at_every_sampling_rate(exposure_rate: float) -> None:
    """One click in twenty displays: observed over expected of the second half within what its clicks leave open.

    Without the weights a share of 0.1 would say one in three, one of 0.025 two in three.
    """
    log = clicked_log(60_000, RATE, displays_per_s=500.0)
    config = dataclasses.replace(SMALL, heads=(Head("click", start_p=RATE),))
    model = DeepFM(config, ModelShape.of(SPEC))
    loop = LearningLoop(model, LearningConfig(learn_batch_rows=128, exposure_rate=exposure_rate), 1)
    kept, expected, shown = 0, 0.0, 0
    for p, offset, rows, mark in log:
        displays = rows.take(rows.kind == EXPOSURE)
        if offset >= 60:
            expected += float((1 / (1 + np.exp(-loop.model.predict_many(displays.rows())))).sum())
            shown += len(displays)
        outcomes = loop.step(rows, p, offset, mark)
        kept += sum(int((one.rows.kind == EXPOSURE).sum()) for one in outcomes if isinstance(one, Learned))
    total = concat([rows for _, _, rows, _ in log])
    assert kept == pytest.approx(exposure_rate * (total.kind == EXPOSURE).sum(), rel=0.1)
    assert RATE * shown / expected == pytest.approx(1.0, abs=0.1)
