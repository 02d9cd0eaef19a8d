"""Whether a new base may take over: it must not be worse than the line that serves, on what came since its archive.

The rows after the base's offsets are new to it. It learns them on trial, as its line will, and each row's logit before
it was learned is compared with the one that serving logged for that row, which the old line had not learned either.
What counts are the newest mature impressions, the later half: what the base lacked at first is not counted against it.

Where too few came since, the newest mature rows that the log holds are taken, whenever they came. The base was trained
on those before its archive's end, which flatters it; one that collapsed is worse there, too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, EXPOSURE
from learners.metrics.quality import Quality, entropy, losses, quality

_MAX_TAIL_ROWS = 2_000_000  # 50 MB
_MIN_CLICKS = 100  # below, and with fewer impressions not clicked, what came since the archive is too little
_SINCE = "mature rows since the base's archive, the later half"
_SEEN = "the newest mature rows of the log, also those that the base was trained on: too few came since its archive"
_TOLERANCES = 0.03, 0.005, 0.005  # log O/E, normalised entropy, AUC: that much worse is no reason


class Scored(NamedTuple):
    """Rows of a line's tail, each (B,)."""

    kind: NDArray[np.uint8]
    impression_id: NDArray[np.uint64]
    ts_ms: NDArray[np.int64]  # display time
    served: NDArray[np.float32]  # the serving line's logit
    logit: NDArray[np.float32]  # the new line's, before it learned the row


class Tail:
    """The newest rows of a tail, in bounded memory."""

    def __init__(self, most_rows: int = _MAX_TAIL_ROWS) -> None:
        self._parts: deque[Scored] = deque()
        self._rows, self._most_rows = 0, most_rows

    def add(self, part: Scored) -> None:
        """In the order in which they were learned."""
        self._parts.append(part)
        self._rows += len(part.kind)
        while self._rows - len(self._parts[0].kind) >= self._most_rows:
            self._rows -= len(self._parts.popleft().kind)

    def rows(self) -> Scored | None:
        """All rows kept; None for nothing."""
        if not self._parts:
            return None
        return Scored(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The figures of both lines on the same impressions, and why the new one is worse; "" where it is not."""

    serving: Quality
    base: Quality
    clicks: int
    judged_on: str
    worse: str

    def figures(self) -> dict[str, float | str]:
        """For the log."""
        named = {"serving": self.serving, "base": self.base}
        rows: dict[str, float | str] = {
            "judged_on": self.judged_on,
            "impressions": self.base.rows,
            "clicks": self.clicks,
        }
        return rows | {
            f"{line}_{name}": round(getattr(of, name), 4)
            for line, of in named.items()
            for name in ("observed_over_expected", "ne", "log_loss", "auc")
        }


def mature(rows: Scored, mature_until_ms: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The impressions displayed before that time, oldest first, and whether each was clicked; (N,) both."""
    found = np.flatnonzero((rows.kind == EXPOSURE) & (rows.ts_ms < mature_until_ms))
    found = found[np.argsort(rows.ts_ms[found], kind="stable")]
    return found, np.isin(rows.impression_id[found], rows.impression_id[rows.kind == CLICK])


def verdict(rows: Scored | None, mature_until_ms: int, *, seen: bool = False) -> Verdict | None:
    """Compare the lines on the newest half of the impressions displayed before ``mature_until_ms``.

    None where there are too few clicks to judge. ``seen``: rows that the base was trained on are among them, and there
    are no others: all count, and a click and an impression without one are enough; so few hide all but a collapse.
    """
    if rows is None:
        return None
    newest, clicked = mature(rows, mature_until_ms)
    if not seen:
        newest, clicked = newest[len(newest) // 2 :], clicked[len(newest) // 2 :]
    clicks = int(clicked.sum())
    if min(clicks, len(clicked) - clicks) < (1 if seen else _MIN_CLICKS):
        return None
    old, new = rows.served[newest], rows.logit[newest]
    serving, base = quality(old, clicked), quality(new, clicked)
    worse = "; ".join(_worse(serving, base, losses(new, clicked) - losses(old, clicked), clicks))
    return Verdict(serving, base, clicks, _SEEN if seen else _SINCE, worse)


def _worse(serving: Quality, base: Quality, excess: NDArray[np.float64], clicks: int) -> Iterable[str]:
    """Each figure that is worse by more than is tolerated and than its noise, two standard errors, explains."""
    level, ne, auc = _TOLERANCES
    old, new = (abs(math.log(of.observed_over_expected)) for of in (serving, base))
    if not new <= old + max(level, 2 / math.sqrt(clicks)):
        yield f"O/E {base.observed_over_expected:.3f} where the serving line has {serving.observed_over_expected:.3f}"
    noise = 2 * float(excess.std()) / math.sqrt(len(excess)) / entropy(clicks / len(excess))
    if not base.ne <= serving.ne + max(ne, noise):
        yield f"normalised entropy {base.ne:.4f} where it has {serving.ne:.4f}"
    if not base.auc >= serving.auc - max(auc, 0.5 / math.sqrt(clicks)):
        yield f"AUC {base.auc:.4f} where it has {serving.auc:.4f}"
