"""One scenario on simulated time: the world serves, shows and clicks; the product's cores join, learn and calibrate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from replay.marketplace import EPOCH
from replay.truth_base import BaseKind, TrainedBase
from replay.truth_cores import Cores, Relabel, conversion_scores
from replay.truth_history import history_before
from replay.truth_inputs import EventsOnTheirWay
from replay.truth_trace import COLUMNS, EARLY_S, Early, Job, Trace
from replay.truth_world import Requests, World, WorldConfig
from serving.ranking import Scored
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS

START_MS = 1_000 * 86_400 * (EPOCH.toordinal() - 719_163)  # 719,163: 1970-01-01
SMALLEST_P = 1e-7  # float32 rounds probabilities this near to 0 and 1 to them
DISPLAY_DELAY_MS = 300  # after serving


def run(job: Job, bases: Mapping[BaseKind, TrainedBase], *, relabel: Relabel | None = None) -> Trace:
    """Run a job to its end. The same job gives the same bits.

    bases : of all its `Job.bases`. relabel : stands between join and learner, for tests.
    """
    return _Run(job, bases, relabel).to_end()


class _Run:
    """The state of a running job."""

    def __init__(self, job: Job, bases: Mapping[BaseKind, TrainedBase], relabel: Relabel | None) -> None:
        scenario, rate = job.scenario, job.rate
        self.job, self.scenario = job, scenario
        launch = scenario.launch
        config = WorldConfig(
            seed=job.seed, ctr=rate.ctr, launched_ads=launch.ads if launch else 0, late_share=scenario.late_share,
            conversion_delay=scenario.conversion_delay,
        )  # fmt: skip
        self.world = world = World(config)
        self._shifts = {1.0: 0.0}
        self.cores = Cores(
            world.spec, bases[job.base()].model(), START_MS, learn_interval_s=scenario.tick_s, relabel=relabel
        )
        self._later_base = bases[job.bases()[-1]]
        self._launched = np.arange(config.live_ads, config.live_ads + config.launched_ads)
        self._ways = {topic: EventsOnTheirWay() for topic in (IMPRESSIONS, CLICKS, CONVERSIONS)}
        self._clicks_come_s = 0.0
        self._request_id = 1
        if not scenario.fresh:
            history_before(world, self.cores, self._ways, job.displays_per_s, START_MS, conversions=job.days)

    def to_end(self) -> Trace:
        """All ticks of the scenario."""
        tick_s = self.scenario.tick_s
        starts_s = np.arange(round(self.scenario.minutes * 60 / tick_s), dtype=np.float64) * tick_s
        sums = np.zeros((len(starts_s), len(COLUMNS)))
        early = None
        for tick, start_s in enumerate(starts_s.tolist()):
            self._keep_or_take_base(start_s / 60)
            sums[tick] = self._serve(tick, start_s)
            self._learn(start_s + tick_s)
            if start_s + tick_s == EARLY_S and not self.job.days:
                early = self.cores.early(START_MS)
        trace = Trace(starts_s, dict(zip(COLUMNS, sums.T, strict=True)), stopped=tuple(self.cores.stopped))
        if early is None:
            return trace
        measured, clicks, until_ms = early
        came = trace.over(0.0, (until_ms - START_MS) / 1000)
        to_come = max(came["clicks"] - clicks, 0.0)
        return trace._replace(early=Early(measured, came["clicks"] / came["p"], to_come**0.5 / came["p"]))

    def _keep_or_take_base(self, minute: float) -> None:
        """From its split on keep what the new base has not learned; at its minute go over to it."""
        later = self.scenario.new_base
        if later is None:
            return
        if minute == later.split_minute:
            self.cores.keep_tail = True
        elif minute == later.minute:
            self.cores.take_base(self._later_base.model())

    # ---------------------------------------------------------------------------------------------------------- serve

    def _serve(self, tick: int, start_s: float) -> NDArray[np.float64]:
        """Serve, show and click one tick; return its sums."""
        minute, slots = start_s / 60, self.world.config.slots
        self.world.click_shift = self._shift(self.scenario.ctr_at(minute))
        rng = self.world.rng(tick)
        mean = self.job.displays_per_s * self.scenario.tick_s * self.scenario.traffic_at(minute) / slots
        count = int(rng.poisson(mean))
        if not count:
            return np.zeros(len(COLUMNS))
        launch = self.scenario.launch
        launched = launch is not None and minute >= launch.minute
        requests = self.world.requests(
            rng, count, self.scenario.candidates or slots, self._launched if launched else None,
            launch.share if launch and launched else 0.0,
        )  # fmt: skip
        second_ms = np.sort(rng.integers(0, round(self.scenario.tick_s * 1000), count))
        ids = self.world.encoded(requests, self._request_id, START_MS + round(start_s * 1000) + second_ms)
        self._request_id += count
        scored = self.cores.score(ids)
        positions = self._won(requests, scored)
        return self._show(rng, requests.take(positions), scored, positions)

    def _won(self, requests: Requests, scored: Scored) -> NDArray[np.intp]:
        """The candidates that are shown, (R, K), first slot first."""
        count, candidates = requests.ads.shape
        slots = self.world.config.slots
        if not self.scenario.candidates:
            return np.broadcast_to(np.arange(candidates), (count, candidates))
        worth = scored.p.reshape(count, candidates).astype(np.float64) * self.world.bid[requests.ads]
        return np.argsort(-worth, axis=1, kind="stable")[:, :slots]

    def _show(
        self, rng: np.random.Generator, shown: Requests, scored: Scored, positions: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Show what won, let the users react, and put on its way what they do."""
        count, slots = positions.shape
        candidates = scored.encoded.row_count // count
        rows = (np.arange(count)[:, None] * candidates + positions).ravel()
        true, buys = (
            probability(shown).ravel()
            for probability in (self.world.click_probability, self.world.conversion_probability)
        )
        in_order = np.argsort(rows)  # a served record keeps the order of the rows
        rows, true, buys = rows[in_order], true[in_order], buys[in_order]
        served = scored if slots == candidates else scored.take(rows)
        self.cores.served(served)
        reactions = self.world.react(rng, true, buys)
        user_key = served.ids.user_key[served.encoded.row_request]
        display_ms = served.ids.ts_ms[served.encoded.row_request] + DISPLAY_DELAY_MS
        position = np.tile(np.arange(slots), count)[in_order]
        impression_id = served.impression_id
        self._ways[IMPRESSIONS].add(display_ms, impression_id, user_key, position)
        for topic, which, delay_ms, value in (
            (CLICKS, reactions.clicked, reactions.click_delay_ms, 0.0),
            (CONVERSIONS, reactions.converted, reactions.conversion_delay_ms, reactions.value),
        ):
            if topic != CONVERSIONS or self.job.days:
                self._ways[topic].add(display_ms[which] + delay_ms, impression_id[which], user_key[which], value=value)
        fresh = np.isin(shown.ads.ravel()[in_order], self._launched)
        return self._sums(served, true, true * buys, fresh, len(reactions.clicked))

    def _sums(
        self,
        served: Scored,
        true: NDArray[np.float64],
        buy_true: NDArray[np.float64],
        fresh: NDArray[np.bool_],
        clicks: int,
    ) -> NDArray[np.float64]:
        p, raw = _clipped(served.p), _clipped(_sigmoid(served.logit))
        buy = [np.zeros(6)]
        if self.job.days:
            conversion_logit, conversion_p = conversion_scores(served)
            of_buy = np.stack([buy_true, p * conversion_p, raw * _sigmoid(conversion_logit)])
            buy = [of_buy.sum(axis=1), of_buy[:, fresh].sum(axis=1)]
        of_click = np.stack([true, p, raw])
        return np.concatenate((
            [len(true), clicks],
            of_click.sum(axis=1),
            [_loss(true, p), _loss(true, raw)],
            [fresh.sum()],
            of_click[:, fresh].sum(axis=1),
            *buy,
        ))  # fmt: skip

    def _shift(self, factor: float) -> float:
        """What the true log-odds are shifted by, to make the click rate ``factor`` times as high."""
        if factor not in self._shifts:
            self._shifts[factor] = self.world.shift_to(self.job.rate.ctr * factor)
        return self._shifts[factor]

    # ---------------------------------------------------------------------------------------------------------- learn

    def _learn(self, now_s: float) -> None:
        """Deliver what the topics hold by now, and learn what the join makes of it."""
        lag_s = self.scenario.clicks_lag_at(now_s / 60)
        self._clicks_come_s = max(self._clicks_come_s, now_s - lag_s if lag_s >= 0 else 0.0)
        for topic, way in self._ways.items():
            come_s = self._clicks_come_s if topic == CLICKS else now_s
            self.cores.events(topic, way.take_until(START_MS + come_s * 1000))
        now_ms = START_MS + round(now_s * 1000)
        self.cores.learn(*self.cores.join(now_ms))


def _clipped(p: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(p.astype(np.float64), SMALLEST_P, 1 - SMALLEST_P)


def _sigmoid(logit: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logit.astype(np.float64))))


def _loss(true: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    """Σ expected log loss under the true probabilities."""
    return float(-(true * np.log(p) + (1 - true) * np.log1p(-p)).sum())
