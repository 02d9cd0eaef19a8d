"""DeepFM against torch autograd and torch.optim.Adam, and its promises of exactness."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.deepfm.delta import DeltaError
from learners.deepfm.model import DeepFM, DeepFMConfig, DivergenceError
from learners.deepfm.network import CHUNK_ROWS
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.nn.heads import Head
from tests.learners.batches import CONFIG, SHAPE, batch, learned, model
from tests.learners.deepfm_reference import EMBEDDED, Reference, torch_gradients

CHAIN = (
    Head("click"),
    Head("cart", given="click", hidden=(5,)),
    Head("purchase", given="cart", hidden=()),
    Head("like"),
)
HEADS = st.sampled_from([(Head("click"),), CHAIN[:2], CHAIN])
HIDDEN = st.sampled_from([(), (5,), (8, 6), (4, 4, 3)])


def with_terms(generator: np.random.Generator, rows: int, heads: int) -> tuple[Rows, Terms]:
    """A batch whose rows pay either term, both or none to each of the heads."""
    x, _ = batch(generator, rows)
    exposure, event = (generator.random((2, rows, heads)) * (generator.random((2, rows, heads)) < 0.6)).astype("f4")
    return x, Terms(exposure, event)


@given(st.integers(0, 2**32), st.integers(1, 20), HIDDEN, HEADS)
@settings(deadline=None, max_examples=40)
def test_gradients_equal_autograd(seed: int, rows: int, hidden: tuple[int, ...], heads: tuple[Head, ...]) -> None:
    """The written-out backward pass agrees with autograd for every parameter, table row and head."""
    fm = model(dataclasses.replace(CONFIG, hidden=hidden, heads=heads))
    check_gradients(fm, *with_terms(np.random.default_rng(seed), rows, len(heads)))


@pytest.mark.parametrize("rows", [CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS - 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_many_chunks_equal_autograd(rows: int, threads: int) -> None:
    """So they do when the batch is worked off in several pieces, by one thread or two."""
    fm = model(dataclasses.replace(CONFIG, heads=CHAIN[:2], threads=threads))
    check_gradients(fm, *with_terms(np.random.default_rng(rows), rows, 2))


def check_gradients(fm: DeepFM, x: Rows, terms: Terms) -> None:
    """``fm.gradients`` and autograd's, parameter by parameter."""
    found = fm.gradients(x, terms)
    values = fm.table.gather(found.lookup.unique)
    table, dense = torch_gradients(fm, values, found.lookup.inverse, x.dense, terms)
    np.testing.assert_allclose(found.table, table, rtol=1e-3, atol=2e-5)
    places = fm.dense.like()
    places.flat.numpy()[:] = found.dense
    assert dense.keys() == places.value.keys()
    for name, expected in dense.items():
        np.testing.assert_allclose(places.value[name].numpy(), expected, rtol=1e-3, atol=2e-5 * len(x.ids))


