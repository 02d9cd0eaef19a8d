"""Every learner on one stream, progressively: an impression is predicted before anything of it can be learned.

A learner learns the base days first. Then, at every learning step, it predicts the impressions that were displayed
since the last one, and only then learns the step's rows, which became known in between.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from learners.family import FAMILY, Member, member
from learners.metrics import probability
from learners.protocol import AdditiveLearner, Learner
from learners.rows import Rows
from learners.shape import ModelShape
from learners.spec import FeatureSpec
from learners.terms import CLICK_HEAD, Terms
from replay.example_stream import ExampleStream, Span, Step, base_steps, online_steps
from replay.progress import Progress
from replay.report import Outcomes, Report, bounded, outcomes, report
from stream.examples import ExampleRows
from stream.learning_config import LearningConfig

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


def chosen(names: Sequence[str] | None) -> dict[str, Member]:
    """The named learners, or all of them if there are none named. Raises ValueError for a name that is not known."""
    return dict(FAMILY) if names is None else {name.strip(): member(name.strip()) for name in names}


def compare(
    stream: ExampleStream,
    spec: FeatureSpec,
    learners: Mapping[str, Member],
    progress: Progress,
    *,
    utc_offset_h: float,
    click_window_s: float,
    learning: LearningConfig,
    skip_missing: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Compared]:
    """Drive each learner over the stream; the best AUC first.

    Raises
    ------
    ImportError
        A learner's library is not installed, unless ``skip_missing``: then it is said and left out.
    """
    shape = ModelShape.of(spec)
    done = []
    for name, entry in learners.items():
        total = len(stream.base.displayed().rows) + len(stream.online.learnable()[0])
        try:
            with progress.counting(name, total) as advance:
                drive = Drive(entry.make(shape), advance, clock, click_window_s=click_window_s)
                found = drive.over(stream, learning)
        except ImportError as error:
            if not skip_missing:
                raise
            progress.say(f"{name} is left out: {error}")
            continue
        line = Compared(
            name=name,
            description=entry.description,
            config=dataclasses.asdict(entry.config),
            report=report(found, utc_offset_h),
            learned_rows=drive.learned_rows,
            learn_s=drive.learn_s,
        )
        progress.say(f"{name}: AUC {line.report.online['auc']:.4f}, frozen {line.report.frozen['auc']:.4f}")
        done.append(line)
    return sorted(done, key=lambda line: -line.report.online["auc"])


class Drive:
    """One learner on its way over a stream.

    A learner that is moved by gradients learns what arrives, each display and each click when it comes; one that needs
    labels learns an impression when it is ``click_window_s`` old.
    """

    def __init__(
        self, learner: Learner, advance: Callable[[int], None], clock: Clock, *, click_window_s: float
    ) -> None:
        self.learner = learner
        self.learned_rows, self.learn_s = 0, 0.0
        self._advance, self._clock = advance, clock
        self._click_window_s = click_window_s

    def over(self, stream: ExampleStream, learning: LearningConfig) -> Outcomes:
        """Learn the base days, then predict and learn the online days."""
        base = stream.base.displayed()
        for step in base_steps(base.rows, _BASE_BATCH_ROWS):
            self._learn(step, _labelled(self.learner, base.rows, base.clicked))
        shown = stream.online.displayed()
        frozen = self._predict(shown.rows, slice(0, len(shown.rows)))
        online = outcomes(shown, frozen)
        p = bounded(probability(self._online(stream.online, shown.rows, learning)))
        return dataclasses.replace(
            online, p=p, raw_p=p, frozen_p=bounded(online.frozen_p), conversion_p=np.full(len(p), np.nan)
        )

    def _online(self, span: Span, shown: ExampleRows, learning: LearningConfig) -> NDArray[np.float32]:
        if _learns_terms(self.learner):
            rows, ends = span.learnable()
            learn = _arrivals(self.learner, rows)
        else:
            rows, clicked, ends = span.matured(self._click_window_s)
            learn = _labelled(self.learner, rows, clicked)
        logits = np.empty(len(shown), np.float32)
        done = 0
        for step in online_steps(ends, span.watermarks_ms, learning):
            until = int(np.searchsorted(shown.ts_ms, step.from_ms))
            logits[done:until] = self._predict(shown, slice(done, until))
            done = until
            self._learn(step, learn)
        logits[done:] = self._predict(shown, slice(done, len(shown)))
        return logits

    def _predict(self, shown: ExampleRows, which: slice) -> NDArray[np.float32]:
        out = np.empty(which.stop - which.start, np.float32)
        for start in range(0, len(out), CHUNK_ROWS):
            at = slice(which.start + start, min(which.start + start + CHUNK_ROWS, which.stop))
            out[start : start + CHUNK_ROWS] = self.learner.predict_many(Rows(shown.ids[at], shown.dense[at]))
        return out

    def _learn(self, step: Step, learn: Callable[[slice], None]) -> None:
        began = self._clock()
        self.learner.advance(step.watermark_ms)
        learn(slice(step.start, step.stop))
        self.learn_s += self._clock() - began
        self.learned_rows += step.stop - step.start
        self._advance(step.stop - step.start)


def _learns_terms(learner: Learner) -> TypeGuard[AdditiveLearner]:
    return hasattr(learner, "learn_terms")


def _labelled(learner: Learner, rows: ExampleRows, clicked: NDArray[np.bool_]) -> Callable[[slice], None]:
    """Learns some of the rows by their labels."""
    return lambda at: learner.learn_many(Rows(rows.ids[at], rows.dense[at]), clicked[at])


def _arrivals(learner: AdditiveLearner, rows: ExampleRows) -> Callable[[slice], None]:
    """Learns some of the rows by the terms of their kinds."""
    terms = Terms.of_kinds(rows.kind, (CLICK_HEAD,))
    return lambda at: learner.learn_terms(Rows(rows.ids[at], rows.dense[at]), terms.take(at))


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
