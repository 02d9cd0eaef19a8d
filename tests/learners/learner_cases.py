"""Small registered learners, and batches that they can learn something from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFMConfig
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.models.boosting import BoostingConfig
from learners.models.ftrl import FtrlConfig
from learners.models.networks import NetworkConfig
from learners.models.registry import REGISTRY
from learners.models.river import RiverConfig
from learners.models.stack import StackConfig
from learners.models.trees import TreesConfig
from learners.protocol.learner import Learner, State
from learners.table.table import TableConfig

DAY_MS = 86_400_000
SHAPE = ModelShape(
    spec_name="toy",
    spec_hash="0123456789abcdef",
    id_columns=7,
    embedded=(0, 1, 3, 4),
    names=("user", "tab", "ad", "author"),
    dense=3,
    history=(5, 6),
    target=3,
)
_RATES: dict[str, Any] = {"vector_rate": 0.05, "weight_rate": 0.05, "dense_rate": 0.01}


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a learner is tested.

    config : small. bounded : the same with its memory bounded tightly.
    reseeded : the same with another seed; None where nothing is drawn.
    any_order : a batch is one step on the sum of its gradients, so its rows' order does not matter.
    weight_repeats : weight 2 is the row twice. zero_is_absent : a row of weight 0 is no row, bit for bit.
    """

    config: Any
    bounded: Any
    reseeded: Any = None
    any_order: bool = True
    weight_repeats: bool = True
    zero_is_absent: bool = True
    most_bytes: int = 0  # of a bounded state that grows on until then


def _network(**settings: Any) -> Case:
    config = NetworkConfig(dim=4, hidden=(8, 6), attention=4, table=TableConfig(init_scale=0.1), **_RATES, **settings)
    seeded, bounded = TableConfig(init_scale=0.1, seed=1), TableConfig(init_scale=0.1, max_rows=40)
    return Case(config=config, bounded=replace(config, table=bounded), reseeded=replace(config, table=seeded))


_FTRL = FtrlConfig(table_rows=256)
_TREES = TreesConfig(
    boosting=BoostingConfig(forests=2, trees=8, leaves=5, smallest_leaf=5, rate=0.3, tree_share=0.8, node_share=1.0),
    buffer_rows=300,
    first_fit_rows=60,
)
_DEEPFM = DeepFMConfig(dim=4, hidden=(8, 6), init_scale=0.1, **_RATES)
_STACK = StackConfig(trees=_TREES, deepfm=_DEEPFM)


def _river(kind: Any, *, seeded: bool = False) -> Case:
    config = RiverConfig(kind=kind, buckets=128, trees_mib=0.2, trees=2, dim=3)
    return Case(
        config=config,
        bounded=replace(config, trees_mib=0.05),
        reseeded=replace(config, seed=1) if seeded else None,
        most_bytes=3 * 2**20 // 20,  # thrice what river's own estimate is bounded to: a state is more than its leaves
        any_order=False,  # row after row
        weight_repeats=False,  # the second time is a second step
    )


CASES: dict[str, Case] = {
    # The dense gradient of DeepFM is the mean over the rows of a batch: their number matters beside their weights.
    "deepfm": Case(
        config=_DEEPFM,
        bounded=replace(_DEEPFM, max_rows=40),
        reseeded=replace(_DEEPFM, seed=1),
        weight_repeats=False,
        zero_is_absent=False,
    ),
    "fm": _network(kind="fm"),
    "wide_deep": _network(kind="wide_deep"),
    "dcn_v2": _network(kind="dcn_v2", cross_rank=3),
    "din": _network(kind="din"),
    "ftrl": Case(config=_FTRL, bounded=_FTRL, any_order=False, weight_repeats=False),  # row after row
    "ftrl_ids": Case(config=replace(_FTRL, dense=False), bounded=_FTRL, any_order=False, weight_repeats=False),
    "trees": Case(config=_TREES, bounded=_TREES),
    "stack": Case(
        config=_STACK,
        bounded=replace(_STACK, deepfm=replace(_DEEPFM, max_rows=40)),
        reseeded=replace(_STACK, deepfm=replace(_DEEPFM, seed=1)),
        weight_repeats=False,  # as DeepFM
        zero_is_absent=False,
    ),
    "river_logistic_ftrl": _river("logistic_ftrl"),
    "river_ad_predictor": _river("ad_predictor"),
    "river_fm": _river("fm", seeded=True),
    "river_hoeffding_adaptive_tree": _river("hoeffding_adaptive_tree"),
    "river_adaptive_random_forest": _river("adaptive_random_forest", seeded=True),
}


def fresh(name: str, config: Any = None) -> Learner:
    """A small learner that has learned nothing."""
    return REGISTRY[name].make(SHAPE, CASES[name].config if config is None else config)


def batch(generator: np.random.Generator, rows: int = 24, first_id: int = 0) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows with duplicate and some missing ids; the labels depend on ids and on a dense input."""
    values = generator.integers(0, 8, (rows, SHAPE.id_columns)).astype(np.uint64)
    ids = (values + np.uint64(first_id)) * np.uint64(0x9E3779B97F4A7C15) * (values != 0)
    dense = generator.standard_normal((rows, SHAPE.dense)).astype(np.float32)
    return Rows(ids, dense), (values[:, 0] > 4) | (dense[:, 0] > 0.7)


def continued(learner: Learner, steps: int, seed: int) -> Learner:
    """The learner after some more batches, half a day apart."""
    generator = np.random.default_rng(seed)
    for step in range(steps):
        learner.advance(seed * 1000 * DAY_MS + step * DAY_MS // 2)
        learner.learn_many(*batch(generator))
    return learner


@lru_cache
def _learned_state(name: str) -> State:
    return continued(fresh(name), 12, seed=0).state()


def learned(name: str) -> Learner:
    """A learner after twelve batches, of its own: each call makes another one."""
    return REGISTRY[name].from_state(SHAPE, _learned_state(name), CASES[name].config)


def same_state(left: State, right: State) -> bool:
    """Whether two states are bit-equal."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]) for name in left
    )


def size_of(state: State) -> int:
    """Bytes of a state."""
    return sum(array.nbytes for array in state.values())