@given(st.integers(0, 2**32), st.integers(1, 4), HEADS)
@settings(deadline=None, max_examples=20)
def test_full_steps_equal_the_reference(seed: int, steps: int, heads: tuple[Head, ...]) -> None:
    """Logits after whole steps, Adagrad and Adam included, agree with the slow model's."""
    generator = np.random.default_rng(seed)
    fm = model(dataclasses.replace(CONFIG, vector_beta=1e-2, weight_beta=0.1, heads=heads))
    reference = Reference(fm)
    for _ in range(steps):
        x, terms = with_terms(generator, 16, len(heads))
        reference.learn(x, terms)  # the model learns the batch as well
    x, _ = batch(generator, 8)
    np.testing.assert_allclose(fm.predict_heads(x), reference.logits(x), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("config", [{}, {"heads": CHAIN[:2]}, {"batch_norm": True, "dropout": 0.3}])
def test_the_bits_do_not_depend_on_the_number_of_threads(config: dict[str, object]) -> None:
    """One, two and three threads end with the same weights and predict the same."""
    hashes, logits = set(), set()
    for threads in (1, 2, 3):
        generator = np.random.default_rng(1)
        fm = model(dataclasses.replace(CONFIG, threads=threads, **config))  # type: ignore[arg-type]
        for rows in (2 * CHUNK_ROWS + 99, 30, 4 * CHUNK_ROWS):
            fm.learn_terms(*with_terms(generator, rows, len(fm.heads)))
        hashes.add(fm.weights_sha256())
        logits.add(fm.predict_heads(batch(generator, 1500)[0]).tobytes())
    assert len(hashes) == len(logits) == 1


def test_gradients_of_parts_add_up_to_those_of_the_batch() -> None:
    """Two processes that share a batch admit the same ids and together get the whole gradient."""
    x, terms = with_terms(np.random.default_rng(0), 31, 1)
    fm = model()
    whole = fm.gradients(x, terms)
    whole = whole._replace(dense=whole.dense.copy())
    parts = [model().gradients(x, terms, part) for part in (slice(0, 12), slice(12, 31))]
    assert not fm.gradients(x, terms, slice(0, 0)).dense.any()
    for part in parts:
        assert np.array_equal(part.lookup.unique, whole.lookup.unique)
    np.testing.assert_allclose(parts[0].table + parts[1].table, whole.table, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts[0].dense + parts[1].dense, whole.dense, rtol=1e-4, atol=1e-5)


def test_learning_is_gradients_and_then_a_step() -> None:
    """The two halves do what ``learn_terms`` does, bit for bit; a rate factor of 0 moves no weight."""
    x, terms = with_terms(np.random.default_rng(0), 20, 1)
    whole, halves = learned(3), learned(3)
    whole.learn_terms(x, terms)
    halves.step(halves.gradients(x, terms), 20)
    assert whole.weights_sha256() == halves.weights_sha256()
    before = whole.predict_many(x)
    whole.learn_terms(x, terms, rate_factor=0)
    assert np.array_equal(whole.predict_many(x), before)


@pytest.mark.parametrize(
    ("full", "grows", "factor"),
    [(5, False, 1.0), (5, True, 2.0), (20, False, 1.0), (20, True, 1.0), (80, False, 0.5), (80, True, 0.5)],
)
def test_the_dense_rate_is_that_of_a_full_batch(full: int, grows: bool, factor: float) -> None:
    """With 20 of 80 rows the first step is half as long, with 20 of 5 at most twice; the moments are of sums."""
    fm = model(dataclasses.replace(CONFIG, full_batch_rows=full))
    x, terms = with_terms(np.random.default_rng(0), 20, 1)
    gradients = fm.gradients(x, terms)
    scaled, before = gradients.dense / full, fm.dense.flat.numpy().copy()
    fm.step(gradients, 20, rate_grows=grows)
    np.testing.assert_allclose(fm.state()["adam.first"], 0.1 * scaled, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(fm.state()["adam.second"], 0.001 * scaled**2, rtol=1e-3, atol=1e-12)
    moved = (before - fm.dense.flat.numpy())[np.abs(scaled) > 1e-4]
    np.testing.assert_allclose(np.abs(moved), CONFIG.dense_rate * factor, rtol=1e-3)


def test_small_batches_move_the_dense_weights_as_far_as_full_ones() -> None:
    """The same rows in batches of 4 and of 128: Adam divides the size of a gradient out, the rate makes up for it."""
    way = {}
    for rows in (4, 128):
        fm, generator = model(dataclasses.replace(CONFIG, dense_rate=1e-3)), np.random.default_rng(0)
        start = fm.dense.flat.numpy().copy()
        x, labels = batch(generator, 2560)
        for at in range(0, 2560, rows):
            fm.learn_many(Rows(x.ids[at : at + rows], x.dense[at : at + rows]), labels[at : at + rows])
        way[rows] = float(np.linalg.norm(fm.dense.flat.numpy() - start))
    assert 0.6 < way[4] / way[128] < 1.7


def test_an_older_state_goes_on_as_if_its_batches_had_been_full() -> None:
    """It lacks the mean rows of a step; nothing else changes."""
    state = learned(3).state()
    del state["adam.rows"]
    fm = DeepFM.from_state(CONFIG, SHAPE, state)
    kept = 1 - 0.999**3
    assert fm.state()["adam.rows"][0] == pytest.approx(CONFIG.full_batch_rows * kept)
    assert fm.weights_sha256() == learned(3).weights_sha256()


def test_one_weight_a_row_is_that_of_every_head() -> None:
    """Weights (B,) are those (B, H) with equal columns."""
    config = dataclasses.replace(CONFIG, heads=CHAIN)
    one, each = model(config), model(config)
    generator = np.random.default_rng(0)
    x, _ = batch(generator, 20)
    labels, weight = generator.random((20, len(CHAIN))) < 0.4, generator.random(20).astype(np.float32)
    one.learn_many(x, labels, weight)
    each.learn_many(x, labels, np.repeat(weight[:, None], len(CHAIN), axis=1))
    assert one.weights_sha256() == each.weights_sha256()


@given(st.integers(0, 2**32), HEADS)
@settings(deadline=None, max_examples=20)
def test_labels_are_an_exposure_and_its_event_for_each_head_whose_condition_happened(
    seed: int, heads: tuple[Head, ...]
) -> None:
    """``learn_many`` is ``learn_terms``, bit for bit: of P(b | a) only rows with a pay anything."""
    generator = np.random.default_rng(seed)
    config = dataclasses.replace(CONFIG, heads=heads)
    by_label, by_terms = model(config), model(config)
    x, _ = batch(generator, 20)
    labels = generator.random((20, len(heads))) < 0.5
    weight = generator.random((20, len(heads))).astype(np.float32)
    given_ = {"cart": "click", "purchase": "cart"}
    names = [head.name for head in heads]
    exposure = weight.copy()
    for place, name in enumerate(names):
        if name in given_:
            exposure[~labels[:, names.index(given_[name])], place] = 0
    by_label.learn_many(x, labels, weight)
    by_terms.learn_terms(x, Terms(exposure, exposure * labels))
    assert by_label.weights_sha256() == by_terms.weights_sha256()


@pytest.mark.parametrize("heads", [CHAIN[:1], CHAIN[:2]])
def test_an_exposure_and_its_click_in_two_batches_pay_the_labelled_loss(heads: tuple[Head, ...]) -> None:
    """At the same weights, the gradients of the parts add up to that of the whole."""
    generator = np.random.default_rng(2)
    fm = model(dataclasses.replace(CONFIG, heads=heads))
    names = [("click", "conversion")[place] for place in range(len(heads))]
    x, clicked = batch(generator, 30)
    events = Rows(x.ids[clicked], x.dense[clicked])
    labels = np.stack([clicked, np.zeros(30, np.bool_)], 1)[:, : len(heads)]
    whole = fm.gradients(x, fm.terms_of_labels(x, labels))
    whole = whole._replace(dense=whole.dense.copy())
    shown = fm.gradients(x, Terms.of_kinds(np.full(30, EXPOSURE, np.uint8), names))
    shown = shown._replace(dense=shown.dense.copy())
    later = fm.gradients(events, Terms.of_kinds(np.full(len(events.ids), CLICK, np.uint8), names))
    np.testing.assert_allclose(shown.dense + later.dense, whole.dense, rtol=1e-4, atol=1e-5)
    summed = dict(zip(shown.lookup.unique.tolist(), shown.table.copy(), strict=True))
    for row, gradient in zip(later.lookup.unique.tolist(), later.table, strict=True):
        summed[row] = summed[row] + gradient
    found = np.stack([summed[row] for row in whole.lookup.unique.tolist()])
    np.testing.assert_allclose(found, whole.table, rtol=1e-4, atol=1e-5)


def test_heads_start_at_their_rates() -> None:
    """Before any learning each head predicts its ``start_p``, up to the small start values of ids."""
    heads = (Head("click", start_p=0.01), Head("conversion", given="click", start_p=0.2, hidden=()), Head("like"))
    x, _ = batch(np.random.default_rng(0), 50)
    fm = model(dataclasses.replace(CONFIG, heads=heads, init_scale=1e-6))
    logits = fm.predict_heads(Rows(x.ids, np.zeros_like(x.dense)))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), [[0.01, 0.2, 0.5]] * 50, rtol=1e-3)


