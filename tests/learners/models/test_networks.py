"""The networks against their equations in plain loops, and a whole learning step against a slow one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.deepfm.model import DivergenceError
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.models.network_learner import NetworkLearner
from learners.models.networks import NETWORKS, Kind, NetworkConfig
from learners.table.table import TableConfig
from tests.learners.deepfm_reference import root_of_rows
from tests.learners.learner_cases import SHAPE, batch

KINDS: list[Kind] = list(NETWORKS)
CONFIG = NetworkConfig(
    kind="fm",
    dim=3,
    hidden=(5, 4),
    attention=4,
    vector_rate=0.05,
    weight_rate=0.08,
    dense_rate=0.01,
    vector_beta=1e-2,
    weight_beta=3e-2,
    full_batch_rows=20,
    table=TableConfig(init_scale=0.5),
)
Arrays = dict[str, NDArray[Any]]
every = pytest.mark.parametrize("kind", KINDS)


def learned(kind: Kind, **settings_: Any) -> NetworkLearner:
    """A small network after a few batches."""
    learner, generator = NetworkLearner(replace(CONFIG, kind=kind, **settings_), SHAPE), np.random.default_rng(0)
    for _ in range(5):
        learner.learn_many(*batch(generator))
    return learner


def layers(value: Arrays, prefix: str, x: NDArray[Any]) -> NDArray[Any]:
    """An MLP of ReLU layers: every other module of a Sequential is linear."""
    names = [name for name in value if name.startswith(prefix) and name.endswith("weight")]
    for at, name in enumerate(names):
        x = value[name] @ x + value[name.replace("weight", "bias")]
        x = np.maximum(x, 0) if at < len(names) - 1 else x
    return x


def deep_part(kind: Kind, value: Arrays, vectors: NDArray[Any], history: list[NDArray[Any]], dense: Any) -> float:
    """What a network adds to the first order for one row; ``vectors`` (E, D), ``history`` of present ads."""
    x = np.concatenate((vectors.ravel(), dense))
    if kind == "fm":
        return float(sum(vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)))
    if kind == "wide_deep":
        return float(layers(value, "deep.", x)[0])
    if kind == "din":
        target, interest = vectors[SHAPE.embedded.index(3)], np.zeros(vectors.shape[1])
        for ad in history:
            weight = layers(value, "weigh.", np.concatenate((ad, target, ad - target, ad * target)))[0]
            interest = interest + weight * ad
        return float(layers(value, "deep.", np.concatenate((x, interest)))[0])
    crossed = x
    for at in range(2):
        if f"crosses.{at}.weight" in value:
            crossed = x * (value[f"crosses.{at}.weight"] @ crossed + value[f"crosses.{at}.bias"]) + crossed
        else:
            low = value[f"crosses.{at}.1.weight"] @ (value[f"crosses.{at}.0.weight"] @ crossed)
            crossed = x * (low + value[f"crosses.{at}.1.bias"]) + crossed
    deep = np.maximum(layers(value, "deep.", x), 0)
    return float(value["out.weight"][0] @ np.concatenate((crossed, deep)) + value["out.bias"][0])


def expected_logit(learner: NetworkLearner, rows: Rows, row: int) -> float:
    """One row's logit by the paper's equations, in float64."""
    value = {name: array.astype(np.float64) for name, array in learner.dense.arrays().items()}
    keys = rows.ids[row : row + 1, [*SHAPE.embedded, *SHAPE.history]]
    if not NETWORKS[learner.config.kind].reads_history:
        keys = keys[:, : len(SHAPE.embedded)]
    looked = learner.table.gather(learner.table.find(keys)[0]).astype(np.float64)
    e = len(SHAPE.embedded)
    history = [looked[at, :-1] for at in range(e, keys.shape[1]) if keys[0, at]]
    dense = rows.dense[row].astype(np.float64)
    linear = "wide" if learner.config.kind == "wide_deep" else "linear"
    first = looked[:e, -1].sum() + value[f"{linear}.weight"] @ dense + value[f"{linear}.bias"][0]
    return float(first + deep_part(learner.config.kind, value, looked[:e, :-1], history, dense))


@every
@pytest.mark.parametrize("rank", [0, 2])
def test_logits_are_those_of_the_paper(kind: Kind, rank: int) -> None:
    """Row by row in plain loops, with missing and unseen ids and missing history."""
    learner = learned(kind, cross_rank=rank)
    rows, _ = batch(np.random.default_rng(1), 30)
    strange, _ = batch(np.random.default_rng(2), 10, first_id=99)
    for each in (rows, strange):
        expected = [expected_logit(learner, each, row) for row in range(len(each.ids))]
        np.testing.assert_allclose(learner.predict_many(each), expected, rtol=1e-4, atol=1e-5)


class Slow:
    """A network with one tensor for each id, autograd through a Python loop, torch.optim.Adam and Adagrad by hand."""

    def __init__(self, learner: NetworkLearner) -> None:
        self.of = learner
        self.rows: dict[int, torch.Tensor] = {}
        self.accumulators: dict[int, NDArray[Any]] = {}
        self.steps_rows: list[float] = []
        self.adam = torch.optim.Adam(learner.network.parameters(), lr=learner.config.dense_rate)

    def row(self, key: int, start: NDArray[np.float32]) -> torch.Tensor:
        """The row of an id; 0 is a constant."""
        if key not in self.rows:
            self.rows[key] = torch.tensor(start, requires_grad=key != 0)
            self.accumulators[key] = np.zeros(2)
        return self.rows[key]

    def learn(self, rows: Rows, terms: Terms, starts: Arrays) -> None:
        """One step; ``starts["values"]`` (B, E + T, D + 1) holds what new ids start from."""
        keys = rows.ids[:, self.of.columns]
        looked = torch.stack(
            [
                torch.stack([self.row(int(key), starts["values"][i, j]) for j, key in enumerate(line)])
                for i, line in enumerate(keys)
            ]
        )
        self.adam.zero_grad(set_to_none=False)
        for row in self.rows.values():
            row.grad = None
        logits = self.of.network(self.of.gathered(looked, keys, rows.dense))
        exposure, event = map(torch.from_numpy, terms)
        (exposure * torch.nn.functional.softplus(logits) - event * logits).sum().backward()
        for parameter in self.of.network.parameters():
            assert parameter.grad is not None
            parameter.grad /= self.of.config.full_batch_rows
        factor = root_of_rows(self.steps_rows, float(np.maximum(*terms).sum()), self.of.config.full_batch_rows)
        self.adam.param_groups[0]["lr"] = self.of.config.dense_rate * factor
        self.adam.step()
        for key, row in self.rows.items():
            if row.grad is not None:
                self._adagrad(row, row.grad.numpy().astype(np.float64), self.accumulators[key])

    def _adagrad(self, row: torch.Tensor, gradient: NDArray[Any], accumulators: NDArray[Any]) -> None:
        config = self.of.config
        accumulators += (gradient[:-1] ** 2).mean(), gradient[-1] ** 2
        betas = np.array([config.vector_beta, config.weight_beta])
        steps = np.array([config.vector_rate, config.weight_rate]) / np.sqrt(betas + accumulators)
        with torch.no_grad():
            row[:-1] -= torch.from_numpy(steps[0] * gradient[:-1])
            row[-1] -= steps[1] * gradient[-1]


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 3))
def test_whole_steps_equal_the_slow_ones(kind: Kind, seed: int, steps: int) -> None:
    """Duplicates within a batch and over history count once with their sum; missing ids learn nothing."""
    config = replace(CONFIG, kind=kind)
    fast, twin = NetworkLearner(config, SHAPE), NetworkLearner(config, SHAPE)
    slow, generator = Slow(twin), np.random.default_rng(seed)
    for _ in range(steps):
        rows, _ = batch(generator, 12)
        terms = Terms(*(generator.random((2, 12)) * (generator.random((2, 12)) < 0.7)).astype(np.float32))
        terms.exposure[0] = 1  # a batch without any weight is no step
        keys = rows.ids[:, twin.columns]
        lookup = twin.table.admit(keys)
        starts = np.concatenate((twin.table.gather(lookup.unique), np.zeros((1, 4), np.float32)))[lookup.inverse]
        fast.learn_terms(rows, terms)
        slow.learn(rows, terms, {"values": starts})
    found = fast.table.gather(fast.table.find(keys).reshape(-1)).reshape(*keys.shape, -1)
    for i, j in np.argwhere(keys != 0):
        expected = slow.rows[int(keys[i, j])].detach().numpy()
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-2, atol=2e-3)
    for name, parameter in twin.network.named_parameters():
        np.testing.assert_allclose(fast.dense.value[name], parameter.detach(), rtol=1e-2, atol=2e-3)


def test_din_answers_to_recent_ads_and_the_others_do_not() -> None:
    """Only a network with attention reads the history columns; an empty history is an interest of zero."""
    rows, _ = batch(np.random.default_rng(1), 20)
    ids = rows.ids.copy()
    ids[:, list(SHAPE.history)] = ids[:, list(SHAPE.history)][::-1]
    for kind in KINDS:
        learner = learned(kind)
        same = np.array_equal(learner.predict_many(rows), learner.predict_many(Rows(ids, rows.dense)))
        assert same == (kind != "din")


def test_a_recent_ad_is_the_row_of_the_ad() -> None:
    """An ad's id has one row, whether it is shown or remembered."""
    learner = NetworkLearner(replace(CONFIG, kind="din"), SHAPE)
    ids = np.zeros((2, SHAPE.id_columns), np.uint64)
    ids[0, 3], ids[1, SHAPE.history[0]] = 7, 7
    learner.learn_many(Rows(ids, np.zeros((2, 3), np.float32)), np.array([True, False]))
    assert len(learner.table) == 1 + len(SHAPE.embedded) + len(SHAPE.history)


