"""Impressions in the order of display, cut into train, validation and holdout; events in the order of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.examples import Examples, Index
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE

_DAY_MS = 86_400_000
_EVER = 2**62


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Exposures by ``ts_ms``: validation and holdout are a true future of what lies before them."""

    train: Index
    gap: Index  # between train and validation, of a click window: not yet mature when the validation begins
    validation: Index
    holdout: Index
    replay_from_ms: int  # displays of the gap
    validation_from_ms: int  # labels of train rows are what was known before
    holdout_from_ms: int

    @property
    def rows(self) -> int:
        """Exposures in all."""
        return sum(map(len, (self.train, self.gap, self.validation, self.holdout)))


def split_by_time(
    examples: Examples,
    *,
    validation_share: float,
    holdout_share: float,
    click_window_ms: int = 0,
    mature_until_ms: int = _EVER,
) -> Split:
    """Cut off the newest ``holdout_share``, and before it ``validation_share``, of the exposures.

    Rows of one ``ts_ms`` stay together, on the newer side of a cut. By the time of the display, not by the time at
    which something became known: at the end of a log that would be non-clicks alone. For the same reason train ends
    ``click_window_ms`` before the validation, and exposures from ``mature_until_ms`` on, whose clicks may be still to
    come, are in no part.

    Raises
    ------
    ValueError
        Too few exposures for three parts.
    """
    ts_ms = examples.columns["ts_ms"]
    mature = examples.exposures()
    mature = mature[ts_ms[mature] < mature_until_ms]
    ordered = mature[np.argsort(ts_ms[mature], kind="stable")]
    times = ts_ms[ordered]
    held_out, validated = int(len(ordered) * holdout_share), int(len(ordered) * validation_share)
    cuts = [len(ordered) - held_out - validated, len(ordered) - held_out]
    if held_out and validated:
        cuts = [int(np.searchsorted(times, times[cut])) for cut in cuts]
        cuts = [int(np.searchsorted(times, times[cuts[0]] - click_window_ms)), *cuts]
    if not (held_out and validated and cuts[0] > 0 and cuts[1] < cuts[2]):
        raise ValueError(
            f"{len(ordered)} mature exposures leave {validated} to validate and {held_out} to hold out, at "
            f"validation_share={validation_share} and holdout_share={holdout_share}, or too few to learn: the base "
            "could not be judged. Archive more examples, or lower the click window (--click-window-s) if all clicks of "
            "the archive's last displays are in it."
        )
    train, gap, validation, holdout = np.split(ordered, cuts)
    validation_from_ms = int(times[cuts[1]])
    return Split(
        train=train,
        gap=gap,
        validation=validation,
        holdout=holdout,
        replay_from_ms=validation_from_ms - click_window_ms,
        validation_from_ms=validation_from_ms,
        holdout_from_ms=int(times[cuts[2]]),
    )


class Arrivals(NamedTuple):
    """N events in the order of their times: what a stream would learn."""

    rows: Index  # (N,) among the examples
    kind: NDArray[np.uint8]  # (N,)
    time_ms: NDArray[np.int64]  # (N,) ascending

    def take(self, index: Index | slice) -> Arrivals:
        """Those of some of the events."""
        return Arrivals(self.rows[index], self.kind[index], self.time_ms[index])


def arrived(examples: Examples, span_ms: tuple[int, int], *, conversions: bool) -> Arrivals:
    """What a stream would learn of a span of event time, its end not included, in its order.

    Each display at ``ts_ms``, its click and, if asked, its first conversion at ``known_ms``; a labelled exposure is
    both a display and a click. Clicks and conversions of impressions that are not among the examples are left out: the
    model never paid for their display.
    """
    columns = examples.columns
    kind, known_ms, impression = columns["kind"], columns["known_ms"], columns["impression_id"]
    shown = examples.exposures()
    labelled = shown[columns["label"][shown] == 1]
    of_shown = np.isin(impression, impression[shown])
    clicks = np.flatnonzero((kind == CLICK) & of_shown & ~np.isin(impression, impression[labelled]))
    parts = [(shown, EXPOSURE, columns["ts_ms"]), (labelled, CLICK, known_ms), (clicks, CLICK, known_ms)]
    if conversions:
        converted = np.flatnonzero((kind == CONVERSION) & of_shown)
        converted = converted[np.argsort(known_ms[converted], kind="stable")]
        _, first = np.unique(impression[converted], return_index=True)
        parts.append((converted[first], CONVERSION, known_ms))
    index = np.concatenate([rows for rows, _, _ in parts])
    kinds = np.concatenate([np.full(len(rows), of, np.uint8) for rows, of, _ in parts])
    times = np.concatenate([at[rows] for rows, _, at in parts])
    order = np.lexsort((index, kinds, times))  # of one time: a display before its click
    order = order[(times[order] >= span_ms[0]) & (times[order] < span_ms[1])]
    return Arrivals(index[order], kinds[order], times[order])


def day_span_ms(since_day: str, until_day: str, utc_offset_s: int) -> tuple[int, int] | None:
    """The event times of local days from ``since_day`` to ``until_day``, both included; empty: without that bound.

    >>> day_span_ms("2026-01-05", "2026-01-05", 3600)
    (1767567600000, 1767654000000)

    Raises
    ------
    ValueError
        A day that is not YYYY-MM-DD, or a span that ends before it starts.
    """
    if not since_day and not until_day:
        return None
    start = _local_midnight_ms(since_day, utc_offset_s) if since_day else -(2**62)
    stop = _local_midnight_ms(until_day, utc_offset_s) + _DAY_MS if until_day else 2**62
    span = (start, stop)
    if span[0] >= span[1]:
        raise ValueError(
            f"--since {since_day} must not come after --until {until_day}: there is nothing in between. Swap them."
        )
    return span


def _local_midnight_ms(day: str, utc_offset_s: int) -> int:
    try:
        ordinal = date.fromisoformat(day).toordinal()
    except ValueError as error:
        raise ValueError(
            f"day {day!r} must be YYYY-MM-DD ({error}): no event could be told to lie before or after it. Correct it."
        ) from error
    return (ordinal - date(1970, 1, 1).toordinal()) * _DAY_MS - utc_offset_s * 1000