@pytest.mark.parametrize(("start_p", "rate"), [(None, 0.08), (0.5, 0.08), (0.01, 0.08 * 0.5 / 0.0995)])
def test_weights_learn_at_a_rate_that_suits_the_click_rate(start_p: float | None, rate: float) -> None:
    """The rarer a click, the further it moves its ids: by 1 / √(p·(1 − p))."""
    config = dataclasses.replace(CONFIG, heads=(Head("click", start_p=start_p),), weight_beta=1e6)
    fm = model(config)
    x, labels = batch(np.random.default_rng(0), 1)
    rows = fm.table.admit(x.ids[:, EMBEDDED]).unique
    before = fm.table.gather(rows)[:, -1]
    gradient = fm.gradients(x, fm.terms_of_labels(x, labels)).table[:, -1]
    fm.learn_many(x, labels)
    moved = before - fm.table.gather(rows)[:, -1]
    np.testing.assert_allclose(moved, rate / 1e3 * gradient, rtol=1e-3)


def test_dense_weights_learn_at_a_rate_that_suits_the_click_rate() -> None:
    """The rarer a click, the less a batch tells of the level, and the less it moves the dense weights."""

    def moved(start_p: float) -> float:
        fm = model(dataclasses.replace(CONFIG, heads=(Head("click", start_p=start_p),)))
        before = fm.dense.flat.numpy().copy()
        fm.learn_many(*batch(np.random.default_rng(0), CONFIG.full_batch_rows))
        return float(np.abs(fm.dense.flat.numpy() - before).max())

    np.testing.assert_allclose(moved(0.01) / moved(0.5), 2 * np.sqrt(0.01 * 0.99), rtol=1e-3)


