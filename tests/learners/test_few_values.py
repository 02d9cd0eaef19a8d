"""Columns of few values against sets of ids, and the model that looks them up against one that does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners import look_ups
from learners.deepfm import DeepFM
from learners.few_values import FewValues, few_values
from learners.heads import Head
from learners.network import CHUNK_ROWS
from learners.rows import Rows
from learners.terms import Terms
from tests.learners.batches import CONFIG, batch, model
from tests.learners.test_deepfm import CHAIN, check_gradients, with_terms

MANY_IDS = 5000
LEAST_ROWS = 512  # that pay, with the narrow layers of these tests
ROWS = (LEAST_ROWS, 2 * CHUNK_ROWS + 99)


@pytest.fixture(autouse=True)
def few_units_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 512 rows and more are searched for few values though the first layers are narrow."""
    monkeypatch.setattr(look_ups, "LEAST_OUTPUTS", LEAST_ROWS * 5)


def mixed(generator: np.random.Generator, rows: int, heads: int, many: tuple[int, ...] = (0, 3)) -> tuple[Rows, Terms]:
    """A batch with many ids in some columns and few, missing ones among them, in the others."""
    x, terms = with_terms(generator, rows, heads)
    for column in many:
        x.ids[:, column] = generator.integers(0, MANY_IDS, rows)
    return x, terms


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no column has few values."""
    monkeypatch.setattr(look_ups, "few_values", lambda inverse, places: None)


@given(st.integers(0, 2**32), st.lists(st.sampled_from([1, 3, 60, 90, 2000]), min_size=1, max_size=12))
@settings(deadline=None, max_examples=30)
def test_few_values_are_those_of_a_set(seed: int, sizes: list[int]) -> None:
    """Slots lead back to the places, each value has one slot, groups list its rows, and the padding leads nowhere."""
    generator = np.random.default_rng(seed)
    rows, places = LEAST_ROWS + seed % 50, max(sizes)
    inverse = np.stack([generator.integers(-1, size, rows) for size in sizes], axis=1).astype(np.int32)
    few = few_values(inverse, places)
    expected = [c for c in range(len(sizes)) if len(set(inverse[:, c].tolist())) <= rows // 8]
    if few is None:
        assert not expected
        return
    assert few.columns.tolist() == expected
    assert sorted([*few.columns.tolist(), *few.rest.tolist()]) == list(range(len(sizes)))
    padded = np.append(few.places, -9)
    assert np.array_equal(padded[few.slots[:, : len(expected)]], inverse[:, expected])
    assert few.slots.shape[1] % 8 == 0
    assert (padded[few.slots[:, len(expected) :]] == -9).all()
    for column, (start, stop) in zip(expected, zip(few.starts, few.starts[1:], strict=False), strict=True):
        assert sorted(few.places[start:stop].tolist()) == sorted(set(inverse[:, column].tolist()))
    starts, members = few.groups()
    for slot in range(len(few.places)):
        of_slot = np.flatnonzero((few.slots == slot).any(1))
        assert members[starts[slot] : starts[slot + 1]].tolist() == of_slot.tolist()


@pytest.mark.parametrize(("rows", "searched"), [(319, False), (320, True)])
def test_a_batch_that_is_too_small_is_not_searched(monkeypatch: pytest.MonkeyPatch, rows: int, searched: bool) -> None:
    """Below ``LEAST_OUTPUTS`` rows x units of the first layer, here 8, every column goes through the GEMM."""
    calls: list[int] = []

    def seen(inverse: NDArray[np.int32], places: int) -> FewValues | None:
        calls.append(len(inverse))
        return few_values(inverse, places)

    monkeypatch.setattr(look_ups, "few_values", seen)
    model().learn_terms(*mixed(np.random.default_rng(0), rows, 1))
    assert calls == [rows] * searched


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("heads", [CHAIN[:1], CHAIN[:2]])
@pytest.mark.parametrize("many", [(), (0, 3), (4,), (0, 1, 3, 4)])
def test_gradients_of_mixed_columns_equal_autograd(
    rows: int, threads: int, heads: tuple[Head, ...], many: tuple[int, ...]
) -> None:
    """Whichever columns are looked up, of one head or two."""
    fm = model(dataclasses.replace(CONFIG, heads=heads, threads=threads))
    check_gradients(fm, *mixed(np.random.default_rng(rows), rows, len(heads), many))


@pytest.mark.parametrize("heads", [CHAIN[:2], CHAIN])  # the second has a head without hidden layers
def test_learning_by_few_values_is_learning(monkeypatch: pytest.MonkeyPatch, heads: tuple[Head, ...]) -> None:
    """Weights and predictions after some steps are, but for rounding, those of a model that has no such columns."""

    def learned() -> DeepFM:
        generator = np.random.default_rng(0)
        fm = model(dataclasses.replace(CONFIG, heads=heads, vector_beta=1e-3))
        for rows in (LEAST_ROWS, 700, 30, 1300):
            fm.learn_terms(*mixed(generator, rows, len(heads)))
        return fm

    by_value = learned()
    plainly(monkeypatch)
    by_row = learned()
    probe, _ = batch(np.random.default_rng(1), 200)
    np.testing.assert_allclose(by_value.predict_heads(probe), by_row.predict_heads(probe), rtol=1e-2, atol=2e-3)
    assert (by_value.weights_sha256() == by_row.weights_sha256()) == (len(heads) == len(CHAIN))


@pytest.mark.parametrize("heads", [CHAIN[:1], CHAIN[:2]])
def test_the_bits_do_not_depend_on_the_number_of_threads(heads: tuple[Head, ...]) -> None:
    """One, two and three threads end with the same weights when some columns are looked up, whatever the batches."""
    hashes = set()
    for threads in (1, 2, 3):
        generator = np.random.default_rng(1)
        fm = model(dataclasses.replace(CONFIG, threads=threads, heads=heads))
        for rows in (2 * CHUNK_ROWS + 99, 30, 4 * CHUNK_ROWS, LEAST_ROWS):
            fm.learn_terms(*mixed(generator, rows, len(heads)))
        hashes.add(fm.weights_sha256())
    assert len(hashes) == 1


def test_gradients_of_parts_add_up_to_those_of_the_batch() -> None:
    """Processes that share a batch find the few values of their own parts, or none in a small part."""
    x, terms = mixed(np.random.default_rng(0), 1300, 1)
    whole = model().gradients(x, terms)
    parts = [model().gradients(x, terms, part) for part in (slice(0, 600), slice(600, 1200), slice(1200, None))]
    np.testing.assert_allclose(sum(part.table for part in parts), whole.table, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(sum(part.dense for part in parts), whole.dense, rtol=1e-3, atol=1e-3)


def test_a_prediction_between_two_batches_is_the_usual_one() -> None:
    """Predicting does not look up: its bits are those of a model with the same weights that never learned."""
    fm = model()
    fm.learn_terms(*mixed(np.random.default_rng(0), 700, 1))
    x = mixed(np.random.default_rng(1), 700, 1)[0]
    other = DeepFM.from_state(fm.config, fm.shape, fm.state())
    assert np.array_equal(fm.predict_many(x), other.predict_many(x))
