"""Every learner on one stream, progressively: an impression is predicted before anything of it can be learned.

A learner learns the base days first. Then, at every learning step, it predicts the impressions that were displayed
since the last one, and only then learns the step's rows, which became known in between.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from calibration.logistic import sigmoid
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.features.spec import FeatureSpec
from learners.models.registry import REGISTRY, Entry, registered
from learners.protocol.learner import Learner
from replay.example_stream import ExampleStream, Span, Step, base_steps, online_steps
from replay.feeds import Feed, Lessons, delayed, feed_of, losses
from replay.progress import Progress
from replay.report import Outcomes, Report, bounded, report
from stream.learn.config import LearningConfig
from stream.records.examples import ExampleRows

CHUNK_ROWS = 8_192
_BASE_BATCH_ROWS = 128  # as base training

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One learner's line of the table."""

    name: str
    description: str
    config: Mapping[str, Any]
    report: Report
    learned_rows: int
    learn_s: float

    @property
    def rows_per_s(self) -> float:
        """Rows learned in a second of learning, the time of refits included."""
        return self.learned_rows / self.learn_s if self.learn_s else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        found = self.report
        days = [
            {"date": day["date"], "rows": day["rows"], "online": day["online"], "frozen": day["frozen"]}
            for day in found.days
        ]
        return {
            "learner": self.name,
            "description": self.description,
            "config": dict(self.config),
            "rows": found.rows,
            "online": found.online,
            "frozen": found.frozen,
            "days": days,
            "learned_rows": self.learned_rows,
            "learned_rows_per_s": self.rows_per_s,
        }


def chosen(names: Sequence[str] | None) -> dict[str, Entry]:
    """The named learners, or all of them if there are none named. Raises ValueError for a name that is not known."""
    return dict(REGISTRY) if names is None else {name.strip(): registered(name.strip()) for name in names}


def compare(
    stream: ExampleStream,
    spec: FeatureSpec,
    learners: Mapping[str, Entry],
    progress: Progress,
    *,
    utc_offset_h: float,
    click_window_s: float,
    learning: LearningConfig,
    loss_names: Sequence[str] = (),
    skip_missing: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Compared]:
    """Drive each learner over the stream, by each of the losses if any is named; the best AUC first.

    Raises
    ------
    ImportError
        A learner's library is not installed, unless ``skip_missing``: then it is said and left out.
    ValueError
        A loss that is not known, or that a learner of labels cannot be given.
    """
    shape, known = ModelShape.of(spec), losses(stream.base, click_window_s) if loss_names else {}
    done = []
    for name, loss_name in itertools.product(learners, loss_names or ("",)):
        entry, line_name = learners[name], f"{name}, {loss_name}" if loss_name else name
        try:
            learner = entry.make(shape)
            feed = delayed(learner, loss_name, known) if loss_name else feed_of(learner, click_window_s)
            rows = len(feed.base(stream.base).times_ms) + len(feed.online(stream.online).times_ms)
            with progress.counting(line_name, rows) as advance:
                drive = Drive(learner, feed, advance, clock)
                found = drive.over(stream, learning)
        except ImportError as error:
            if not skip_missing:
                raise
            progress.say(f"{name} is left out: {error}")
            continue
        line = Compared(
            name=line_name,
            description=entry.description,
            config=dataclasses.asdict(entry.config),
            report=report(found, utc_offset_h),
            learned_rows=drive.learned_rows,
            learn_s=drive.learn_s,
        )
        progress.say(f"{line_name}: AUC {line.report.online['auc']:.4f}, frozen {line.report.frozen['auc']:.4f}")
        done.append(line)
    return sorted(done, key=lambda line: -line.report.online["auc"])


class Drive:
    """One learner on its way over a stream."""

    def __init__(self, learner: Learner, feed: Feed, advance: Callable[[int], None], clock: Clock) -> None:
        self.learner = learner
        self.learned_rows, self.learn_s = 0, 0.0
        self._feed, self._advance, self._clock = feed, advance, clock

    def over(self, stream: ExampleStream, learning: LearningConfig) -> Outcomes:
        """Learn the base days, then predict and learn the online days."""
        base = self._feed.base(stream.base)
        for step in base_steps(base.times_ms, _BASE_BATCH_ROWS):
            self._learn(step, base)
        shown = stream.online.displayed()
        frozen = self._predict(shown.rows, slice(0, len(shown.rows)))
        p = self._p(self._online(stream.online, shown.rows, learning))
        return Outcomes(
            ts_ms=shown.rows.ts_ms,
            label=shown.clicked,
            p=p,
            raw_p=p,
            frozen_p=self._p(frozen),
            converted=shown.converted,
            conversion_p=np.full(len(p), np.nan),
        )

    def _online(self, span: Span, shown: ExampleRows, learning: LearningConfig) -> NDArray[np.float32]:
        lessons = self._feed.online(span)
        logits = np.empty(len(shown), np.float32)
        done = 0
        for step in online_steps(lessons.ends, span.watermarks_ms, learning):
            until = int(np.searchsorted(shown.ts_ms, step.from_ms))
            logits[done:until] = self._predict(shown, slice(done, until))
            done = until
            self._learn(step, lessons)
        logits[done:] = self._predict(shown, slice(done, len(shown)))
        return logits

    def _predict(self, shown: ExampleRows, which: slice) -> NDArray[np.float32]:
        out = np.empty(which.stop - which.start, np.float32)
        for start in range(0, len(out), CHUNK_ROWS):
            at = slice(which.start + start, min(which.start + start + CHUNK_ROWS, which.stop))
            out[start : start + CHUNK_ROWS] = self.learner.predict_many(Rows(shown.ids[at], shown.dense[at]))
        return out

    def _learn(self, step: Step, lessons: Lessons) -> None:
        began = self._clock()
        self.learner.advance(step.watermark_ms)
        lessons.learn(slice(step.start, step.stop))
        self.learn_s += self._clock() - began
        self.learned_rows += step.stop - step.start
        self._advance(step.stop - step.start)

    def _p(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return bounded(sigmoid(self._feed.logit(logits)))


def comparison_table(lines: Sequence[Compared], title: str) -> Table:
    """A terminal table, a line a learner."""
    drawn = Table(title=title, title_justify="left")
    days = [day["date"] for day in lines[0].report.days] if lines else []
    columns = ["learner", "rows", "AUC", "log loss", "NE", "O/E", *(f"AUC {day[5:]}" for day in days)]
    for name in [*columns, "frozen AUC", "rows/s"]:
        drawn.add_column(name, justify="left" if name == "learner" else "right", no_wrap=True)
    for line in lines:
        online = line.report.online
        drawn.add_row(
            line.name,
            f"{line.report.rows:,}",
            *(f"{online[key]:.4f}" for key in ("auc", "log_loss", "ne")),
            f"{online['observed_over_expected']:.3f}",
            *(f"{day['online']['auc']:.4f}" for day in line.report.days),
            f"{line.report.frozen['auc']:.4f}",
            f"{line.rows_per_s:,.0f}",
        )
    return drawn


def comparison_json(lines: Sequence[Compared], dataset: str) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {"dataset": dataset, "learners": [line.to_json() for line in lines]}
