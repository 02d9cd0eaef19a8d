"""The state of a head: which maps it comes to, on a known truth, and that it adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from calibration.evidence import MapEvidence
from calibration.head import HeadCalibration, HeadRows
from calibration.instruments import figures
from calibration.logistic import sigmoid
from calibration.merged import map_of, weighed_of
from calibration.slice_map import SliceMap
from calibration.slices import SlicePlan
from tests.calibration.known_truth import PLAN, Displays, Teller, Truth, displays, right

Array = NDArray[Any]
RARE, COMMON = (1_000.0, 0.01), (50.0, 0.065)  # displays a second, click rate


def sharp(_s: Array, logit: Array, _p: Array) -> Array:
    """The model spreads its log-odds 1.4 times as far as is true."""
    return np.asarray(-3.0 + (logit + 3.0) / 1.4)


def placed(_s: Array, logit: Array, placement: Array) -> Array:
    """It is too low by a third in placement 2, and too high in the others."""
    return np.asarray(logit + np.where(placement == 2, 0.3, -0.1))


def log_loss(true: Array, p: Array) -> float:
    """Expected nats a display."""
    t, q = sigmoid(true), np.asarray(p, np.float64)
    return float(np.mean(-(t * np.log(q) + (1 - t) * np.log1p(-q))))


def applied(curve: SliceMap, shown: Displays, at: slice) -> Array:
    """P of displays under a map."""
    index = np.arange(len(shown.ts_ms))[at]
    return np.asarray(sigmoid(curve.log_odds_of(shown.logit[index], shown.paths(PLAN, index))))


def candidate_of(parts: Sequence[HeadCalibration]) -> SliceMap:
    """The map fitted to the evidence of several partitions together, proved or not."""
    return parts[0].fitted(weighed_of(parts), 0)


@pytest.mark.parametrize("truth", [sharp, placed])
@pytest.mark.parametrize("rate", [RARE, COMMON])
def test_shape_and_slices_that_are_wrong_are_corrected_within_ten_minutes(
    truth: Truth, rate: tuple[float, float]
) -> None:
    """On displays that come after; the level stays the model's."""
    shown = displays([rate[0]] * 660, rate[1], truth=truth)
    curve = map_of([Teller(shown).until(600)])
    assert not curve.is_identity
    later = slice(int(np.searchsorted(shown.ts_ms, 600_000)), None)
    true, raw, p = shown.true[later], sigmoid(shown.logit[later]), applied(curve, shown, later)
    best = sigmoid(true + np.log(raw.sum() / sigmoid(true).sum()))  # the true shape at the model's level
    assert log_loss(true, raw) - log_loss(true, p) > 0.6 * (log_loss(true, raw) - log_loss(true, best)) > 0
    assert p.sum() == pytest.approx(raw.sum(), rel=0.01)


@pytest.mark.parametrize("rate", [RARE, COMMON])
@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_is_right_is_left_as_it_is(rate: tuple[float, float], seed: int) -> None:
    """Nothing is applied that costs 1e-5 nats a display, in any minute of twenty."""
    shown = displays([rate[0] / 4] * 1_200, rate[1], seed=seed)
    teller = Teller(shown)
    for minute in range(1, 20):
        curve = map_of([teller.until(60.0 * minute)])
        later = slice(*np.searchsorted(shown.ts_ms, [60_000 * minute, 60_000 * minute + 60_000]).tolist())
        cost = log_loss(shown.true[later], applied(curve, shown, later)) - log_loss(
            shown.true[later], sigmoid(shown.logit[later])
        )
        assert cost < 1e-5


@pytest.mark.parametrize("truth", [right, sharp])
def test_a_level_that_jumps_never_reaches_the_map(truth: Truth) -> None:
    """The click rate doubles and the model does not know it yet: Σp under the map stays Σp of the model."""

    def jumped(s: Array, logit: Array, placement: Array) -> Array:
        return np.asarray(truth(s, logit, placement) + np.where(s < 600, 0.0, np.log(2.0)))

    shown = displays([100.0] * 1_200, 0.05, truth=jumped)
    teller = Teller(shown)
    for minute in range(9, 20):
        curve = map_of([teller.until(60.0 * minute)])
        later = slice(*np.searchsorted(shown.ts_ms, [60_000 * minute, 60_000 * minute + 60_000]).tolist())
        assert applied(curve, shown, later).sum() == pytest.approx(sigmoid(shown.logit[later]).sum(), rel=0.02)


