"""The level of the click rate, followed as fast as its clicks allow: a Kalman filter for one number, the output bias.

Adam moves every dense weight by about its rate in each step, whatever the step tells: a rate that is small enough for
a steady level takes minutes back to it after the click rate has doubled, or from a base that was trained at another.
The filter knows how well it knows. The bias b is a random walk in time, the clicks that come are Poisson, so that n
clicks more in a time t leave a variance of

    P' = (P + q·t) / (1 + (P + q·t)·I),    b' = b + P'·(O − E),    I = Σ p·(1 − p) = n where clicks are rare,

of b, with O clicks where E were expected (M. West, P. J. Harrison, H. S. Migon, "Dynamic Generalized Linear Models and
Bayesian Forecasting", JASA 1985; L. Fahrmeir, "Posterior Mode Estimation by Extended Kalman Filtering for Multivariate
Dynamic Generalized Linear Models", JASA 1992, for one state). Where one display of w is learned, it counts w times and
adds w·(w − 1)·p² to the variance of E, S in sum: I then tells no more than I² / (I + S) does.

P falls to √(q·t/I): many clicks a second are remembered for many clicks, few for a long time. Clicks that are no chance
by that (4 standard errors, over the last hundred or thousands of them) are a jump: P is put to its square. None at all
is no jump before one comes: it may be a silence (`stream.learn.click_silence`).

A display is expected to be clicked when clicks come, by the measured law of delays up to ``_WINDOW_MS``: so a start and
a ramp of the traffic move nothing. In total it pays its p once, and later clicks count, too: unbiased however late they
are, as long as traffic was the same then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.delay_law import DelayLaw
from calibration.logistic import sigmoid
from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import Terms
from stream.records.examples import ExampleRows

_BUCKET_MS = 1_000
_WINDOW_MS = 600_000  # in which a display pays its whole p
_WANDER_PER_MS = 0.02**2 / 3_600_000  # variance: 2 % in an hour, 10 % in a day
_START_VARIANCE = 0.025**2  # of a base's level: known as by 1,600 clicks
_RECENT = np.array([100.0, 400.0, 1_600.0, 6_400.0])  # clicks in which a jump of 40, 20, 10, 5 % is seen
_JUMP_ERRORS = 4.0  # one of them an hour and a half at 1,000 clicks a minute comes by chance, and costs little
_MOST_SHIFT = 1.0  # log-odds at once: the filter is linear, the click rate is not
# of a cohort: middle of its display second, Σ p, Σ p·(1 − p), the level it was scored at, the share paid, the variance
# that sampling its displays adds
_COLUMNS = 6
_LEAST = 1e-12  # of p and of information: a model that says 0 or 1 divides nothing by 0


class ClickLevel:
    """Says by how much the output bias is to be shifted. No clock: event time.

    Parameters
    ----------
    state : of a snapshot, to go on after it.
    """

    def __init__(self, state: Mapping[str, NDArray[Any]] | None = None) -> None:
        self._cohorts = np.zeros((0, _COLUMNS))
        self._fresh: list[NDArray[np.float64]] = []  # second, w·p, w·p·(1 − p), w·(w − 1)·p²: in no cohort yet
        self._clicks_ms = np.zeros(0, np.int64)  # that came ahead of the watermark
        self._since_ms, self._watermark_ms = 0, 0
        self._level, self._variance = 0.0, _START_VARIANCE
        self._recent = np.zeros((3, len(_RECENT)))  # decayed sums: clicks less expected, its variance, information
        if state:
            cohorts, fresh = state["cohorts"], state["fresh"]  # older ones lack the variance of sampling
            self._cohorts = np.pad(cohorts, [(0, 0), (0, _COLUMNS - cohorts.shape[1])])
            self._fresh, self._clicks_ms = [np.pad(fresh, [(0, 4 - len(fresh)), (0, 0)])], np.array(state["clicks_ms"])
            self._since_ms, self._watermark_ms = (int(at) for at in state["clock"])
            self._level, self._variance = (float(one) for one in state["level"])
            if "recent_by_scale" in state:  # not in older ones
                self._recent = np.array(state["recent_by_scale"])

    def state(self) -> dict[str, NDArray[Any]]:
        """What a restart needs: arrays, copies."""
        return {
            "cohorts": self._cohorts.copy(),
            "fresh": np.concatenate([np.zeros((4, 0)), *self._fresh], axis=1),
            "clicks_ms": self._clicks_ms.copy(),
            "clock": np.array([self._since_ms, self._watermark_ms], np.int64),
            "level": np.array([self._level, self._variance]),
            "recent_by_scale": self._recent.copy(),
        }

    def know_since(self, since_ms: int) -> None:
        """Displays before ``since_ms`` say nothing more: what became of them is not known."""
        if since_ms > self._since_ms:
            self._since_ms = since_ms
            self._cohorts, self._fresh, self._clicks_ms = self._cohorts[:0], [], self._clicks_ms[:0]

    def step(
        self, rows: ExampleRows, logits: NDArray[np.float32], terms: Terms, law: DelayLaw, watermark_ms: int
    ) -> float:
        """Take a learned batch in; what to add to the bias now that everything up to the watermark is known.

        ``logits`` are those before learning, ``terms`` the click head's, all (B,).
        """
        displays = np.flatnonzero(rows.kind == EXPOSURE)
        if not self._since_ms:
            if not len(displays):
                return 0.0
            self._since_ms = int(rows.ts_ms[displays].max())
        self._expose(rows.ts_ms[displays], logits[displays], terms.exposure[displays])
        clicks = rows.kind == CLICK
        counted = clicks & ((rows.ts_ms >= self._since_ms) | (rows.delay_ms > _WINDOW_MS))
        if counted.any():
            self._clicks_ms = np.concatenate([self._clicks_ms, rows.known_ms[counted]])
        if watermark_ms // _BUCKET_MS <= self._watermark_ms // _BUCKET_MS:
            return 0.0
        passed_ms = watermark_ms - self._watermark_ms if self._watermark_ms else 0
        self._watermark_ms = watermark_ms
        return self._filter(*self._arrived(law, passed_ms), passed_ms)

    def _expose(self, ts_ms: NDArray[np.int64], logits: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
        counts = ts_ms >= self._since_ms
        p = sigmoid(logits[counts])
        paid = p * weight[counts]
        sampling = np.maximum(paid * (paid - p), 0.0)
        self._fresh.append(np.stack([ts_ms[counts] // _BUCKET_MS, paid, paid * (1 - p), sampling]))

    def _take_fresh(self) -> None:
        """Displays since the last filtering into cohorts: one for each second, all of the level of now."""
        seconds, p, information, sampling = np.concatenate([np.zeros((4, 0)), *self._fresh], axis=1)
        self._fresh = []
        of, where = np.unique(seconds, return_inverse=True)
        fresh = np.zeros((len(of), _COLUMNS))
        fresh[:, 0], fresh[:, 3] = (of + 0.5) * _BUCKET_MS, self._level
        for column, values in ((1, p), (2, information), (5, sampling)):
            fresh[:, column] = np.bincount(where, values, len(of))
        self._cohorts = np.concatenate([self._cohorts, fresh])

    def _arrived(self, law: DelayLaw, passed_ms: int) -> tuple[float, float, float, float]:
        """Clicks until the watermark since the last time; expected at the level of now; information; S."""
        self._take_fresh()
        come = self._clicks_ms <= self._watermark_ms
        clicks, self._clicks_ms = float(np.count_nonzero(come)), self._clicks_ms[~come]
        start, p, information, level, paid, sampling = self._cohorts.T
        age_ms = np.maximum(self._watermark_ms - start, 0.0)
        # by the law of now, from the age at the last time on: what it has learned since is no news of those clicks
        before_ms = np.where(paid > 0, np.maximum(age_ms - passed_ms, 0.0), 0.0)
        share = np.minimum(law.share(np.stack([age_ms, before_ms])) / law.share(np.array([_WINDOW_MS])), 1.0)
        due = np.where(age_ms < _WINDOW_MS, np.minimum(share[0] - share[1], 1.0 - paid), 1.0 - paid)
        moved = np.exp((self._level - level) * information / np.maximum(p, _LEAST))
        self._cohorts[:, 4] += due
        self._cohorts = self._cohorts[age_ms < _WINDOW_MS]
        return clicks, float(due @ (p * moved)), float(due @ (information * moved)), float(due @ (sampling * moved**2))

    def _filter(self, clicks: float, expected: float, information: float, sampling: float, passed_ms: int) -> float:
        self._look_for_a_jump(clicks, expected, information, sampling)
        prior = self._variance + passed_ms * _WANDER_PER_MS
        certain = information / (information + sampling) if sampling else 1.0
        self._variance = prior / (1.0 + prior * information * certain)
        shift = min(max(self._variance * certain * (clicks - expected), -_MOST_SHIFT), _MOST_SHIFT)
        self._level += shift
        return shift

    def _look_for_a_jump(self, clicks: float, expected: float, information: float, sampling: float) -> None:
        kept = np.exp(-information / _RECENT)
        self._recent *= np.stack([kept, kept**2, kept])
        self._recent += np.array([[clicks - expected], [information + sampling], [information]])
        missed, variance, told = self._recent
        jumped = np.abs(missed) > _JUMP_ERRORS * np.sqrt(variance + 1.0)
        if clicks and jumped.any():
            first = int(jumped.argmax())
            size = abs(missed[first]) / max(told[first], _LEAST)
            self._variance = max(self._variance, float(min(size, _MOST_SHIFT)) ** 2)
            self._recent[:] = 0.0
