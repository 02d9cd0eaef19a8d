"""Progressive quality by day: the table that the backtest, the player and the demo share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from calibration.logistic import sigmoid
from calibration.reliability import observed_over_expected
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.metrics.quality import auc, log_loss, normalized_entropy
from stream.records.examples import ExampleRows

SMALLEST_P = 1e-7  # float32 rounds probabilities this near to 0 and 1 to them


class Displayed(NamedTuple):
    """B displayed impressions, each once, and what became of them in the end."""

    rows: ExampleRows  # their exposures
    clicked: NDArray[np.bool_]  # (B,)
    converted: NDArray[np.bool_]  # (B,)


def displayed(examples: ExampleRows) -> Displayed:
    """One row of each impression of a stream's examples, in the order of display."""
    rows = examples.take(examples.kind == EXPOSURE)
    rows = rows.take(np.argsort(rows.ts_ms, kind="stable"))
    clicked, converted = (
        np.isin(rows.impression_id, examples.impression_id[examples.kind == kind]) for kind in (CLICK, CONVERSION)
    )
    return Displayed(rows, clicked, converted)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """B displayed impressions with their final label and what each model had predicted beforehand.

    ts_ms : (B,) display time. label : (B,) bool, clicked in the end.
    p : (B,) calibrated online prediction; raw_p : the same before calibration; frozen_p : the base model's.
    converted : (B,) bool, in the end. conversion_p : (B,) online prediction of that given a click; NaN: none was made.
    """

    ts_ms: NDArray[np.int64]
    label: NDArray[np.bool_]
    p: NDArray[np.float64]
    raw_p: NDArray[np.float64]
    frozen_p: NDArray[np.float64]
    converted: NDArray[np.bool_]
    conversion_p: NDArray[np.float64]

    def where(self, mask: NDArray[np.bool_]) -> Outcomes:
        """The masked rows."""
        return Outcomes(*(getattr(self, field.name)[mask] for field in fields(self)))


def outcomes(found: Displayed, frozen_logit: NDArray[np.float32]) -> Outcomes:
    """Outcomes of displayed impressions, scored as they were logged; ``frozen_logit`` is (B,)."""
    rows = found.rows
    return Outcomes(
        ts_ms=rows.ts_ms,
        label=found.clicked,
        p=bounded(rows.p.astype(np.float64)),
        raw_p=sigmoid(rows.logit),
        frozen_p=sigmoid(frozen_logit),
        converted=found.converted,
        conversion_p=bounded(rows.conversion_p.astype(np.float64)),
    )


