"""The hot model against the trainer that publishes to it."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.nn.heads import Head
from learners.snapshots.snapshot import load_snapshot
from serving.freshness import Freshness
from serving.model import HotModel, OfferResult, conversion_head
from stream.records.deltas import DeltaSpecError
from tests.learners.small_spec import SMALL
from tests.serving.trainer import CONFIG, FIRST_VERSION, NOW_MS, TWO_HEADS, Trainer, request, rows_of

ROWS = rows_of([request(user, range(1, 20)) for user in range(1, 6)])


def hot_model(trainer: Trainer | None = None) -> HotModel:
    """A hot model that holds what the trainer holds."""
    source = trainer or Trainer()
    model = type(source.model).from_state(source.model.config, source.model.shape, source.model.state())
    return HotModel(
        model,
        spec_hash=SMALL.hash,
        version=source.version,
        watermark_ms=source.watermark_ms,
        freshness=Freshness(),
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([900, 3_000, 1 << 20]), min_size=1, max_size=8))
def test_after_each_version_predictions_are_bit_equal_with_the_trainers(part_bytes: list[int]) -> None:
    """Whatever the parts, the model is the old version until the last part, then exactly the new one."""
    trainer = Trainer()
    hot = hot_model(trainer)
    for size in part_bytes:
        before = hot.predict(ROWS).click
        *first, last = trainer.step(max_part_bytes=size)
        for part in first:
            assert hot.offer(part) is OfferResult.PARTIAL
        np.testing.assert_array_equal(hot.predict(ROWS).click, before)
        assert hot.offer(last) is OfferResult.SWAPPED
        np.testing.assert_array_equal(hot.predict(ROWS).click, trainer.model.predict_many(ROWS))
        assert (hot.version, hot.watermark_ms) == (trainer.version, trainer.watermark_ms)


def test_an_id_that_the_learner_forgot_is_gone_from_the_hot_model() -> None:
    """A delta's removed keys take their rows along: the id is scored as one never seen, and the weights are equal."""
    trainer = Trainer(config=dataclasses.replace(CONFIG, expire_after_s=3600.0))
    hot, ad = hot_model(trainer), trainer.model.shape.names.index("ad")
    rare = rows_of([request(1, [777])])
    column = trainer.model.shape.embedded[ad]
    key = rare.ids[:1, [column]]

    def has_row() -> list[bool]:
        return [bool(np.isin(key, model.table.state()["keys"])) for model in (trainer.model, hot.model)]  # type: ignore[attr-defined]

    trainer.model.advance(NOW_MS)
    trainer.model.learn_many(rare, np.ones(1, np.bool_))
    assert [hot.offer(part) for part in trainer.step()] == [OfferResult.SWAPPED]
    assert has_row() == [True, True]
    trainer.model.advance(NOW_MS + 2 * 3_600_000)
    assert [hot.offer(part) for part in trainer.step()] == [OfferResult.SWAPPED]
    assert has_row() == [False, False]
    np.testing.assert_array_equal(hot.predict(rare).click, trainer.model.predict_many(rare))
    assert hot.model.weights_sha256() == trainer.model.weights_sha256()  # type: ignore[attr-defined]


def test_a_repeated_version_changes_nothing() -> None:
    """A delta read twice is skipped."""
    trainer, hot = Trainer(), None
    hot = hot_model(trainer)
    (part,) = trainer.step()
    assert [hot.offer(part), hot.offer(part)] == [OfferResult.SWAPPED, OfferResult.SKIPPED]
    assert (hot.swaps, hot.gaps) == (1, 0)


