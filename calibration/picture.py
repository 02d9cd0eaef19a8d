"""Before and after a correction, as a picture. Needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from calibration.comparison import Comparison, Line

SUFFIXES: Final = (".png", ".svg")
_BEFORE, _AFTER = "#b0413e", "#2a6f97"


class PictureError(ValueError):
    """A picture that cannot be drawn."""


def draw(comparison: Comparison, path: Path) -> None:
    """Write the reliability of both probabilities by decile, and O/E by slice. Raises PictureError, OSError."""
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
    panel.plot(before, observed, "o-", color=_BEFORE, label="before")
    panel.plot(after, observed, "o-", color=_AFTER, label="after")
    panel.set(xlabel="mean p", ylabel="observed rate", title="by decile of p before")
    panel.legend()


def _ratios(panel: Any, name: str, lines: Sequence[Line]) -> None:
    positions = range(len(lines))
    panel.axhline(1.0, color="#999999", linewidth=1)
    panel.plot(positions, [line.observed_over_expected_before for line in lines], "o", color=_BEFORE, label="before")
    panel.plot(positions, [line.observed_over_expected_after for line in lines], "o", color=_AFTER, label="after")
    panel.set_xticks(list(positions), [line.name for line in lines], rotation=60, ha="right")
    panel.set(ylabel="O/E", title=f"by {name}")
    panel.legend()
