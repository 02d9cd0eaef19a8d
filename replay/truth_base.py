"""The base that a scenario starts from: trained on labelled draws of the world, at its true rates or at wrong ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD, Terms
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.features.spec import load_spec
from learners.nn.heads import Head
from learners.protocol.learner import State
from replay.truth_world import SPEC_NAME, World, WorldConfig

_BASE_CLICKS = 20_000
_CHUNK_REQUESTS = 4_096
_BATCH_ROWS = 128


class BaseKind(NamedTuple):
    """What a base was trained on: the market of a seed and a click rate, times a wrong factor, with which heads."""

    seed: int
    ctr: float
    ctr_factor: float
    conversions: bool


class TrainedBase(NamedTuple):
    """A base as plain data, so that it can be handed to another process."""

    config: DeepFMConfig
    state: State

    def model(self) -> DeepFM:
        """The model, a fresh one each time."""
        return DeepFM.from_state(self.config, ModelShape.of(load_spec(SPEC_NAME)), self.state)


def train_base(kind: BaseKind) -> TrainedBase:
    """Train on the live ads only, every label known."""
    world = World(WorldConfig(seed=kind.seed, ctr=kind.ctr))
    world.click_shift = world.shift_to(kind.ctr * kind.ctr_factor)
    click = Head(CLICK_HEAD, start_p=kind.ctr * kind.ctr_factor)  # as base training puts it in
    conversion = Head(CONVERSION_HEAD, given=CLICK_HEAD, start_p=world.config.cvr)
    heads = (click, conversion) if kind.conversions else (click,)
    model = DeepFM(DeepFMConfig(heads=heads, seed=kind.seed), ModelShape.of(world.spec))
    chunks = round(_BASE_CLICKS / (kind.ctr * kind.ctr_factor) / (_CHUNK_REQUESTS * world.config.slots))
    for chunk in range(chunks):
        _learn(model, world, np.random.default_rng([kind.seed, 3, chunk]))
    return TrainedBase(model.config, model.state())


def _learn(model: DeepFM, world: World, rng: np.random.Generator) -> None:
    """Learn one chunk of draws in random order, all labels known."""
    requests = world.requests(rng, _CHUNK_REQUESTS, world.config.slots)
    true, buys = world.click_probability(requests).ravel(), world.conversion_probability(requests).ravel()
    reactions = world.react(rng, true, buys)
    ids = world.encoded(requests, 1, np.zeros(len(requests.user), np.int64))
    rows = Rows(
        np.concatenate((ids.request_ids[ids.row_request], ids.ad_ids), axis=1),
        np.zeros((len(true), world.spec.dense_inputs), np.float32),
    )
    terms = _terms(len(true), reactions.clicked, reactions.converted, len(model.heads))
    order = rng.permutation(len(true))
    for start in range(0, len(order), _BATCH_ROWS):
        batch = order[start : start + _BATCH_ROWS]
        model.learn_terms(Rows(rows.ids[batch], rows.dense[batch]), terms.take(batch))


def _terms(displays: int, clicked: NDArray[np.intp], converted: NDArray[np.intp], heads: int) -> Terms:
    """Every display is exposed to a click, every click to a conversion."""
    exposure, event = np.zeros((2, displays, 2), np.float32)
    exposure[:, 0] = 1
    event[clicked, 0] = exposure[clicked, 1] = 1
    event[converted, 1] = 1
    return Terms(exposure, event) if heads == 2 else Terms(exposure[:, 0], event[:, 0])