def test_an_id_without_a_row_counts_as_its_columns_default() -> None:
    """Ids not yet admitted share, and teach, the default row of their column; predicting never admits."""
    fm = model(dataclasses.replace(CONFIG, admit_after=3))
    x, labels = batch(np.random.default_rng(0), 2)
    stranger = Rows(np.array([[901, 902, 903, 904, 905]], np.uint64), x.dense[:1])
    other = Rows(stranger.ids + np.uint64(50), x.dense[:1])
    for _ in range(2):
        fm.learn_many(stranger, labels[:1])
        assert np.array_equal(fm.predict_many(stranger), fm.predict_many(other))
    fm.learn_many(stranger, labels[:1])
    assert not np.array_equal(fm.predict_many(stranger), fm.predict_many(other))


def test_predicting_changes_nothing() -> None:
    """The weights after a prediction are those before it."""
    fm = learned(3)
    before = fm.weights_sha256()
    fm.predict_many(batch(np.random.default_rng(9), 50)[0])
    assert fm.weights_sha256() == before


def test_it_predicts_before_any_learning_and_for_no_rows() -> None:
    """A fresh model gives finite logits; an empty batch gives an empty answer."""
    x, _ = batch(np.random.default_rng(1), 7)
    assert np.isfinite(model().predict_many(x)).all()
    assert model().predict_many(Rows(x.ids[:0], x.dense[:0])).shape == (0,)


def test_it_learns_a_rule_of_ids_and_a_rule_of_dense_inputs() -> None:
    """After a few hundred steps the log loss is far below that of the base rate."""
    generator, fm = np.random.default_rng(5), model()
    for _ in range(400):
        x, _ = batch(generator, 32)
        fm.learn_many(x, ((x.ids[:, 0] + x.ids[:, 1]) % 2 == 0) ^ (x.dense[:, 0] > 1))
    x, _ = batch(generator, 500)
    labels = ((x.ids[:, 0] + x.ids[:, 1]) % 2 == 0) ^ (x.dense[:, 0] > 1)
    assert np.mean((fm.predict_many(x) > 0) == labels) > 0.9


def test_the_same_batches_give_the_same_bits() -> None:
    """Two runs over the same batches end with equal weights, another seed with others."""
    assert learned(20).weights_sha256() == learned(20).weights_sha256()
    assert learned(20).weights_sha256() != learned(20, seed=1).weights_sha256()


def test_columns_that_are_not_embedded_do_not_matter() -> None:
    """Only the spec's embedded columns move a logit."""
    fm = learned(5)
    x, _ = batch(np.random.default_rng(2), 10)
    ids = x.ids.copy()
    ids[:, 2] += np.uint64(99)
    assert np.array_equal(fm.predict_many(x), fm.predict_many(Rows(ids, x.dense)))


def test_a_weight_of_zero_leaves_the_table_rows_of_that_row_as_they_were() -> None:
    """Ids seen only in rows of weight 0 keep their values."""
    fm = model()
    x, labels = batch(np.random.default_rng(3), 2)
    ids = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], np.uint64)
    fm.learn_many(Rows(ids, x.dense), labels, np.array([1, 1], np.float32))
    rows = fm.table.find(ids[:, EMBEDDED])
    start = [fm.table.gather(row) for row in rows]
    fm.learn_many(Rows(ids, x.dense), labels, np.array([0, 1], np.float32))
    assert np.array_equal(fm.table.gather(rows[0]), start[0])
    assert not np.array_equal(fm.table.gather(rows[1]), start[1])


