"""Base training as a whole: what is learned, judged and replayed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from calibration.logistic import sigmoid
from learners.deepfm.model import DeepFM
from learners.examples.examples import Examples
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.terms import Terms
from learners.metrics.quality import quality
from learners.nn.heads import Head
from learners.training.base import BaseConfig, known_users, train_base
from learners.training.conversion_shares import conversion_shares
from learners.training.fit import FitConfig, rows_at
from learners.training.sampling import NegativeSampling
from tests.learners.archived import as_events, examples
from tests.learners.batches import CONFIG, SHAPE

EVER = BaseConfig(click_window_s=0)  # every display of the made-up archives counts as mature


def with_click(given: Examples, clicked: int, known_ms: int) -> Examples:
    """One more event: the impression of a row without a click is clicked."""
    more = given.take(np.append(np.arange(len(given)), clicked))
    more.columns["kind"][-1], more.columns["known_ms"][-1] = CLICK, known_ms
    return more


def test_heads_start_at_the_rates_of_the_train_rows() -> None:
    """Of clicks among displays and of conversions among clicks, unless the config says where; the stream goes on so."""
    given = examples()
    heads = (Head("click"), Head("conversion", given="click"))
    config = dataclasses.replace(CONFIG, heads=heads)
    converting = np.flatnonzero(given.clicked(given.exposures()))[::3]
    more = given.take(np.concatenate((np.arange(len(given)), converting)))
    more.columns["kind"][len(given) :] = CONVERSION
    at_once = dataclasses.replace(EVER, conversion_delay_median_s=1.0)  # the archive is of ten minutes
    base = train_base(more, SHAPE, model_config=config, config=at_once)
    train = base.split.train
    clicked = more.clicked(train, before_ms=base.split.validation_from_ms)
    converted = more.converted(train[clicked]).sum()
    due = conversion_shares(more, more.end_ms, at_once.conversion_horizon_s, at_once.conversion_prior)[
        train[clicked]
    ].sum()
    assert 0.9 * clicked.sum() < due < clicked.sum()  # they come at once, but there may be late ones
    found = [head.start_p for head in base.model.config.heads]
    assert found == pytest.approx([clicked.mean(), converted / due], rel=1e-3)
    asked = dataclasses.replace(config, heads=(Head("click", start_p=0.01), heads[1]))
    kept = train_base(more, SHAPE, model_config=asked, config=at_once).model.config.heads
    assert [kept[0].start_p, kept[1].start_p] == [0.01, found[1]]
    assert base.snapshot().config == base.model.config


def test_train_rows_are_labelled_and_what_follows_is_learned_as_a_stream_would() -> None:
    """The model equals one that learned the same rows and events itself; the report is of before it learned them."""
    given = as_events(examples())
    clicked = given.clicked(given.exposures())
    config = BaseConfig(fit=FitConfig(batch_rows=200), replay_batch_rows=50, click_window_s=0)
    base = train_base(given, SHAPE, model_config=CONFIG, config=config, goes_on=True)
    expected = DeepFM(base.model.config, SHAPE)
    split, columns = base.split, given.columns
    for start in (0, 200, 400):
        train = split.train[start : start + 200]
        expected.learn_many(rows_at(given, train), given.clicked(train, before_ms=split.validation_from_ms))
    events = [
        at
        for at in np.lexsort((columns["kind"], columns["known_ms"])).tolist()
        if columns["known_ms"][at] >= split.validation_from_ms
    ]
    before = [at for at in events if columns["known_ms"][at] < split.holdout_from_ms]
    steps = [part[at : at + 50] for part in (before, events[len(before) :]) for at in range(0, len(part), 50)]
    learned = 0
    for step in steps:
        if learned == len(before):
            logits = expected.predict_many(rows_at(given, split.holdout))
        kinds = columns["kind"][step]
        terms = Terms((kinds == EXPOSURE).astype(np.float32), (kinds == CLICK).astype(np.float32))
        expected.learn_terms(rows_at(given, np.array(step)), terms)
        learned += len(step)
    assert base.model.weights_sha256() == expected.weights_sha256()
    assert np.array_equal(base.holdout_logits, logits)
    assert base.holdout == quality(logits, given.clicked(split.holdout))
    assert len(split.train) + len(split.validation) + len(split.holdout) == len(clicked) == 600


def test_labelled_rows_and_the_events_of_a_stream_make_the_same_base() -> None:
    """An archive of either kind, to the bit."""
    ways = [
        train_base(log, SHAPE, model_config=CONFIG, config=BaseConfig(click_window_s=60))
        for log in (examples(), as_events(examples()))
    ]
    assert ways[0].model.weights_sha256() == ways[1].model.weights_sha256()
    assert (ways[0].holdout, ways[0].replayed) == (ways[1].holdout, ways[1].replayed)
    assert ways[0].rows == ways[1].rows < 600


def _log_of_rate(rate: float, delay_ms: int, stop_ms: int) -> Examples:
    """Events up to ``stop_ms`` of 6,000 displays in 600 s, clicked by chance at ``rate`` after ``delay_ms``."""
    given = examples(6000)
    columns = dict(given.columns)
    columns["label"] = (np.random.default_rng(5).random(6000) < rate).astype(np.uint8)
    columns["ts_ms"] = 1_700_000_000_000 + np.arange(6000) * 100
    columns["known_ms"] = columns["ts_ms"] + delay_ms
    log = as_events(dataclasses.replace(given, columns=columns))
    return log.take(np.flatnonzero(log.columns["known_ms"] < 1_700_000_000_000 + stop_ms))


@pytest.mark.parametrize("stop_ms", [10**9, 500_000], ids=["drained", "cut in the middle"])
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_base_says_the_click_rate_wherever_its_log_ends(stop_ms: int, goes_on: bool) -> None:
    """Its holdout holds clicks and non-clicks as they came, and its probability is theirs, however late clicks come.

    A delay of 30 s is that of 300 displays: as labels of what was known at the split they would cost a quarter of p.
    """
    config = BaseConfig(click_window_s=60, fit=FitConfig(batch_rows=32))
    mean_p = []
    for delay_ms in (100, 30_000):
        log = _log_of_rate(0.26, delay_ms, stop_ms)
        base = train_base(log, SHAPE, model_config=CONFIG, config=config, goes_on=goes_on)
        assert base.holdout.rows > 350
        mean_p.append(float(sigmoid(base.holdout_logits).mean()))
        assert base.holdout.observed_over_expected * mean_p[-1] == pytest.approx(0.26, abs=0.05)  # 2 deviations
    assert mean_p == pytest.approx([0.26, 0.26], abs=0.04)
    assert mean_p[1] == pytest.approx(mean_p[0], abs=0.02)


def test_the_youngest_displays_are_learned_only_where_a_stream_goes_on() -> None:
    """Their clicks would come from the log behind the archive; without one they would teach non-clicks."""
    log = _log_of_rate(0.26, 30_000, 500_000)
    young = log.columns["ts_ms"] >= log.end_ms - 60_000 + 1
    others = _log_of_rate(0.26, 30_000, 500_000)
    others.rows.ids[young] = 77  # ids of nobody else
    hashes = {}
    for goes_on in (True, False):
        bases = [
            train_base(given, SHAPE, model_config=CONFIG, config=BaseConfig(click_window_s=60), goes_on=goes_on)
            for given in (log, others)
        ]
        hashes[goes_on] = [base.model.weights_sha256() for base in bases]
        displays = int((~young & (log.columns["kind"] == EXPOSURE)).sum())
        assert [base.rows for base in bases] == [displays] * 2
        assert sum(of.rows for of in bases[0].replayed) == len(bases[0].split.validation) + len(bases[0].split.holdout)
    assert hashes[False][0] == hashes[False][1]
    assert len({hashes[False][0], *hashes[True]}) == 3


def test_it_learns_the_rule_of_the_examples() -> None:
    """The held-out rows are ranked far better than by chance."""
    config = BaseConfig(fit=FitConfig(batch_rows=32), click_window_s=0)
    base = train_base(examples(4000), SHAPE, model_config=CONFIG, config=config)
    assert base.holdout.rows == 400
    assert base.holdout.auc > 0.9


def test_the_watermark_is_the_time_of_the_newest_event() -> None:
    """The stream continues after it."""
    given = as_events(examples())
    base = train_base(given, SHAPE, model_config=CONFIG, config=EVER, goes_on=True)
    assert base.watermark_ms == given.columns["known_ms"].max()
    assert base.newest_event_ms == given.columns["ts_ms"].max()
    assert base.rows == 600


def test_train_rows_do_not_know_what_came_after_the_split() -> None:
    """A click after the split is learned in the replay as the stream would; one before it makes the label."""
    given = examples()
    split = train_base(given, SHAPE, model_config=CONFIG, config=EVER).split
    unclicked = int(split.train[np.flatnonzero(given.columns["label"][split.train] == 0)[0]])
    later = with_click(given, unclicked, split.holdout_from_ms + 1)
    at_once = with_click(given, unclicked, split.validation_from_ms - 1)
    relabelled = examples()
    relabelled.columns["label"][unclicked] = 1
    relabelled.columns["known_ms"][unclicked] = split.validation_from_ms - 1
    without, late, early, labelled = (
        train_base(one, SHAPE, model_config=CONFIG, config=EVER) for one in (given, later, at_once, relabelled)
    )
    assert np.array_equal(late.holdout_logits, without.holdout_logits)
    assert late.model.weights_sha256() != without.model.weights_sha256()
    assert early.model.weights_sha256() == labelled.model.weights_sha256()


def test_replayed_events_are_neither_weighted_nor_left_out() -> None:
    """The sampling is the fit's alone: after the split the model learns what the stream will."""
    given = examples(2000)
    sampled = BaseConfig(fit=FitConfig(sampling=NegativeSampling(negative_rate=0.5)), click_window_s=0)
    base = train_base(given, SHAPE, model_config=CONFIG, config=sampled)
    assert sum(of.rows for of in base.replayed) == len(base.split.validation) + len(base.split.holdout)