def test_after_a_hole_every_delta_is_refused_until_a_snapshot_is_installed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The current version stays, whole; the snapshot then carries on and its successors are taken."""
    trainer = Trainer()
    hot = hot_model(trainer)
    before = hot.predict(ROWS).click
    trainer.step()
    assert [hot.offer(p) for _ in range(2) for p in trainer.step()] == [OfferResult.GAP, OfferResult.GAP]
    np.testing.assert_array_equal(hot.predict(ROWS).click, before)
    assert (hot.version, hot.gaps, hot.lost) == (FIRST_VERSION, 1, True)

    snapshot = load_snapshot(trainer.snapshot(tmp_path))
    hot.install(snapshot.model(), version=snapshot.version, watermark_ms=snapshot.watermark_ms)
    (part,) = trainer.step()
    assert hot.offer(part) is OfferResult.SWAPPED
    np.testing.assert_array_equal(hot.predict(ROWS).click, trainer.model.predict_many(ROWS))


def test_a_damaged_delta_is_a_gap() -> None:
    """One flipped bit: nothing is applied."""
    trainer = Trainer()
    hot = hot_model(trainer)
    (part,) = trainer.step()
    damaged = bytearray(part.payload)
    damaged[-3] ^= 1
    before = hot.predict(ROWS).click
    assert hot.offer(msgspec.structs.replace(part, payload=bytes(damaged))) is OfferResult.GAP
    np.testing.assert_array_equal(hot.predict(ROWS).click, before)


def test_a_learner_on_another_line_is_a_gap_even_with_older_version_numbers() -> None:
    """A learner that restarted from an older snapshot and learned otherwise is noticed at its first delta."""
    trainer, other = Trainer(seed=0), Trainer(seed=1)
    hot = hot_model(trainer)
    for _ in range(3):
        hot.offer(*trainer.step())
    assert hot.offer(*other.step()) is OfferResult.GAP


def test_heartbeats_move_the_watermark_only() -> None:
    """A heartbeat of the current version moves applied time forward, never back; of a later version it is a gap."""
    trainer = Trainer()
    hot = hot_model(trainer)
    (part,) = trainer.step()
    hot.offer(part)

    def beat(version: int, watermark_ms: int) -> OfferResult:
        return hot.offer(
            msgspec.structs.replace(part, version=version, parent=version, watermark_ms=watermark_ms, payload=b"")
        )

    assert beat(hot.version, NOW_MS + 9_000) is OfferResult.HEARTBEAT
    assert beat(hot.version, NOW_MS) is OfferResult.HEARTBEAT
    assert hot.watermark_ms == NOW_MS + 9_000
    assert beat(hot.version - 1, NOW_MS + 99_000) is OfferResult.SKIPPED
    assert hot.watermark_ms == NOW_MS + 9_000
    assert beat(hot.version + 1, NOW_MS + 99_000) is OfferResult.GAP


def test_weights_of_another_spec_name_both_hashes() -> None:
    """They are refused; the message says which is which."""
    trainer = Trainer()
    (part,) = trainer.step()
    with pytest.raises(DeltaSpecError, match=f"0123456789abcdef.*{SMALL.hash}"):
        hot_model().offer(msgspec.structs.replace(part, spec_hash="0123456789abcdef"))


def test_conversions_are_the_logits_of_the_head_that_is_given_the_click() -> None:
    """Both heads come from one pass, and each is the trainer's own."""
    trainer = Trainer(config=TWO_HEADS)
    hot = hot_model(trainer)
    click, conversion = hot.predict(ROWS)
    expected = trainer.model.predict_heads(ROWS)
    assert conversion is not None
    np.testing.assert_array_equal(np.stack([click, conversion], axis=1), expected)
    assert hot.predicts_conversions
    assert hot.head_names == ("click", "conversion")


@pytest.mark.parametrize(
    ("heads", "place"),
    [
        ([Head("click")], None),
        ([Head("click"), Head("conversion", given="click")], 1),
        ([Head("click"), Head("conversion")], None),
        ([Head("click"), Head("like", given="click"), Head("conversion", given="like")], None),
        ([Head("click"), Head("like"), Head("conversion", given="click")], 2),
    ],
)
def test_only_what_is_given_the_click_is_the_probability_of_its_conversion(
    heads: list[Head], place: int | None
) -> None:
    """A head of that name which is conditioned otherwise must not be multiplied by p."""
    assert conversion_head(heads) == place


def test_a_model_without_a_conversion_head_predicts_none() -> None:
    """There is nothing that could be taken for it."""
    assert hot_model().predict(ROWS).conversion is None
    assert not hot_model().predicts_conversions