def test_inputs_are_not_aliased_and_may_be_read_only() -> None:
    """Changing a batch after learning it changes nothing, and arrays straight from a record are accepted."""
    x, labels = batch(np.random.default_rng(4), 6)
    for array in (x.ids, x.dense, labels):
        array.flags.writeable = False
    fm = model()
    fm.learn_many(x, labels)
    logits = fm.predict_many(x)
    kept = logits.copy()
    fm.predict_many(Rows(x.ids, x.dense + 1))
    assert np.array_equal(logits, kept)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_applied_deltas_make_a_serving_copy_predict_bit_equal(seed: int, publishes: list[int]) -> None:
    """After each delta a copy that never learned gives the trainer's own logits, though ids come and go."""
    generator = np.random.default_rng(seed)
    config = dataclasses.replace(CONFIG, admit_after=2, expire_after_s=64, max_rows=40)
    trainer, serving = model(config), model(config)
    probe, _ = batch(generator, 20, vocabulary=40)
    clock_ms = 0
    for version, steps in enumerate(publishes, start=1):
        for _ in range(steps):
            clock_ms += int(generator.integers(0, 40_000))
            trainer.advance(clock_ms)
            trainer.learn_many(*batch(generator, int(generator.integers(1, 20)), vocabulary=40))
        delta = trainer.changes(version=version, parent=version - 1, watermark_ms=0, newest_event_ms=0)
        serving.apply(delta)
        assert np.array_equal(serving.predict_many(probe), trainer.predict_many(probe))
        assert serving.weights_sha256() == trainer.weights_sha256()


def test_a_delta_takes_expired_ids_away() -> None:
    """An id unseen for too long is in ``removed``; serving then scores it by its column's default row."""
    config = dataclasses.replace(CONFIG, expire_after_s=64)
    trainer, serving = model(config), model(config)
    x, labels = batch(np.random.default_rng(6), 8)
    trainer.advance(0)
    trainer.learn_many(x, labels)
    serving.apply(trainer.changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0))
    held = serving.predict_many(x)
    trainer.advance(1_000_000)
    delta = trainer.changes(version=2, parent=1, watermark_ms=0, newest_event_ms=0)
    expected = np.unique(x.ids[:, EMBEDDED])
    assert delta.removed.tolist() == expected[expected > 0].tolist()
    serving.apply(delta)
    assert np.array_equal(serving.predict_many(x), trainer.predict_many(x))
    assert not np.array_equal(serving.predict_many(x), held)


def test_a_delta_holds_only_what_changed_since_the_last_one() -> None:
    """Keys come ascending; a second call without learning has none."""
    fm = model()
    fm.changes(version=1, parent=0, watermark_ms=5, newest_event_ms=4)
    x, labels = batch(np.random.default_rng(6), 1)
    fm.learn_many(x, labels)
    delta = fm.changes(version=2, parent=1, watermark_ms=5, newest_event_ms=4, clicks_produced_ms=[7])
    expected = np.unique(x.ids[:, EMBEDDED])
    assert delta.keys.tolist() == expected[expected > 0].tolist()
    assert delta.values.shape == (len(delta.keys), CONFIG.dim + 1)
    assert len(delta.removed) == 0
    assert delta.clicks_produced_ms.tolist() == [7]
    assert len(fm.changes(version=3, parent=2, watermark_ms=5, newest_event_ms=4).keys) == 0


def test_a_delta_does_not_change_when_its_model_learns_on() -> None:
    """A published delta is a copy."""
    fm = learned(2)
    delta = fm.changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0)
    before = delta.payload()
    fm.learn_many(*batch(np.random.default_rng(1), 16))
    assert delta.payload() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spec_hash": "ffffffffffffffff"}, "ffffffffffffffff.*0123456789abcdef"),
        ({"keys": np.array([0], np.uint64), "values": np.ones((1, 5), np.float32)}, "key 0"),
        ({"keys": np.array([1], np.uint64), "values": np.ones((1, 9), np.float32)}, r"\(1, 9\)"),
        ({"dense": {"linear.weight": np.ones(3, np.float32)}}, "dense weights"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(changed: dict[str, object], message: str) -> None:
    """Another spec, the missing key, another dim or other layers."""
    fm = learned(2)
    delta = fm.changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0)
    other = learned(3, seed=8)
    before = other.weights_sha256()
    with pytest.raises(DeltaError, match=message):
        other.apply(dataclasses.replace(delta, **changed))  # type: ignore[arg-type]
    assert other.weights_sha256() == before


