"""What a learner learns of a span of the stream, row by row, and when each row has come.

A learner that is moved by gradients gets what arrives; one that needs labels gets impressions that are mature; the
losses for delayed clicks (`learners.models.losses`) each get the rows that they are made for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK
from learners.examples.terms import CLICK_HEAD, Terms
from learners.features.rows import Rows
from learners.models.losses import Loss, losses_of
from learners.protocol.learner import AdditiveLearner, Learner
from replay.example_stream import Span
from stream.records.examples import ExampleRows


class Lessons(NamedTuple):
    """N rows in the order in which they are learned.

    times_ms : (N,) ascending, event time of what each tells. ends : (R,) how many have come with each of the span's
    records. learn : one step on some of them.
    """

    times_ms: NDArray[np.int64]
    ends: NDArray[np.int64]
    learn: Callable[[slice], None]


class Feed(Protocol):
    """What of a stream a learner learns."""

    def base(self, span: Span) -> Lessons:
        """Of the base days, all of which are known."""
        ...

    def online(self, span: Span) -> Lessons:
        """Of days in which it predicts."""
        ...

    def logit(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """The log-odds of a click, from those that the learner predicts."""
        ...


@dataclass(frozen=True, slots=True)
class Labels:
    """Labelled rows: in the base days of all displays, then of each when it is as old as the click window."""

    learner: Learner
    click_window_s: float

    def base(self, span: Span) -> Lessons:
        """Each display with whether it was clicked in the end."""
        rows, clicked, _ = span.displayed()
        return Lessons(rows.ts_ms, span.ends, _labelled(self.learner, rows, clicked))

    def online(self, span: Span) -> Lessons:
        """Each display when it is mature, with what was known then."""
        rows, clicked, ends = span.matured(self.click_window_s)
        return Lessons(rows.ts_ms, ends, _labelled(self.learner, rows, clicked))

    def logit(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """As it is."""
        return logits.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Labelled rows in the base days, as base training has them; then each display and each click when it comes."""

    learner: AdditiveLearner
    click_window_s: float

    def base(self, span: Span) -> Lessons:
        """Each display with whether it was clicked in the end."""
        return Labels(self.learner, self.click_window_s).base(span)

    def online(self, span: Span) -> Lessons:
        """The two terms of the log loss apart."""
        rows, ends = span.learnable()
        terms = Terms.of_kinds(rows.kind, (CLICK_HEAD,))
        return Lessons(rows.known_ms, ends, lambda at: self.learner.learn_terms(_rows(rows, at), terms.take(at)))

    def logit(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """As it is."""
        return logits.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Delayed:
    """What a loss for delayed clicks sees, in the base days too."""

    learner: AdditiveLearner
    loss: Loss

    def base(self, span: Span) -> Lessons:
        """As online: the loss has its own idea of what the logit is."""
        return self.online(span)

    def online(self, span: Span) -> Lessons:
        """Each row at its age; it is weighed by what the model says of it before it learns."""
        shown = span.displayed().rows
        seen = self.loss.seen(_delays_s(span, shown))
        times_ms = shown.ts_ms[seen.display] + np.round(seen.age_s * 1000).astype(np.int64)
        order = np.lexsort((seen.positive, seen.display, times_ms))
        rows, positive, times_ms = shown.take(seen.display[order]), seen.positive[order], times_ms[order]

        def learn(at: slice) -> None:
            batch = _rows(rows, at)
            self.learner.learn_terms(batch, self.loss.terms(positive[at], self.learner.predict_many(batch)))

        ends = np.searchsorted(times_ms, np.maximum.accumulate(span.watermarks_ms))
        return Lessons(times_ms, ends, learn)

    def logit(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """As the loss reads it."""
        return self.loss.logit(logits)


def feed_of(learner: Learner, click_window_s: float) -> Feed:
    """What arrives, for a learner that learns the terms of the log loss apart; else labels."""
    return Arrivals(learner, click_window_s) if _learns_terms(learner) else Labels(learner, click_window_s)


def delayed(learner: Learner, name: str, known: Mapping[str, Loss]) -> Feed:
    """What a loss sees. Raises ValueError for one that is not among ``known``, or for a learner of labels."""
    if name not in known:
        raise ValueError(f"unknown loss {name!r}. Name some of {', '.join(known)}.")
    if not _learns_terms(learner):
        raise ValueError(
            f"{type(learner).__name__} learns labelled rows alone, which no loss but waiting has. Name learners that "
            "are moved by gradients with --learners, such as deepfm."
        )
    return Delayed(learner, known[name])


def losses(base: Span, click_window_s: float) -> dict[str, Loss]:
    """Every loss, those that wait set by the base days: half of the clicks have come at the elapsed time."""
    delays_s = _delays_s(base, base.displayed().rows)
    delays_s = delays_s[np.isfinite(delays_s)]
    if not len(delays_s):
        raise ValueError("no impression of the base days was clicked: no delay can be measured. Take more base days.")
    elapsed_s = float(np.median(delays_s))
    share = float((delays_s <= elapsed_s).mean())
    real_after_s = max(click_window_s, 2 * elapsed_s)
    return losses_of(elapsed_s, share, window_s=click_window_s, real_after_s=real_after_s)


def _delays_s(span: Span, shown: ExampleRows) -> NDArray[np.float64]:
    """From each display to its click, infinite without one, (N,)."""
    clicks = span.examples.take(span.examples.kind == CLICK)
    order = np.argsort(clicks.impression_id)
    keys, delay_ms = clicks.impression_id[order], clicks.delay_ms[order]
    at = np.minimum(np.searchsorted(keys, shown.impression_id), max(len(keys) - 1, 0))
    if not len(keys):
        return np.full(len(shown), np.inf)
    return np.where(keys[at] == shown.impression_id, delay_ms[at] / 1000, np.inf)


def _learns_terms(learner: Learner) -> TypeGuard[AdditiveLearner]:
    return hasattr(learner, "learn_terms")


def _labelled(learner: Learner, rows: ExampleRows, clicked: NDArray[np.bool_]) -> Callable[[slice], None]:
    return lambda at: learner.learn_many(_rows(rows, at), clicked[at])


def _rows(rows: ExampleRows, at: slice) -> Rows:
    return Rows(rows.ids[at], rows.dense[at])