@pytest.mark.parametrize("rate", [(200.0, 0.05), COMMON])
@pytest.mark.parametrize("seed", range(3))
def test_a_map_that_was_good_and_became_wrong_costs_less_than_1e_4(rate: tuple[float, float], seed: int) -> None:
    """The model learns at one moment what the map had corrected: over the next ten minutes, and nothing after them."""

    def learned(s: Array, logit: NDArray[np.float64], placement: NDArray[np.uint64]) -> Any:
        return np.where(s < 900, placed(s, logit, placement), logit)

    shown = displays([rate[0]] * 1_560, rate[1], truth=learned, seed=seed)
    teller, cost = Teller(shown), []
    assert len(map_of([teller.until(900)]).nodes)
    for minute in range(15, 26):
        curve = map_of([teller.until(60.0 * minute)])
        later = slice(*np.searchsorted(shown.ts_ms, [60_000 * minute, 60_000 * minute + 60_000]).tolist())
        raw = log_loss(shown.true[later], sigmoid(shown.logit[later]))
        cost.append(log_loss(shown.true[later], applied(curve, shown, later)) - raw)
    assert np.mean(cost[:10]) < 1e-4
    assert cost[10] < 3e-5


def head_rows(shown: Displays, at: NDArray[np.intp]) -> HeadRows:
    """As they were served, without a map."""
    return HeadRows(
        shown.ts_ms[at], shown.paths(PLAN, at), shown.logit[at], sigmoid(shown.logit[at]).astype(np.float32)
    )


def test_clicks_alone_or_late_ones_do_not_unbalance_the_evidence() -> None:
    """Those of forgotten displays are left out, those of remembered ones count in their display's cohort."""
    shown = displays([50.0] * 300, 0.1)
    one = Teller(shown).until(300)
    before = one.evidence.table.to_bytes()
    stale = shown._replace(ts_ms=shown.ts_ms - 10**9)
    clicked = np.flatnonzero(shown.clicked)
    one.happen(head_rows(stale, clicked), shown.delay_ms[clicked])
    assert one.evidence.table.to_bytes() == before
    some = clicked[:10]
    one.happen(head_rows(shown, some), shown.delay_ms[some] + 200_000)
    one.advance(300_001)
    assert one.evidence.clicks() == MapEvidence(type(one.evidence.table).from_bytes(before)).clicks() + 10


