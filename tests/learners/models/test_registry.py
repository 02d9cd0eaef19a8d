"""One contract for every registered learner."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.models.registry import REGISTRY, registered
from learners.protocol.learner import Learner, State
from tests.learners.learner_cases import (
    CASES,
    DAY_MS,
    SHAPE,
    batch,
    continued,
    fresh,
    learned,
    same_state,
    size_of,
)

NAMES = sorted(REGISTRY)
every = pytest.mark.parametrize("name", NAMES)
additive = pytest.mark.parametrize("name", [name for name in NAMES if REGISTRY[name].additive])


def probe(rows: int = 40) -> Rows:
    """Rows to ask about, the same ones each time."""
    return batch(np.random.default_rng(77), rows)[0]


def copied(rows: Rows) -> Rows:
    """The same rows in other memory."""
    return Rows(rows.ids.copy(), rows.dense.copy())


def equal(left: Learner, right: Learner) -> bool:
    """Whether two learners answer bit-equal."""
    return np.array_equal(left.predict_many(probe()), right.predict_many(probe()))


def test_every_member_has_a_case_and_a_description() -> None:
    """A learner that is registered is in this suite."""
    assert sorted(CASES) == NAMES
    assert all(REGISTRY[name].description for name in NAMES)
    with pytest.raises(ValueError, match=r"unknown learner 'gbm'.*deepfm, din"):
        registered("gbm")


@every
def test_it_predicts_before_any_learning(name: str) -> None:
    """A fresh learner of the registered config gives finite float32 logits, and none for no rows."""
    rows = probe()
    for learner in (REGISTRY[name].make(SHAPE), fresh(name)):
        logits = learner.predict_many(rows)
        assert logits.dtype == np.float32
        assert logits.shape == (40,)
        assert np.isfinite(logits).all()
        assert learner.predict_many(Rows(rows.ids[:0], rows.dense[:0])).shape == (0,)


@every
def test_it_learns(name: str) -> None:
    """After some batches clicks score above non-clicks, on rows that it has not seen."""
    learner = continued(learned(name), 60, seed=1)
    rows, labels = batch(np.random.default_rng(5), 400)
    logits = learner.predict_many(rows)
    assert logits[labels].mean() > logits[~labels].mean() + 0.1


@every
def test_predicting_changes_nothing(name: str) -> None:
    """The state after predictions, of unseen ids among others, is the state before."""
    learner = learned(name)
    before = learner.state()
    learner.predict_many(probe())
    learner.predict_many(batch(np.random.default_rng(1), 30, first_id=1000)[0])
    assert same_state(before, learner.state())


@every
def test_inputs_are_left_alone_and_forgotten(name: str) -> None:
    """No input is written to, and overwriting the arrays after the call changes nothing."""
    learner, other = learned(name), learned(name)
    rows, labels = batch(np.random.default_rng(3))
    weight = np.ones(len(labels), np.float32)
    given = copied(rows), labels.copy(), weight.copy()
    learner.predict_many(given[0])
    learner.learn_many(*given)
    kept: list[NDArray[Any]] = [*rows, labels, weight]
    seen: list[NDArray[Any]] = [*given[0], *given[1:]]
    assert all(np.array_equal(a, b) for a, b in zip(kept, seen, strict=True))
    for array in seen:
        array[...] = 0
    other.learn_many(rows, labels, weight)
    for each in (learner, other):
        each.advance(900 * DAY_MS)
    assert equal(learner, other)


@every
def test_outputs_are_copies(name: str) -> None:
    """Overwriting predictions and states does not reach the learner."""
    learner = learned(name)
    expected = learner.predict_many(probe()).copy()
    learner.predict_many(probe())[...] = 9
    for array in learner.state().values():
        array[...] = 1
    assert np.array_equal(learner.predict_many(probe()), expected)


@every
def test_a_state_continues_bit_equal(name: str) -> None:
    """Through a state and back, then more batches and refits: the same predictions as without."""
    learner = learned(name)
    restored = REGISTRY[name].from_state(SHAPE, learner.state(), CASES[name].config)
    assert equal(learner, restored)
    assert equal(continued(learner, 8, seed=2), continued(restored, 8, seed=2))
    if not name.startswith("river"):  # equal pickles can differ in their bytes
        assert same_state(learner.state(), restored.state())


@every
def test_a_fresh_state_continues_too(name: str) -> None:
    """A learner that has learned nothing has a state as well."""
    restored = REGISTRY[name].from_state(SHAPE, fresh(name).state(), CASES[name].config)
    assert equal(continued(fresh(name), 6, seed=2), continued(restored, 6, seed=2))


@every
def test_a_clone_is_independent(name: str) -> None:
    """What the clone learns, the original does not."""
    learner = learned(name)
    before = learner.predict_many(probe())
    clone = REGISTRY[name].from_state(SHAPE, learner.state(), CASES[name].config)
    continued(clone, 5, seed=3)
    assert np.array_equal(learner.predict_many(probe()), before)
    assert not equal(learner, clone)


@every
def test_the_same_calls_give_the_same_bits(name: str) -> None:
    """Whatever numpy's and torch's global generators are at, and leaving these alone."""
    np.random.seed(1)
    torch.manual_seed(1)
    numbers, tensors = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    one = continued(fresh(name), 8, seed=4)
    assert np.array_equal(np.random.get_state()[1], numbers)  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), tensors)
    np.random.seed(2)
    torch.manual_seed(2)
    assert equal(one, continued(fresh(name), 8, seed=4))


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].reseeded])
def test_another_seed_is_another_learner(name: str) -> None:
    """Where something is drawn, it is drawn from the config's seed."""
    one, other = continued(fresh(name), 8, seed=4), continued(fresh(name, CASES[name].reseeded), 8, seed=4)
    assert not equal(one, other)


