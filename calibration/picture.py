"""Before and after a correction, as a picture. Needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.comparison import Comparison, Line

SUFFIXES: Final = (".png", ".svg")
_BEFORE, _AFTER = "#b0413e", "#2a6f97"


class PictureError(ValueError):
    """A picture that cannot be drawn."""


def draw(comparison: Comparison, path: Path) -> None:
    """Write the reliability of both probabilities by decile, and O/E by slice; one of them where they are equal.

    Raises PictureError, OSError.
    """
    if path.suffix not in SUFFIXES:
        raise PictureError(f"--out {path}: suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}: name another.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureError(
            f"a picture needs matplotlib ({error}): pip install 'millstream[plot]', or leave --out away."
        ) from error
    panels = 1 + len(comparison.slices)
    figure = Figure(figsize=(5.0 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _reliability(axes[0], comparison.deciles)
    for panel, (name, lines) in zip(axes[1:], comparison.slices.items(), strict=True):
        _ratios(panel, name, lines)
    figure.savefig(path)


def _reliability(panel: Any, deciles: Sequence[Line]) -> None:
    observed = [line.observed_rate for line in deciles]
    before, after = [line.mean_before for line in deciles], [line.mean_after for line in deciles]
    ends = [min([*before, *after, 1.0]), max([*before, *after, 0.0])]
    panel.plot(ends, ends, color="#999999", linewidth=1, label="true")
    for name, color, p in _shown(before, after):
        panel.plot(p, observed, "o-", color=color, label=name)
    panel.set(
        xlabel="mean p", ylabel="observed rate", title="by decile of p before" if before != after else "by decile"
    )
    panel.legend()


def _ratios(panel: Any, name: str, lines: Sequence[Line]) -> None:
    positions = range(len(lines))
    panel.axhline(1.0, color="#999999", linewidth=1)
    before = [line.observed_over_expected_before for line in lines]
    after = [line.observed_over_expected_after for line in lines]
    shown = _shown(before, after)
    for which, color, ratios in shown:
        panel.plot(positions, ratios, "o", color=color, label=which)
    panel.set_xticks(list(positions), [line.name for line in lines], rotation=60, ha="right")
    panel.set(ylabel="O/E", title=f"by {name}")
    if len(shown) > 1:
        panel.legend()


def _shown(before: list[float], after: list[float]) -> list[tuple[str, str, list[float]]]:
    """Name, colour and values of each line: one where nothing was corrected."""
    if np.array_equal(before, after, equal_nan=True):
        return [("p", _AFTER, after)]
    return [("before", _BEFORE, before), ("after", _AFTER, after)]