def bounded(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities apart from 0 and 1."""
    return np.clip(p, SMALLEST_P, 1 - SMALLEST_P)


def quality(label: NDArray[np.bool_], p: NDArray[np.float64]) -> dict[str, float]:
    """AUC, log loss, normalised entropy and observed over expected of one set of predictions."""
    logits = np.log(p) - np.log1p(-p)
    return {
        "auc": auc(logits, label),
        "log_loss": log_loss(logits, label),
        "ne": normalized_entropy(logits, label),
        "observed_over_expected": observed_over_expected(label, p),
    }


@dataclass(frozen=True, slots=True)
class Report:
    """Quality in all and by local day. ``facts`` holds what only the run itself knows (freshness, versions, ...).

    ``conversion`` is that of P(conversion | click) over the clicked impressions, where the model that served has such a
    head; its ``observed_over_expected`` is over all displays, of conversions to Σ p · P(conversion | click).
    """

    rows: int
    online: dict[str, float]
    raw: dict[str, float]
    frozen: dict[str, float]
    days: list[dict[str, Any]]
    conversion: dict[str, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "rows": self.rows,
            "online": self.online,
            "online_before_calibration": self.raw,
            "frozen": self.frozen,
            **({} if self.conversion is None else {"conversion": self.conversion}),
            "days": self.days,
            **self.facts,
        }


def report(found: Outcomes, utc_offset_h: float) -> Report:
    """The quality of a run, by local day and in all.

    Raises
    ------
    ValueError
        When there is no displayed impression at all.
    """
    if not len(found.ts_ms):
        raise ValueError("no impression was displayed: there is nothing to report. Did the replay reach the workers?")
    day = (found.ts_ms + round(utc_offset_h * 3_600_000)) // 86_400_000
    days = []
    for number in np.unique(day).tolist():
        rows = found.where(day == number)
        date = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=number)).date().isoformat()
        days.append({"date": date, "rows": len(rows.ts_ms), **_qualities(rows)})
    return Report(rows=len(found.ts_ms), days=days, **_in_all(found))


def _qualities(rows: Outcomes) -> dict[str, dict[str, float]]:
    return {
        "online": quality(rows.label, rows.p),
        "online_before_calibration": quality(rows.label, rows.raw_p),
        "frozen": quality(rows.label, rows.frozen_p),
    }


def _in_all(rows: Outcomes) -> dict[str, Any]:
    found = _qualities(rows)
    return {
        "online": found["online"],
        "raw": found["online_before_calibration"],
        "frozen": found["frozen"],
        "conversion": _of_conversions(rows),
    }


def _of_conversions(rows: Outcomes) -> dict[str, float] | None:
    predicted = np.isfinite(rows.conversion_p)
    clicked = predicted & rows.label
    if not clicked.any():
        return None
    expected = float((rows.p * rows.conversion_p)[predicted].sum())
    of_displays = float(rows.converted[predicted].sum()) / expected
    found = quality(rows.converted[clicked], rows.conversion_p[clicked])
    return {"rows": int(clicked.sum()), **found, "observed_over_expected": of_displays}


COLUMNS = {"AUC": "auc", "log loss": "log_loss", "NE": "ne", "O/E": "observed_over_expected"}


def quality_table(found: Report, title: str) -> Table:
    """A terminal table: two lines a day (online and frozen), then all days."""
    drawn = Table(title=title, title_justify="left")
    for name in ("day", "rows", "model", *COLUMNS, "O/E uncalibrated"):
        drawn.add_column(name, justify="left" if name in ("day", "model") else "right", no_wrap=True)
    total = {"date": "all", "rows": found.rows, "online": found.online, "frozen": found.frozen}
    for day in [*found.days, {**total, "online_before_calibration": found.raw}]:
        if day["date"] == "all":
            drawn.add_section()
        raw = f"{day['online_before_calibration']['observed_over_expected']:.3f}"
        drawn.add_row(day["date"], f"{day['rows']:,}", "online", *_cells(day["online"]), raw)
        drawn.add_row("", "", "frozen", *_cells(day["frozen"]), "")
    if found.conversion is not None:
        drawn.add_section()
        drawn.add_row("all", f"{found.conversion['rows']:,}", "conversion", *_cells(found.conversion), "")
    return drawn


def facts_table(found: Report) -> Table:
    """What a live run measured beside the quality."""
    facts = found.facts
    fresh = facts["freshness_s"]
    drawn = Table(show_header=False)
    drawn.add_row("freshness p50", f"{fresh['p50']:.2f} s from click produced to the first prediction that learned it")
    drawn.add_row("freshness p99", f"{fresh['p99']:.2f} s, over {fresh['count']:,} clicks")
    drawn.add_row("versions swapped", f"{facts['versions_swapped']:,} while answering")
    drawn.add_row(
        "replayed", f"{facts['requests']:,} requests and {facts['events']:,} events in {facts['wall_s']:.1f} s"
    )
    drawn.add_row("events per second", f"{facts['events_per_s']:,.0f}")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts["dead_letters_by_reason"].items())
    drawn.add_row("dead letters", f"{facts['dead_letters']:,}" + (f" ({reasons})" if reasons else ""))
    return drawn


def _cells(values: dict[str, float]) -> list[str]:
    return [
        f"{values[key]:.3f}" if key == "observed_over_expected" else f"{values[key]:.4f}" for key in COLUMNS.values()
    ]