@every
def test_memory_is_bounded(name: str) -> None:
    """Ever new ids make the state no larger, once its bound is reached."""
    learner, generator, sizes = fresh(name, CASES[name].bounded), np.random.default_rng(6), []
    for step in range(256):
        learner.advance(step * DAY_MS // 16)
        learner.learn_many(*batch(generator, 12, first_id=8 * step))
        if step in (127, 255):
            _publish(learner)
            sizes.append(size_of(learner.state()))
    assert sizes[1] <= max(sizes[0] * 1.25, CASES[name].most_bytes)


def _publish(learner: Any) -> None:
    """What a DeepFM's owner does now and then: take the changed and removed keys away."""
    model = getattr(learner, "model", learner)
    if hasattr(model, "table"):
        model.table.take_changed()


@every
def test_going_back_in_time_changes_nothing(name: str) -> None:
    """Event time is monotone; an earlier time is an echo."""
    learner = learned(name)
    learner.advance(100 * DAY_MS)
    before = learner.state()
    learner.advance(50 * DAY_MS)
    assert same_state(before, learner.state())


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].any_order])
def test_the_order_of_rows_within_a_batch_does_not_matter(name: str) -> None:
    """One step on a sum. Exempt: learners that go row after row (FTRL-proximal, river)."""
    one, other = learned(name), learned(name)
    rows, labels = batch(np.random.default_rng(8))
    order = np.random.default_rng(9).permutation(len(labels))
    one.learn_many(rows, labels)
    other.learn_many(Rows(rows.ids[order], rows.dense[order]), labels[order])
    np.testing.assert_allclose(one.predict_many(probe()), other.predict_many(probe()), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].weight_repeats])
def test_a_row_of_weight_two_is_the_row_twice(name: str) -> None:
    """Exempt: row after row (the second copy meets what the first taught), and DeepFM's mean over rows."""
    one, other = learned(name), learned(name)
    rows, labels = batch(np.random.default_rng(8))
    weight = np.ones(len(labels), np.float32)
    weight[[2, 5]] = 2
    twice = [*range(len(labels)), 2, 5]
    one.learn_many(rows, labels, weight)
    other.learn_many(Rows(rows.ids[twice], rows.dense[twice]), labels[twice])
    np.testing.assert_allclose(one.predict_many(probe()), other.predict_many(probe()), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].zero_is_absent])