def test_users_of_the_holdout_are_known_by_the_rows_before_it() -> None:
    """Their keys, ascending."""
    given = examples()
    split = train_base(given, SHAPE, model_config=CONFIG, config=EVER).split
    before = np.concatenate((split.train, split.gap, split.validation))
    assert known_users(given, split).tolist() == sorted(set(given.columns["user_key"][before].tolist()))


def test_progress_ends_at_the_total() -> None:
    """Rows done grow to rows in all, the replay included, also when training stops early."""
    seen: list[tuple[int, int]] = []
    fast = dataclasses.replace(CONFIG, vector_rate=0.3, weight_rate=0.5, dense_rate=0.03)
    for config, epochs in ((CONFIG, 1), (fast, 50)):
        seen.clear()
        train_base(
            examples(),
            SHAPE,
            model_config=config,
            config=BaseConfig(fit=FitConfig(epochs=epochs), click_window_s=0),
            progress=lambda done, total: seen.append((done, total)),
        )
        assert seen[-1][0] == seen[-1][1]
        assert seen == sorted(seen, key=lambda of: of[0])


def test_too_few_examples_are_refused() -> None:
    """There must be something to learn and something to judge by."""
    with pytest.raises(ValueError, match="3 mature exposures leave 0 to validate"):
        train_base(examples(3), SHAPE, model_config=CONFIG, config=EVER)


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation_share": 0.0},
        {"holdout_share": 1.0},
        {"replay_batch_rows": 0},
        {"click_window_s": -1.0},
        {"conversion_horizon_s": 0.0},
    ],
)
def test_a_config_that_cannot_train_is_refused(wrong: dict[str, float]) -> None:
    """The message names the field and the value."""
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        BaseConfig(**wrong)  # type: ignore[arg-type]