@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_continuing_from_a_state_is_bit_equal_to_never_stopping(seed: int, before: int, after: int) -> None:
    """Weights, optimiser and pending changes survive the round trip exactly."""
    generator = np.random.default_rng(seed)
    batches = [batch(generator, 8) for _ in range(before + after)]
    whole = model()
    for x, labels in batches[:before]:
        whole.learn_many(x, labels)
    stopped = DeepFM.from_state(CONFIG, SHAPE, whole.state())
    for x, labels in batches[before:]:
        whole.learn_many(x, labels)
        stopped.learn_many(x, labels)
    a, b = whole.state(), stopped.state()
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_snapshot_in_steps_is_the_state_at_its_beginning() -> None:
    """What is learned, admitted and removed while it is copied does not show in it; one at a time."""
    generator = np.random.default_rng(1)
    fm = model(dataclasses.replace(CONFIG, max_rows=30))
    for _ in range(5):
        fm.learn_many(*batch(generator, 16, vocabulary=60))
    expected, copy = fm.state(), fm.begin_snapshot()
    with pytest.raises(RuntimeError, match="snapshot"):
        fm.begin_snapshot()
    while not copy.step(200):
        fm.learn_many(*batch(generator, 16, vocabulary=60))
    found = copy.state()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    fm.begin_snapshot()


def test_a_state_of_another_config_or_with_holes_is_refused() -> None:
    """Other layer widths and missing arrays are named."""
    state = learned(1).state()
    with pytest.raises(ValueError, match="dense weights"):
        DeepFM.from_state(dataclasses.replace(CONFIG, hidden=(3,)), SHAPE, state)
    del state["adam.first"]
    with pytest.raises(ValueError, match=r"adam\.first"):
        DeepFM.from_state(CONFIG, SHAPE, state)


def bad_batches() -> list[tuple[str, Rows, NDArray[np.generic], NDArray[np.float32] | None, str]]:
    """Name, batch, labels, weights and what the error must say."""
    x, labels = batch(np.random.default_rng(0), 4)
    nan_dense = x.dense.copy()
    nan_dense[2, 1] = np.nan
    one = np.ones(4, np.float32)
    return [
        ("label 2", x, np.array([0, 1, 2, 0]), None, "label 2 at row 2"),
        ("label nan", x, np.array([0, np.nan, 1, 0]), None, "label nan"),
        ("labels too short", x, labels[:3], None, "labels"),
        ("weight nan", x, labels, np.array([1, np.nan, 1, 1], np.float32), "weights hold nan"),
        ("weight inf", x, labels, np.array([1, 1, np.inf, 1], np.float32), "weights hold inf"),
        ("weight negative", x, labels, -one, "weight -1"),
        ("weight huge", x, labels, one * 1e7, "weight 1e.07 must not exceed 1e.06"),
        ("labels of two heads", x, np.zeros((4, 2), np.bool_), None, r"labels \(4, 2\)"),
        ("weights of two heads", x, labels, np.ones((4, 2), np.float32), r"weights \(4, 2\)"),
        ("weights too long", x, labels, np.ones(5, np.float32), "weights"),
        ("dense nan", Rows(x.ids, nan_dense), labels, None, r"dense inputs hold nan at \(2, 1\)"),
        ("no rows", Rows(x.ids[:0], x.dense[:0]), labels[:0], None, "batch of 0 rows"),
        ("ids too narrow", Rows(x.ids[:, :3], x.dense), labels, None, r"\(4, 3\)"),
        ("dense too wide", Rows(x.ids, np.ones((4, 9), np.float32)), labels, None, r"\(4, 9\)"),
        ("dense too short", Rows(x.ids, x.dense[:2]), labels, None, r"\(2, 3\)"),
    ]


