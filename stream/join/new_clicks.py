"""First clicks since the last output: those on pending rows, which it exposes with them, and those on earlier ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.join.inputs import JoinInputs
from stream.join.late import LateClicks, click_rows
from stream.join.state.kernels import EXPOSED
from stream.join.state.state import JoinState
from stream.join.state.waiting import Events
from stream.records.examples import ExampleRows
from stream.records.topics import CLICKS


class NewClicks:
    """Clicks by what they named."""

    def __init__(self, inputs: JoinInputs, state: JoinState) -> None:
        self._inputs = inputs
        self._state = state
        self._clicks: list[Events] = []  # on pending rows
        self._rows: list[NDArray[np.int64]] = []  # their indices
        self._late: list[LateClicks] = []

    @property
    def rows(self) -> NDArray[np.int64]:
        """The indices of the pending rows that were clicked."""
        return np.concatenate(self._rows) if self._rows else np.zeros(0, np.int64)

    def add(self, clicks: Events, references: NDArray[np.int64]) -> None:
        """Clicks and the rows that they named, (B,); the columns of exposed ones are in the log."""
        exposed = references >= EXPOSED
        if exposed.any():
            late = clicks.take(exposed)
            offsets = self._inputs.offsets_of(CLICKS, late.record)
            self._late.append(LateClicks(late, offsets, *self._state.in_log(references[exposed])))
        if not exposed.all():
            self._clicks.append(clicks.take(~exposed))
            self._rows.append(references[~exposed])

    @property
    def late(self) -> int:
        """How many clicks there are on rows that were exposed earlier."""
        return sum(len(part.clicks) for part in self._late)

    def take(self, exposures: ExampleRows, clicked_at: NDArray[np.int64]) -> ExampleRows:
        """The clicks on the pending `rows`, which are ``clicked_at`` among the exposures."""
        rows = exposures.take(clicked_at)
        if not self._clicks:
            return rows
        clicks, self._clicks, self._rows = Events.joined(self._clicks), [], []
        return click_rows(rows, clicks)

    def take_late(self) -> LateClicks | None:
        """The clicks on rows that were exposed earlier."""
        late, self._late = self._late, []
        return LateClicks.joined(late) if late else None