def test_a_row_of_weight_zero_is_no_row(name: str) -> None:
    """Bit for bit, later refits included. Exempt: DeepFM, whose mean counts the row."""
    one, other = learned(name), learned(name)
    rows, labels = batch(np.random.default_rng(8))
    strange, _ = batch(np.random.default_rng(9), first_id=500)
    both = Rows(np.concatenate((rows.ids, strange.ids)), np.concatenate((rows.dense, strange.dense)))
    weight = np.repeat(np.array([1, 0], np.float32), len(labels))
    one.learn_many(both, np.concatenate((labels, labels)), weight)
    other.learn_many(rows, labels)
    assert equal(continued(one, 3, seed=2), continued(other, 3, seed=2))


@every
def test_a_batch_of_weight_zero_teaches_nothing(name: str) -> None:
    """Predictions for known rows are finite and nearly as before (DeepFM's Adam moves on by its momentum)."""
    learner = learned(name)
    before = learner.predict_many(probe())
    rows, labels = batch(np.random.default_rng(8))
    learner.learn_many(rows, labels, np.zeros(len(labels), np.float32))
    if CASES[name].zero_is_absent:
        assert np.array_equal(learner.predict_many(probe()), before)
    np.testing.assert_allclose(learner.predict_many(probe()), before, atol=0.5)


@additive
def test_labelled_rows_are_their_terms(name: str) -> None:
    """``learn_many`` is ``learn_terms`` of `Terms.of_labels`, bit for bit."""
    one, other = learned(name), learned(name)
    rows, labels = batch(np.random.default_rng(8))
    weight = np.random.default_rng(9).random(len(labels)).astype(np.float32)
    one.learn_many(rows, labels, weight)
    other.learn_terms(rows, Terms.of_labels(labels, weight))  # type: ignore[attr-defined]
    assert same_state(one.state(), other.state())


@additive
def test_exposures_and_their_clicks_teach_the_click_rate(name: str) -> None:
    """Learned when they come, clicks a batch after their exposures: the mean p is the rate, and ids are told apart."""
    learner: Any = fresh(name)
    generator, owed = np.random.default_rng(3), None
    for _ in range(300):
        rows, labels = batch(generator, 48)
        clicks = Rows(rows.ids[labels], rows.dense[labels])
        come = clicks if owed is None else owed
        both = Rows(np.concatenate((rows.ids, come.ids)), np.concatenate((rows.dense, come.dense)))
        kind = np.repeat(np.array([EXPOSURE, CLICK], np.uint8), (len(labels), len(come.ids)))
        learner.learn_terms(both, Terms.of_kinds(kind, ("click",)))
        owed = clicks
    rows, labels = batch(np.random.default_rng(5), 2000)
    p = 1 / (1 + np.exp(-learner.predict_many(rows).astype(np.float64)))
    assert abs(p.mean() / labels.mean() - 1) < 0.1
    assert p[labels].mean() > p[~labels].mean() + 0.05


@additive
def test_bad_terms_are_refused_and_leave_the_learner_untouched(name: str) -> None:
    """NaN, negative weights, wrong lengths, no rows."""
    learner: Any = learned(name)
    before = learner.state()
    rows, _ = batch(np.random.default_rng(8))
    fine = np.ones(len(rows.ids), np.float32)
    for wrong in (np.full_like(fine, np.nan), -fine, fine[1:], np.ones((len(fine), 3), np.float32)):
        for terms in (Terms(fine, wrong), Terms(wrong, fine)):
            with pytest.raises(ValueError, match=r"exposure|event"):
                learner.learn_terms(rows, terms)
    with pytest.raises(ValueError, match="0 rows"):
        learner.learn_terms(Rows(rows.ids[:0], rows.dense[:0]), Terms(fine[:0], fine[:0]))
    with pytest.raises(ValueError, match="feature spec toy"):
        learner.learn_terms(Rows(rows.ids[:, 1:], rows.dense), Terms(fine, fine))
    assert same_state(before, learner.state())


