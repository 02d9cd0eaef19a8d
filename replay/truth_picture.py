"""O/E over time of every scenario, as a picture. Needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replay.truth_bounds import DAY, MINUTE
from replay.truth_report import Result, course

_PANEL_WIDTH_IN, _PANEL_HEIGHT_IN = 6.0, 1.9
_LEAST_OE, _MOST_OE = 0.5, 2.0


class PlotError(RuntimeError):
    """There is no matplotlib to draw with."""


def matplotlib_figure() -> Any:
    """The class of matplotlib's figures. Raises PlotError without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(
            f"a picture needs matplotlib ({error}): pip install 'millstream[plot]', or leave --out away."
        ) from error
    return Figure


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a picture to ``path``: a row a scenario, a column a rate, a line a seed. Raises PlotError."""
    scenarios = list(dict.fromkeys(result.job.scenario.name for result in results))
    rates = list(dict.fromkeys(result.job.rate for result in results))
    size_in = (_PANEL_WIDTH_IN * len(rates), _PANEL_HEIGHT_IN * len(scenarios) + 0.6)
    figure = matplotlib_figure()(figsize=size_in, layout="constrained")
    panels = figure.subplots(len(scenarios), len(rates), squeeze=False)
    for row, name in enumerate(scenarios):
        for column, rate in enumerate(rates):
            panel = panels[row][column]
            for result in results:
                if (result.job.scenario.name, result.job.rate) == (name, rate):
                    _lines(panel, result)
            panel.set_title(f"{name}, {rate}", fontsize=8, loc="left")
            panel.set_yscale("log")
            panel.set_ylim(_LEAST_OE, _MOST_OE)
            panel.set_yticks([0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0], ["0.5", "0.8", "0.9", "1", "1.1", "1.25", "2"])
            panel.minorticks_off()
            panel.tick_params(labelsize=7)
    panels[-1][0].set_xlabel("minutes (days: hours)", fontsize=8)
    figure.suptitle("O/E = Σ true p / Σ served p: calibrated (blue), raw (grey), launched ads (orange)", fontsize=9)
    figure.savefig(path, dpi=110)


def _lines(panel: Any, result: Result) -> None:
    days = result.job.days
    step = 60.0 if days else 1.0
    lines = course(result.job, result.trace, step)
    at = [line["minute"] / step for line in lines if line["minute"] is not None]
    panel.axhspan(*(DAY if days else MINUTE), color="tab:green", alpha=0.08)
    for name, colour, width in (
        ("raw", "grey", 0.8),
        ("conversion_calibrated" if days else "calibrated", "tab:blue", 1.0),
        ("launched_conversion_calibrated" if days else "launched_calibrated", "tab:orange", 1.0),
    ):
        values = [line.get(name) for line in lines]
        panel.plot(at, [float("nan") if value is None else value for value in values], color=colour, linewidth=width)