@every
def test_a_gradient_that_is_not_finite_changes_no_weight(kind: Kind) -> None:
    """It is a DivergenceError that names the rates; what was predicted is still predicted."""
    learner = learned(kind)
    rows, labels = batch(np.random.default_rng(3))
    before = learner.predict_many(rows)
    adam = learner.state()["adam.second"]
    huge = Rows(rows.ids, np.full_like(rows.dense, 1e30))
    with pytest.raises(DivergenceError, match="lower vector_rate"):
        learner.learn_many(huge, labels)
    assert np.array_equal(learner.predict_many(rows), before)
    assert np.array_equal(learner.state()["adam.second"], adam)


def test_ids_expire_with_time() -> None:
    """What was not seen for longer than the table keeps it has no row any more."""
    learner = learned("fm", table=TableConfig(expire_after_s=3600.0))
    held = len(learner.table)
    learner.advance(3_600_000 * 2)
    assert len(learner.table) == len(SHAPE.embedded) < held


def test_unadmitted_ids_share_their_columns_default_row() -> None:
    """With two sightings to be admitted, an id seen once answers as any other unknown one."""
    learner = learned("fm", table=TableConfig(admit_after=2))
    one, _ = batch(np.random.default_rng(4), 8, first_id=1000)
    other = Rows(np.where(one.ids, one.ids + np.uint64(10**12), 0).astype(np.uint64), one.dense)
    assert np.array_equal(learner.predict_many(one), learner.predict_many(other))


