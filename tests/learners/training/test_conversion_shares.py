"""Conversions that are still to come, and a base that knows of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from calibration.delay_prior import CONVERSION_PRIOR
from calibration.logistic import sigmoid
from learners.deepfm.model import DeepFM
from learners.examples.examples import Examples
from learners.examples.kinds import CLICK, CONVERSION
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.nn.heads import Head
from learners.training.base import BaseConfig, train_base
from learners.training.conversion_shares import conversion_shares
from learners.training.fit import FitConfig
from tests.learners.archived import as_events, examples
from tests.learners.batches import CONFIG, SHAPE

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
HEADS = (Head("click"), Head("conversion", given="click"))


def day_of_conversions(hours: float = 24.0, *, count: int = 12_000, rate: float = 0.3, seed: int = 7) -> Examples:
    """A day of displays, half of them clicked at once, ``rate`` of those converting after some six hours.

    What came after ``hours`` is not in the archive.
    """
    generator = np.random.default_rng(seed)
    given = examples(count)
    columns = dict(given.columns)
    columns["ts_ms"] = START_MS + np.sort(generator.integers(0, 24 * HOUR_MS, count))
    columns["label"] = (generator.random(count) < 0.5).astype(np.uint8)
    columns["known_ms"] = columns["ts_ms"] + 1_000
    log = as_events(dataclasses.replace(given, columns=columns))
    clicks = np.flatnonzero(log.columns["kind"] == CLICK)
    converted = clicks[generator.random(len(clicks)) < rate]
    more = log.take(np.concatenate((np.arange(len(log)), converted)))
    more.columns["kind"][len(log) :] = CONVERSION
    more.columns["known_ms"][len(log) :] += generator.exponential(6 * HOUR_MS, len(converted)).astype(np.int64)
    order = np.argsort(more.columns["known_ms"], kind="stable")
    more = more.take(order)
    return more.take(np.flatnonzero(more.columns["known_ms"] < START_MS + round(hours * HOUR_MS)))


def test_a_share_is_that_of_the_delay_law_at_the_age_of_the_click() -> None:
    """1 − exp(−age / 6 h), measured from an archive of a day although long delays are not in it; 1 without a click."""
    log = day_of_conversions()
    end_ms = START_MS + 24 * HOUR_MS
    shares = conversion_shares(log, end_ms, 30 * 86_400.0, CONVERSION_PRIOR)
    kind, click_ms = log.columns["kind"], log.click_ms()
    assert (shares[click_ms < 0] == 1).all()
    assert (click_ms[kind == CLICK] == log.columns["known_ms"][kind == CLICK]).all()
    # Beyond the oldest click nothing is known but the prior, so that only ratios can be compared.
    for young, old in ((1.0, 12.0), (3.0, 12.0), (6.0, 20.0)):
        near = [np.abs((end_ms - click_ms) / HOUR_MS - age) < 0.1 for age in (young, old)]
        found = [float(shares[of & (kind == CLICK)].mean()) for of in near]
        expected = [1 - np.exp(-age / 6) for age in (young, old)]
        assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=0.12)


def test_an_exposure_knows_when_it_was_clicked() -> None:
    """By the row of its click, or by its own label; −1 where neither tells."""
    given = examples(50)
    expected = np.where(given.columns["label"] == 1, given.columns["known_ms"], -1)
    assert given.click_ms().tolist() == expected.tolist()
    log = as_events(given)
    shown = log.exposures()
    order = np.argsort(log.columns["impression_id"][shown])
    assert log.click_ms()[shown][order].tolist() == expected.tolist()


@pytest.mark.parametrize("heads", [HEADS, (Head("click"), dataclasses.replace(HEADS[1], start_p=0.05))])
def test_a_base_tells_the_conversion_rate_although_half_of_the_conversions_are_to_come(heads: tuple[Head, ...]) -> None:
    """The newest displays have P(conversion | click) as the oldest; labels as they stood would say a third less."""
    log = day_of_conversions()
    config = dataclasses.replace(CONFIG, heads=heads, dense_rate=3e-3)
    trained = train_base(log, SHAPE, model_config=config, config=BaseConfig(fit=FitConfig(epochs=2)))
    shown = log.exposures()
    newest = shown[log.columns["ts_ms"][shown] > START_MS + 18 * HOUR_MS]
    converted_by_now = log.converted(newest[log.clicked(newest)]).mean()
    assert converted_by_now < 0.15
    p = sigmoid(trained.model.predict_heads(log.rows)[newest][:, 1]).mean()
    assert p == pytest.approx(0.3, rel=0.15)


def test_every_click_pays_its_share_and_every_conversion_its_term_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train rows in their labels, later clicks in the replay, none of them in both."""
    log = day_of_conversions(count=3_000)
    paid = np.zeros(2)

    learn_terms = DeepFM.learn_terms

    def counted(self: DeepFM, rows: Rows, terms: Terms, *, rate_factor: float = 1.0) -> None:
        paid[:] += terms.exposure[:, 1].sum(), terms.event[:, 1].sum()
        learn_terms(self, rows, terms, rate_factor=rate_factor)

    monkeypatch.setattr(DeepFM, "learn_terms", counted)
    train_base(log, SHAPE, model_config=dataclasses.replace(CONFIG, heads=HEADS), goes_on=True)
    shares = conversion_shares(log, log.end_ms, BaseConfig().conversion_horizon_s, CONVERSION_PRIOR)
    clicks = log.columns["kind"] == CLICK
    assert paid == pytest.approx([shares[clicks].sum(), (log.columns["kind"] == CONVERSION).sum()], rel=1e-5)
