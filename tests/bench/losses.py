"""Losses of delayed clicks side by side, in a world whose probabilities are known.

A base of labelled rows, then displays at a steady rate, whose clicks come seven seconds later on average; halfway the
click rate doubles. Each second all displays of it are scored by the model as it stands, and what comes in it is learned
in batches of at most 128 rows. Every loss meets the same displays and clicks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.logistic import sigmoid
from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.models.losses import Loss, losses_of
from learners.nn.heads import Head
from tests.bench.harness import Bound, Measure, progress

_SHAPE = ModelShape(
    spec_name="world",
    spec_hash="0" * 16,
    id_columns=4,
    embedded=(0, 1, 2, 3),
    names=("user", "segment", "placement", "ad"),
    dense=0,
)
_MEAN_DELAY_S, _ELAPSED_S, _WINDOW_S = 7.0, 5.0, 600.0
_BATCH_ROWS, _BASE_ROWS = 128, 100_000
_SETTLED_S = 180  # after a start or a jump, from which on its effect should be over
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class World(NamedTuple):
    """Displays a second, their click rate, and for how long."""

    per_s: int
    click_rate: float
    seconds: int

    def __str__(self) -> str:
        return f"{self.per_s}/s at {self.click_rate:.1%}"


class Displays(NamedTuple):
    """N displays in order: ids (N, 4) · p, the true probability of a click · delay_s, infinite without one."""

    ids: NDArray[np.uint64]
    p: NDArray[np.float64]
    delay_s: NDArray[np.float64]


def losses() -> dict[str, Loss]:
    """Those compared, with the delay law of this world."""
    share = 1 - math.exp(-_ELAPSED_S / _MEAN_DELAY_S)
    return losses_of(_ELAPSED_S, share, window_s=_WINDOW_S)


def drawn(generator: np.random.Generator, count: int, log_odds: NDArray[np.float64] | float) -> Displays:
    """Displays of 2000 users in 20 segments, 4 placements and 200 ads, around a mean log-odds for each."""
    effects = np.random.default_rng(1)
    of_ad, of_segment, of_placement = (effects.normal(0, sd, n) for sd, n in ((0.5, 200), (0.3, 20), (0.3, 4)))
    of_user = effects.normal(0, 0.3, 2000)
    user, placement, ad = (generator.integers(0, n, count) for n in (2000, 4, 200))
    p = sigmoid(log_odds + of_ad[ad] + of_segment[user % 20] + of_placement[placement] + of_user[user])
    values = np.stack([user, user % 20, placement, ad], axis=1) + 10_000 * np.arange(4) + 1
    delay_s = np.where(generator.random(count) < p, generator.exponential(_MEAN_DELAY_S, count), np.inf)
    return Displays(values.astype(np.uint64) * _GOLDEN, p, delay_s)


def based(world: World, seed: int) -> DeepFM:
    """A model of labelled rows of the world before the jump."""
    config = DeepFMConfig(heads=(Head("click", start_p=world.click_rate),))
    model, start = DeepFM(config, _SHAPE), math.log(world.click_rate / (1 - world.click_rate))
    displays = drawn(np.random.default_rng((seed, 0)), _BASE_ROWS, start)
    for at in range(0, _BASE_ROWS, _BATCH_ROWS):
        rows = slice(at, at + _BATCH_ROWS)
        model.learn_many(_rows(displays.ids[rows]), np.isfinite(displays.delay_s[rows]))
    return model


def served(world: World, loss: Loss, seed: int) -> tuple[Displays, NDArray[np.float64]]:
    """The displays of a stream and the log-odds that each was served with."""
    start = math.log(world.click_rate / (1 - world.click_rate))
    second = np.repeat(np.arange(world.seconds), world.per_s)
    log_odds = np.where(second < world.seconds // 2, start, start + math.log(2))
    displays, model = drawn(np.random.default_rng((seed, 1)), len(second), log_odds), based(world, seed)
    logits = np.empty(len(second))
    for at, (display, positive) in enumerate(_seconds(world, loss, displays)):
        now = slice(at * world.per_s, (at + 1) * world.per_s)
        logits[now] = loss.logit(model.predict_many(_rows(displays.ids[now])))
        for first in range(0, len(display), _BATCH_ROWS):
            batch = slice(first, first + _BATCH_ROWS)
            rows = _rows(displays.ids[display[batch]])
            model.learn_terms(rows, loss.terms(positive[batch], model.predict_many(rows)))
    return displays, logits


def _seconds(world: World, loss: Loss, displays: Displays) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """What is seen in each second, in order: which displays, and whether as clicks."""
    seen = loss.seen(displays.delay_s)
    at_s = seen.display / world.per_s + seen.age_s
    order = np.argsort(at_s, kind="stable")
    ends = np.searchsorted(at_s[order], np.arange(1, world.seconds + 1))
    for first, last in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        yield seen.display[order[first:last]], seen.positive[order[first:last]]


def _rows(ids: NDArray[np.uint64]) -> Rows:
    return Rows(ids, np.zeros((len(ids), 0), np.float32))


def measures(*, quick: bool = False) -> list[Measure]:
    """For each world and loss: what its predictions lose to the truth, and their O/E, before and after the jump."""
    worlds = (World(1000, 0.01, 1800), World(50, 0.065, 3600))
    found: list[Measure] = []
    for world in (world._replace(seconds=world.seconds // 3 + 200) if quick else world for world in worlds):
        first: dict[str, float] = {}
        for name, loss in losses().items():
            progress(f"{world}: {name}")
            displays, logits = served(world, loss, seed=0)
            for what, value in figures(world, displays, logits).items():
                first.setdefault(what, value)
                target = Bound("ours", 0.97, 1.03) if name == "split" and what in ("O/E steady", "O/E later") else None
                found.append(Measure(name=f"{world}, {what}: {name}", ours=value, peer=first[what], target=target))
    return found


def figures(world: World, displays: Displays, logits: NDArray[np.float64]) -> dict[str, float]:
    """Excess log loss in nats per 100,000 displays, and true over predicted clicks."""
    p, q = displays.p, sigmoid(logits)
    excess = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    second = np.arange(len(p)) / world.per_s
    jump, settled = world.seconds // 2, world.seconds // 2 + _SETTLED_S
    spans = {
        "start": second < _SETTLED_S,
        "steady": (second >= _SETTLED_S) & (second < jump),
        "click rate just doubled": (second >= jump) & (second < settled),
        "later": second >= settled,
    }
    losses_ = {f"excess log loss, {what}": 1e5 * float(excess[at].mean()) for what, at in spans.items() if at.any()}
    return losses_ | {f"O/E {what}": float(p[at].sum() / q[at].sum()) for what, at in spans.items() if at.any()}