def measured_early(shown: Displays, *, behind_ms: int, from_s: int = 0, until_s: int = 240) -> tuple[float, float]:
    """O/E of two minutes as the instruments tell it at their end, and as it comes in the end.

    behind_ms : of the watermark, behind the clicks. from_s : from when on displays are seen; all clicks are.
    """
    head, clicked = HeadCalibration(PLAN, CalibratorConfig()), np.flatnonzero(shown.clicked)
    known_ms = shown.ts_ms + shown.delay_ms
    for end_ms in range(1_000 * from_s + 1_000, 1_000 * until_s + 1, 1_000):
        displayed = np.flatnonzero((shown.ts_ms >= end_ms - 1_000) & (shown.ts_ms < end_ms))
        come = clicked[(known_ms[clicked] >= end_ms - 1_000) & (known_ms[clicked] < end_ms)]
        head.expose(head_rows(shown, displayed))
        head.happen(head_rows(shown, come), shown.delay_ms[come])
        head.advance(end_ms - behind_ms)
        head = HeadCalibration.from_bytes(head.to_bytes(), PLAN)  # a restart loses nothing of what is held
    now_ms = head.instruments.table.now_ms
    measured = figures([(head.instruments, head.law)], PLAN, click_window_s=600.0, windows_s=[120])[0]
    end_ms = now_ms // 10_000 * 10_000
    window = (shown.ts_ms < end_ms) & (shown.ts_ms >= max((now_ms - 120_000) // 10_000 * 10_000, 1_000 * from_s))
    came = shown.clicked[window].sum() / sigmoid(shown.logit[window]).sum()
    return measured.observed_over_expected, float(came)


def test_early_figures_do_not_count_clicks_that_the_watermark_has_not_come_to() -> None:
    """Clicks pass at once, the watermark is five seconds behind: what is measured is what comes."""
    measured, came = measured_early(displays([1_000.0] * 240, 0.1), behind_ms=5_000)
    assert measured == pytest.approx(came, abs=0.007)


def test_a_calibration_that_starts_on_a_running_stream_leaves_clicks_of_earlier_displays_out() -> None:
    """Only the late ones of these are seen: with them the law would hold most clicks for late, O/E for far too high."""
    measured, came = measured_early(displays([1_000.0] * 160, 0.1), behind_ms=0, from_s=100, until_s=160)
    assert measured == pytest.approx(came, abs=0.03)  # what comes after a minute, only the prior tells


def test_partitions_together_are_one_calibration_of_all() -> None:
    """Evidence and instruments merge to the bit; the map of the merged evidence is that of one worker."""
    shown = displays([60.0] * 400, 0.1, truth=placed)
    whole = Teller(shown).until(400)
    parts = []
    for part in range(3):
        mine = np.arange(len(shown.ts_ms)) % 3 == part
        parts.append(Teller(Displays(*(column[mine] for column in shown))).until(400))
    merged = parts[0].evidence.merged_with([one.evidence for one in parts[1:]])
    merged.table.since_ms = whole.evidence.table.since_ms
    assert merged.table.to_bytes() == whole.evidence.table.to_bytes()
    one, other = candidate_of([whole]), candidate_of(parts)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.curve.log_odds, other.curve.log_odds)
    assert candidate_of(parts[::-1]).curve.log_odds.tobytes() == other.curve.log_odds.tobytes()


def test_the_map_rises_within_a_slice_whatever_was_seen() -> None:
    """Ads of one slice keep their order."""
    rng = np.random.default_rng(0)
    shown = displays([50.0] * 300, 0.1, truth=lambda _s, z, _p: rng.normal(-2, 2, len(z)))
    curve = candidate_of([Teller(shown).until(300)])
    logits = np.linspace(-20, 20, 4_001)
    for path in np.unique(shown.paths(PLAN, np.arange(len(shown.ts_ms)))):
        assert (np.diff(curve.log_odds_of(logits, np.full(len(logits), path))) > 0).all()


def test_a_slice_of_few_clicks_stays_near_its_parent() -> None:
    """Twenty clicks where ten were expected are not believed; two thousand where one thousand were, are."""
    offsets = []
    for rate in (0.5, 50.0):
        shown = displays([rate] * 600, 0.1, truth=lambda _s, z, p: z + np.where(p == 2, np.log(2.0), 0.0), seed=1)
        curve = candidate_of([Teller(shown).until(600)])
        path = PLAN.paths(np.full((1, 1), 2, np.uint64), np.zeros((1, 0), np.float32))
        offsets.append(float(curve.offsets_of(path)[0]))
    few, many = offsets
    assert abs(few) < 0.15 < 0.3 < many


def test_bytes_give_back_a_state_that_goes_on_bit_equal_and_stay_small() -> None:
    """With trials under way; 1,000 displays a second in four slices take less than 100 kB."""
    shown = displays([1_000.0] * 300, 0.01, truth=sharp)
    teller = Teller(shown)
    head = teller.until(200)
    data = head.to_bytes()
    assert len(data) < 100_000
    again = Teller(shown, HeadCalibration.from_bytes(data, PLAN))
    again.now_ms = 200_000
    assert again.until(300).to_bytes() == teller.until(300).to_bytes()


def test_states_of_other_slices_or_damaged_ones_are_refused() -> None:
    """The message says what to do."""
    head = HeadCalibration(PLAN, CalibratorConfig())
    with pytest.raises(ValueError, match="other slices"):
        HeadCalibration.from_bytes(head.to_bytes(), SlicePlan())
    with pytest.raises(ValueError, match="damaged; drop it"):
        HeadCalibration.from_bytes(head.to_bytes()[:-1], PLAN)
    with pytest.raises(ValueError, match="examples waited for labels"):
        HeadCalibration.from_bytes(b"MSBN" + head.to_bytes()[4:], PLAN)


@pytest.mark.parametrize(
    ("field", "value"), [("half_life_clicks", 0.0), ("gate_half_life_clicks", 0.5), ("click_window_s", float("inf"))]
)
def test_settings_that_cannot_mean_anything_are_refused(field: str, value: float) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=f"{field}={value}"):
        CalibratorConfig(**{field: value})


def test_too_many_paths_become_other() -> None:
    """An id column of a thousand values keeps the largest, and the state bounded."""
    plan = SlicePlan(PLAN.slices, most_paths=8)
    evidence = MapEvidence()
    paths = np.repeat(np.arange(1, 101, dtype=np.int64), np.arange(1, 101))
    evidence.add_exposures(np.zeros(len(paths), np.int64), paths, np.zeros(len(paths), np.float32))
    evidence.bound_paths(plan)
    assert set(np.unique(evidence.table.paths()).tolist()) == {*range(94, 101), plan.other}
    assert evidence.expected(0) == len(paths) / 2