def test_a_state_of_another_network_is_refused() -> None:
    """The dense weights do not fit, and the error says so."""
    state = learned("wide_deep").state()
    with pytest.raises(ValueError, match="do not fit"):
        NetworkLearner.from_state(replace(CONFIG, kind="dcn_v2"), SHAPE, state)


@pytest.mark.parametrize("setting", [{"dim": 0}, {"hidden": (4, 0)}, {"cross_layers": 0}, {"dense_rate": float("nan")}])
def test_settings_that_cannot_learn_are_refused(setting: dict[str, Any]) -> None:
    """The message names the value and the consequence."""
    with pytest.raises(ValueError, match=r"must be positive"):
        replace(CONFIG, **setting)


@every
def test_a_spec_without_dense_inputs_is_learned(kind: Kind) -> None:
    """Ids alone are enough."""
    shape = replace(SHAPE, dense=0)
    learner = NetworkLearner(replace(CONFIG, kind=kind), shape)
    rows, labels = batch(np.random.default_rng(1))
    bare = Rows(rows.ids, rows.dense[:, :0])
    learner.learn_many(bare, labels)
    assert np.isfinite(learner.predict_many(bare)).all()


def test_removed_ids_do_not_pile_up() -> None:
    """Nobody takes the removed keys of such a learner away, so it forgets them itself."""
    learner, generator = learned("fm", table=TableConfig(max_rows=30)), np.random.default_rng(0)
    most = 0
    for step in range(200):
        learner.learn_many(*batch(generator, 8, first_id=10 * step))
        most = max(most, len(learner.state()["table.removed"]))
    assert 0 < most < 64 * 8 * 4