def test_what_learns_by_gradients_learns_terms() -> None:
    """Trees, their stack and river's classifiers learn rows whose label is known."""
    apart = {name for name in NAMES if REGISTRY[name].additive}
    assert apart == {"deepfm", "fm", "wide_deep", "dcn_v2", "din", "ftrl", "ftrl_ids"}


@dataclasses.dataclass
class Given:
    """What a batch to learn from consists of, to be spoilt."""

    ids: Any
    dense: Any
    labels: Any
    weight: Any

    def set(self, name: str, place: Any, value: float) -> None:
        """Put a value into one of the arrays."""
        getattr(self, name)[place] = value

    def cut(self, name: str) -> None:
        """Leave the first row of one of the arrays out."""
        setattr(self, name, getattr(self, name)[1:])

    def empty(self) -> None:
        """Leave all rows out."""
        self.ids, self.dense, self.labels, self.weight = self.ids[:0], self.dense[:0], self.labels[:0], self.weight[:0]

    def narrow(self, name: str) -> None:
        """Leave the first column of one of the arrays out."""
        setattr(self, name, getattr(self, name)[:, 1:])


BAD: dict[str, Callable[[Given], None]] = {
    "dense nan": lambda given: given.set("dense", (3, 1), np.nan),
    "dense infinite": lambda given: given.set("dense", (0, 0), -np.inf),
    "label 2": lambda given: given.set("labels", 4, 2),
    "label nan": lambda given: given.set("labels", 4, np.nan),
    "no rows": lambda given: given.empty(),
    "narrow ids": lambda given: given.narrow("ids"),
    "narrow dense": lambda given: given.narrow("dense"),
    "fewer dense rows": lambda given: given.cut("dense"),
    "fewer labels": lambda given: given.cut("labels"),
    "fewer weights": lambda given: given.cut("weight"),
    "weight negative": lambda given: given.set("weight", 2, -1),
    "weight nan": lambda given: given.set("weight", 2, np.nan),
}


def _bad(what: str) -> tuple[Rows, Any, Any]:
    rows, labels = batch(np.random.default_rng(8))
    given = Given(rows.ids, rows.dense, labels.astype(np.float32), np.ones(len(labels), np.float32))
    BAD[what](given)
    return Rows(given.ids, given.dense), given.labels, given.weight


@every
def test_a_bad_batch_is_refused_and_leaves_the_learner_untouched(name: str) -> None:
    """NaN, labels outside {0, 1}, wrong widths and lengths, no rows: ValueError, and the state is as before."""
    learner = learned(name)
    before = learner.state()
    for what in BAD:
        with pytest.raises(ValueError, match=r"must|empty|0 rows"):
            learner.learn_many(*_bad(what))
        assert same_state(before, learner.state()), what


@every
def test_predicting_from_wrong_widths_is_refused(name: str) -> None:
    """The message names the widths and the feature spec."""
    for what in ("narrow ids", "narrow dense", "fewer dense rows"):
        with pytest.raises(ValueError, match="feature spec toy"):
            fresh(name).predict_many(_bad(what)[0])


@every
def test_large_inputs_leave_finite_logits_or_are_refused(name: str) -> None:
    """A dense input of 1e30 is learned or refused as divergence; it never makes the learner answer NaN."""
    learner = learned(name)
    rows, labels = batch(np.random.default_rng(8))
    rows.dense[0, 0] = 1e30
    with contextlib.suppress(ArithmeticError):
        learner.learn_many(rows, labels)
    assert np.isfinite(learner.predict_many(probe())).all()


@every
def test_a_foreign_state_is_refused(name: str) -> None:
    """A state without its arrays is an error, not a fresh learner."""
    foreign: State = {"other": np.zeros(3)}
    with pytest.raises(ValueError, match=r"without|do not fit|does not fit"):
        REGISTRY[name].from_state(SHAPE, foreign, CASES[name].config)


def test_din_needs_a_history() -> None:
    """A feature spec that logs no recent ads gives it nothing to attend to."""
    with pytest.raises(ValueError, match="logs no recent ads"):
        REGISTRY["din"].make(dataclasses.replace(SHAPE, history=()))
