"""Examples in the order in which their labels became known, cut into train, validation and holdout."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from learners.examples import Examples
from learners.kinds import CONVERSION

Index = NDArray[np.intp]
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Settled examples by ``known_ms``: validation and holdout are a true future of what lies before them."""

    train: Index
    validation: Index
    holdout: Index
    validation_from_ms: int  # labels of train rows are what was known before
    holdout_from_ms: int

    @property
    def rows(self) -> int:
        """Settled examples in all."""
        return len(self.train) + len(self.validation) + len(self.holdout)


def split_by_time(examples: Examples, *, validation_share: float, holdout_share: float) -> Split:
    """Cut off the newest ``holdout_share``, and before it ``validation_share``, of the settled examples.

    Rows of one ``known_ms`` stay together, on the newer side of a cut.

    Raises
    ------
    ValueError
        Too few settled examples for three parts.
    """
    settled, known_ms = examples.settled(), examples.columns["known_ms"]
    ordered = settled[np.argsort(known_ms[settled], kind="stable")]
    times = known_ms[ordered]
    held_out, validated = int(len(ordered) * holdout_share), int(len(ordered) * validation_share)
    cuts = [len(ordered) - held_out - validated, len(ordered) - held_out]
    if held_out and validated:
        cuts = [int(np.searchsorted(times, times[cut])) for cut in cuts]
    if not (held_out and validated and 0 < cuts[0] < cuts[1]):
        raise ValueError(
            f"{len(ordered)} settled examples leave {validated} to validate and {held_out} to hold out, at "
            f"validation_share={validation_share} and holdout_share={holdout_share}, or too few to learn: the base "
            "could not be judged. Archive more examples."
        )
    train, validation, holdout = np.split(ordered, cuts)
    return Split(
        train=train,
        validation=validation,
        holdout=holdout,
        validation_from_ms=int(times[cuts[0]]),
        holdout_from_ms=int(times[cuts[1]]),
    )


def arrived(examples: Examples, span_ms: tuple[int, int], *, conversions: bool) -> Index:
    """What a stream would learn of a span of event time, its end not included, in its order.

    That is settled rows, corrections and, if asked, conversions.
    """
    known_ms = examples.columns["known_ms"]
    learned = (known_ms >= span_ms[0]) & (known_ms < span_ms[1])
    if not conversions:
        learned &= examples.columns["kind"] != CONVERSION
    index = np.flatnonzero(learned)
    return index[np.argsort(known_ms[index], kind="stable")]


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
    return (date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()) * _DAY_MS - utc_offset_s * 1000
