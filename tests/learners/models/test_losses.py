"""Losses of delayed clicks on a simulated stream of known probabilities."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.logistic import sigmoid
from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.models.ftrl import FtrlConfig, FtrlRegression
from learners.models.losses import (
    LOSSES,
    ElapsedTimeSampled,
    FakeNegativeCalibrated,
    FakeNegativeWeighted,
    Loss,
    RealNegatives,
    Seen,
    Split,
    Waiting,
)
from tests.learners.batches import SHAPE

MEAN_DELAY_S, ELAPSED_S, WINDOW_S = 300.0, 120.0, 1500.0


def share(age_s: float) -> float:
    """F: delays are exponential."""
    return float(1 - np.exp(-age_s / MEAN_DELAY_S))


ALL: dict[str, Loss] = {
    "split": Split(),
    "fnw": FakeNegativeWeighted(),
    "fnc": FakeNegativeCalibrated(),
    "es_dfm": ElapsedTimeSampled(ELAPSED_S, share(ELAPSED_S)),
    "defer": RealNegatives(ELAPSED_S, share(ELAPSED_S), WINDOW_S),
    "waiting": Waiting(WINDOW_S),
}
every = pytest.mark.parametrize("name", list(ALL))


def log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logit of p."""
    return np.asarray(np.log(p / (1 - p)))


def delays(generator: np.random.Generator, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of displays that are clicked with probability p; infinite where they are not."""
    return np.where(generator.random(len(p)) < p, generator.exponential(MEAN_DELAY_S, len(p)), np.inf)


def by_display(loss: Loss, seen: Seen, logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gradient of each display's logit (N,), summed over its rows."""
    at = logit[seen.display]
    exposure, event = loss.terms(seen.positive, at)
    gradient = exposure * sigmoid(at) - event
    return np.bincount(seen.display, gradient, len(logit)).astype(np.float64)


def z_score(values: NDArray[np.float64]) -> float:
    """How many standard errors the mean is from 0."""
    return float(values.mean() / (values.std() / np.sqrt(len(values))))


def test_every_loss_is_here() -> None:
    """One that is added joins this suite."""
    assert {name: type(loss) for name, loss in ALL.items()} == dict(LOSSES)


@every
def test_the_expected_gradient_is_zero_at_the_true_probability(name: str) -> None:
    """In the whole and for rare and frequent clicks apart; where the model is off it leads back."""
    loss, generator = ALL[name], np.random.default_rng(1)
    p = generator.uniform(0.005, 0.4, 400_000)
    seen = loss.seen(delays(generator, p))
    learned = {"fnc": p / (1 + p), "waiting": p * share(WINDOW_S)}.get(name, p)
    gradient = by_display(loss, seen, log_odds(learned))
    for part in (p > 0, p < 0.05, p > 0.3):
        assert abs(z_score(gradient[part])) < 4
    for off in (-0.3, 0.3):
        assert np.sign(off) * z_score(by_display(loss, seen, log_odds(learned) + off)) > 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("split", lambda f, p: f - p),
        ("fnw", lambda f, p: (1 - f**2) * (f - p)),
        ("fnc", lambda f, p: f * (1 + p) - p),
        (
            "es_dfm",
            lambda f, p: (1 + (1 - share(ELAPSED_S)) * f) * (1 - f) / (1 - share(ELAPSED_S) * f) * (f - p),
        ),
        ("waiting", lambda f, p: f - p * share(WINDOW_S)),
    ],
)
@pytest.mark.parametrize("p", [0.05, 0.3])
@pytest.mark.parametrize("f", [0.02, 0.2, 0.6])
def test_the_expected_gradient_is_the_one_that_the_table_says(name: str, expected: object, p: float, f: float) -> None:
    """Also far from the truth: only the split, and waiting up to the clicks it loses, has the log loss' own."""
    assert callable(expected)
    loss, generator = ALL[name], np.random.default_rng(2)
    gradient = by_display(
        loss, loss.seen(delays(generator, np.full(200_000, p))), np.full(200_000, log_odds(np.array(f)))
    )
    assert abs(z_score(gradient - expected(f, p))) < 4


@every
def test_learned_as_it_comes_it_ends_at_the_click_rates(name: str) -> None:
    """FTRL over the rows as they come while displays go on: the probability of each id is its rate of clicks."""
    loss, generator = ALL[name], np.random.default_rng(3)
    ids = generator.integers(1, 5, 60_000)
    p = np.array([0, 0.03, 0.1, 0.2, 0.35])[ids]
    delay_s = delays(generator, p)
    seen = loss.seen(delay_s)
    at_s = seen.display / 20 + seen.age_s  # 20 displays a second
    order = np.argsort(at_s, kind="stable")[: int((at_s < len(ids) / 20).sum())]
    learner = FtrlRegression(FtrlConfig(alpha=0.1, dense=False, table_rows=2**16), SHAPE)

    def rows_of(values: NDArray[np.int64]) -> Rows:
        columns = np.zeros((len(values), SHAPE.id_columns), np.uint64)
        columns[:, 0] = values
        return Rows(columns, np.zeros((len(values), SHAPE.dense), np.float32))

    for start in range(0, len(order), 50):
        batch = order[start : start + 50]
        rows = rows_of(ids[seen.display[batch]])
        learner.learn_terms(rows, loss.terms(seen.positive[batch], learner.predict_many(rows)))
    found = sigmoid(loss.logit(learner.predict_many(rows_of(np.arange(1, 5)))))
    np.testing.assert_allclose(found, [0.03, 0.1, 0.2, 0.35], rtol=0.15)