@pytest.mark.parametrize(
    ("rows", "labels", "weight", "message"),
    [case[1:] for case in bad_batches()],
    ids=[case[0] for case in bad_batches()],
)
def test_bad_input_is_refused_and_the_model_untouched(
    rows: Rows, labels: NDArray[np.generic], weight: NDArray[np.float32] | None, message: str
) -> None:
    """The error names the bad value; state and step count stay."""
    fm = learned(2)
    before = fm.state()
    with pytest.raises(ValueError, match=message):
        fm.learn_many(rows, labels, weight)
    after = fm.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("exposure", "event", "message"),
    [
        (np.ones(4), np.array([0, np.nan, 0, 0]), r"event weights hold nan at \(1, 0\)"),
        (np.array([1, np.inf, 0, 0]), np.ones(4), "exposure weights hold inf"),
        (np.ones(4), np.array([0, -1, 0, 0]), "event weight -1 must not be negative"),
        (np.full(4, 1e7), np.ones(4), r"exposure weight 1e.07 must not exceed 1e.06"),
        (np.ones(3), np.ones(4), r"exposure \(3,\) must be \(4,\)"),
        (np.ones(4), np.ones((4, 2)), r"event \(4, 2\) must be \(4,\)"),
    ],
)
def test_terms_that_mean_nothing_are_refused_and_the_model_untouched(
    exposure: NDArray[np.float64], event: NDArray[np.float64], message: str
) -> None:
    """The error names the term, the value and the bound."""
    fm = learned(2)
    before = fm.state()
    x, _ = batch(np.random.default_rng(0), 4)
    with pytest.raises(ValueError, match=message):
        fm.learn_terms(x, Terms(exposure.astype(np.float32), event.astype(np.float32)))
    assert all(np.array_equal(before[name], array) for name, array in fm.state().items())


def test_a_diverging_gradient_is_raised_before_the_update() -> None:
    """Dense inputs near the float's limit overflow the gradient: no weight, no optimiser moves."""
    fm = learned(2)
    before = fm.state()
    x, labels = batch(np.random.default_rng(0), 4)
    known = fm.predict_many(x)
    with pytest.raises(DivergenceError, match="lower vector_rate"):
        fm.learn_many(Rows(x.ids, np.full_like(x.dense, 3e38)), labels)
    after = fm.state()
    kept = np.isin(after["table.keys"], before["table.keys"])
    assert np.array_equal(after["table.values"][kept], before["table.values"])
    assert np.array_equal(after["table.accumulators"][kept], before["table.accumulators"])
    assert all(np.array_equal(before[n], after[n]) for n in before if not n.startswith("table."))
    assert np.array_equal(fm.predict_many(x), known)


@pytest.mark.parametrize("known", ["label", "event by event"])
def test_a_conversion_head_learns_from_clicks_alone(known: str) -> None:
    """It finds P(conversion | click), and the chain both, from labels as from the events as they come."""
    generator = np.random.default_rng(5)
    names = ("click", "conversion")
    fm = model(dataclasses.replace(CONFIG, heads=(Head("click"), Head("conversion", given="click"))))
    click_rate, buy_rate = np.array([0.8, 0.2]), np.array([0.25, 0.75])
    for _ in range(600):
        x, _ = batch(generator, 64)
        kind = (x.ids[:, 0] % 2).astype(int)
        clicked = generator.random(64) < click_rate[kind]
        bought = clicked & (generator.random(64) < buy_rate[kind])
        if known == "label":
            fm.learn_many(x, np.stack([clicked, bought], 1))
            continue
        for of_kind, happened in ((EXPOSURE, np.ones(64, np.bool_)), (CLICK, clicked), (CONVERSION, bought)):
            rows = Rows(x.ids[happened], x.dense[happened])
            fm.learn_terms(rows, Terms.of_kinds(np.full(len(rows.ids), of_kind, np.uint8), names))
    x, _ = batch(generator, 2000)
    kind, logits = (x.ids[:, 0] % 2).astype(int), fm.predict_heads(x)
    assert np.array_equal(logits[:, 0], fm.predict_many(x))
    joint = fm.heads.joint(logits)
    for k in (0, 1):
        click, buy = joint[kind == k].mean(0)
        assert abs(click - click_rate[k]) < 0.06
        assert abs(buy - click_rate[k] * buy_rate[k]) < 0.06
        assert abs(np.mean(1 / (1 + np.exp(-logits[kind == k, 1]))) - buy_rate[k]) < 0.12


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"weight_rate": -1.0},
        {"vector_beta": 0.0},
        {"weight_beta": -1.0},
        {"dense_rate": float("nan")},
        {"hidden": (8, 0)},
        {"threads": 0},
        {"dropout": 1.0},
        {"precision": "fp8"},
    ],
)
def test_a_config_that_cannot_learn_is_refused(wrong: dict[str, object]) -> None:
    """Sizes and rates must be positive; the message names the field and the value."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeepFMConfig(**wrong)  # type: ignore[arg-type]