def test_a_short_wait_loses_the_clicks_that_come_later() -> None:
    """Waiting for the mean delay learns 63 % of the rate: why a product that waits needs a long window."""
    generator, p = np.random.default_rng(4), np.full(200_000, 0.2)
    seen = Waiting(MEAN_DELAY_S).seen(delays(generator, p))
    assert seen.positive.mean() == pytest.approx(0.2 * share(MEAN_DELAY_S), rel=0.02)
    assert (seen.age_s == MEAN_DELAY_S).all()


def test_what_is_seen_of_a_display_and_when() -> None:
    """Of one clicked after 50 s, one after 500 s, one after more than the window, one never."""
    delay_s = np.array([50.0, 500.0, 5000.0, np.inf])

    def rows(loss: Loss) -> list[list[tuple[float, bool]]]:
        seen = loss.seen(delay_s)
        found: list[list[tuple[float, bool]]] = [[], [], [], []]
        for display, age_s, positive in zip(*(column.tolist() for column in seen), strict=True):
            found[display].append((age_s, positive))
        return [sorted(each) for each in found]

    now, so = (0.0, False), ALL["es_dfm"]
    assert rows(Split()) == rows(FakeNegativeWeighted()) == rows(FakeNegativeCalibrated())
    assert rows(Split()) == [[now, (50.0, True)], [now, (500.0, True)], [now, (5000.0, True)], [now]]
    at_e = (ELAPSED_S, False)
    assert rows(so) == [[(ELAPSED_S, True)], [at_e, (500.0, True)], [at_e, (5000.0, True)], [at_e]]
    lost = [at_e, (WINDOW_S, False)]
    assert rows(ALL["defer"]) == [[(ELAPSED_S, True)] * 2, [at_e, (500.0, True)], lost, lost]
    assert rows(Waiting(WINDOW_S)) == [[(WINDOW_S, True)], [(WINDOW_S, True)], [(WINDOW_S, False)], [(WINDOW_S, False)]]


def test_the_split_is_what_kinds_teach() -> None:
    """The learning loop's terms, `Terms.of_kinds`, are those of this loss."""
    kind = np.array([EXPOSURE, CLICK, CLICK, EXPOSURE], np.uint8)
    found, expected = Split().terms(kind == CLICK, np.zeros(4)), Terms.of_kinds(kind, ("click",))
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]
    assert found.exposure.dtype == found.event.dtype == np.float32


def test_elapsed_time_sampling_without_a_wait_is_the_weighted_fake_negative() -> None:
    """With e = 0 no click has come, and the weights are those of FNW."""
    generator = np.random.default_rng(5)
    positive, logit = generator.random(100) < 0.5, generator.standard_normal(100)
    found, expected = ElapsedTimeSampled(0, 0).terms(positive, logit), FakeNegativeWeighted().terms(positive, logit)
    np.testing.assert_allclose(found.exposure, expected.exposure, rtol=1e-6)
    np.testing.assert_allclose(found.event, expected.event, rtol=1e-6)


@pytest.mark.parametrize("name", ["es_dfm", "defer"])
def test_a_heads_probability_of_a_delayed_click_takes_the_place_of_the_law(name: str) -> None:
    """Given p·(1 − F) of every row, the weights are the law's own."""
    loss, generator = ALL[name], np.random.default_rng(6)
    positive, logit = generator.random(100) < 0.5, generator.standard_normal(100)
    by_head = loss.terms(positive, logit, (1 - share(ELAPSED_S)) * sigmoid(logit))
    for found, expected in zip(by_head, loss.terms(positive, logit), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@every
def test_weights_are_finite_at_any_logit(name: str) -> None:
    """And not negative, as a learner asks."""
    logit = np.array([-1e4, -50, 0, 50, 1e4], np.float32)
    for positive in (np.ones(5, np.bool_), np.zeros(5, np.bool_)):
        for part in ALL[name].terms(positive, logit):
            assert (np.isfinite(part) & (part >= 0)).all()
    assert np.isfinite(ALL[name].logit(logit)).all()


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.025])
def test_sampled_exposures_need_no_correction(rate: float) -> None:
    """Every click and a share of the exposures, each of weight 1 / rate: the gradient's expectation is the same."""
    generator = np.random.default_rng(7)
    p = generator.uniform(0.002, 0.05, 1_000_000)
    clicked, kept = generator.random(len(p)) < p, generator.random(len(p)) < rate
    kind = np.repeat(np.array([EXPOSURE, CLICK], np.uint8), (int(kept.sum()), int(clicked.sum())))
    display = np.concatenate((np.flatnonzero(kept), np.flatnonzero(clicked)))
    weight = np.where(kind == EXPOSURE, 1 / rate, 1).astype(np.float32)
    exposure, event = Terms.of_kinds(kind, ("click",), weight)
    for off, sign in ((0.0, 0), (-0.2, -1), (0.2, 1)):
        f = sigmoid(log_odds(p) + off)
        gradient = np.bincount(display, exposure * f[display] - event, len(p)).astype(np.float64)
        if sign:
            assert sign * z_score(gradient) > 10
            assert gradient.mean() == pytest.approx((f - p).mean(), rel=0.15)
        else:
            assert abs(z_score(gradient)) < 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ElapsedTimeSampled(-1, 0.5), "elapsed_s=-1"),
        (lambda: ElapsedTimeSampled(1, 1.5), "share=1.5"),
        (lambda: RealNegatives(60, 0.5, 60), "window_s=60 must be longer than elapsed_s=60"),
        (lambda: Waiting(float("nan")), "window_s=nan must be positive"),
        (lambda: FakeNegativeCalibrated(largest_p=1.0), "largest_p=1.0 must lie between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: object, message: str) -> None:
    """The message names the value."""
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_losses_are_values() -> None:
    """Frozen: a run's loss cannot change on its way."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ALL["es_dfm"].share = 0.1  # type: ignore[attr-defined]
