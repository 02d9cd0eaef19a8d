"""One step of the model: score the rows, then learn the terms that they and the clicks that are due pay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM, DivergenceError
from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD, Terms
from learners.protocol.state_names import prefixed, under
from stream.learn.balance import Balance
from stream.learn.click_level import ClickLevel
from stream.learn.click_silence import ClickSilence
from stream.learn.config import LearningConfig
from stream.learn.delayed_terms import DELAYED_COLUMNS, DelayedTerms
from stream.learn.state import check_layout
from stream.records.examples import ExampleRows
from stream.records.validity import term_weight
from stream.records.wire import ConversionDelays, JournalRecord

_LEVEL, _BALANCE, _DELAYED = "level.", "balance.", "delayed."  # arrays in a snapshot
_ROW, _TIMES = ("<u8", (-1,)), ("<i8", (-1,))
_LAYOUT: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "level.cohorts": ("<f8", (-1, -1)),
    "level.fresh": ("<f8", (-1, -1)),
    "level.clicks_ms": _TIMES,
    "level.clock": ("<i8", (2,)),
    "level.level": ("<f8", (2,)),
    "level.recent_by_scale": ("<f8", (3, -1)),
    "balance.owed": ("<f8", (1,)),
    "delayed.impression_id": _ROW,
    "delayed.clicked_ms": _TIMES,
    "delayed.due_ms": _TIMES,
    "delayed.clock": ("<i8", (2,)),
    "delayed.drawn_events": ("<i8", (1,)),
    "delayed.converted": _ROW,
    "delayed.converted_ms": _TIMES,
}


class Stepped(NamedTuple):
    """The outcome."""

    logits: NDArray[np.float32]  # (B,) before the step
    terms: Terms  # (B,) of the click head
    exposure_rate: float
    paid_clicks: int
    conversion_delays: ConversionDelays | None
    skipped: str  # why the weights are as they were; "" when the step was made


def check_step_state(state: Mapping[str, NDArray[Any]], id_columns: int, dense: int) -> None:
    """Raise what reading a step's state raises, a ValueError or LookupError, where it is none. Needs no model.

    id_columns, dense : of the rows that are learned.
    """
    check_layout(state, {**_LAYOUT, "delayed.ids": ("<u8", (-1, id_columns)), "delayed.dense": ("<f4", (-1, dense))})
    lengths = {name: len(state[_DELAYED + name]) for name in DELAYED_COLUMNS if _DELAYED + name in state}
    if lengths and (len(lengths) < len(DELAYED_COLUMNS) or len(set(lengths.values())) > 1):
        raise ValueError(f"waiting clicks have {lengths} values of {', '.join(DELAYED_COLUMNS)}: one of each they need")
    ClickLevel(under(_LEVEL, state))
    Balance(under(_BALANCE, state))
    config = LearningConfig()
    DelayedTerms(config.conversion_delays, most_rows=config.most_delayed_clicks, state=under(_DELAYED, state) or None)


class ModelStep:
    """Learns rows, and follows their click rate; with a `DelayedTerms` when the model has a conversion head."""

    def __init__(self, model: DeepFM, config: LearningConfig, state: Mapping[str, NDArray[Any]]) -> None:
        self.model = model
        self.early_clicks = 0
        self._config = config
        self._heads = model.heads.names
        self._level = ClickLevel(under(_LEVEL, state))
        self._balance = Balance(under(_BALANCE, state))
        self._delayed: DelayedTerms | None = None
        if CONVERSION_HEAD in self._heads:
            self._delayed = DelayedTerms(
                config.conversion_delays, most_rows=config.most_delayed_clicks, state=under(_DELAYED, state) or None
            )

    @property
    def delayed_clicks(self) -> int:
        """Clicks whose term of the conversion head is still to be paid."""
        return len(self._delayed) if self._delayed is not None else 0

    def state(self) -> dict[str, NDArray[Any]]:
        """What a restart needs beside the model."""
        level = prefixed(_LEVEL, self._level.state()) | prefixed(_BALANCE, self._balance.state())
        return level if self._delayed is None else level | prefixed(_DELAYED, self._delayed.state())

    def make(
        self, rows: ExampleRows, watermark_ms: int, silence: ClickSilence, like: JournalRecord | None = None
    ) -> Stepped:
        """Learn a batch at a watermark (0: none yet), by the config or ``like`` a run before this one did."""
        exposure_rate = like.exposure_rate if like else self._config.exposure_rate
        weight = term_weight(rows.kind, exposure_rate)
        features, terms = rows.rows(), Terms.of_kinds(rows.kind, self._heads, weight)
        if watermark_ms:
            self.model.advance(watermark_ms)
        logits = self.model.predict_many(features)
        paid, delays = 0, None
        if self._delayed is not None:
            delays = like.conversion_delays if like else self._config.conversion_delays
            self._delayed.use(delays or self._delayed.delays)
            features, terms, paid, early = self._delayed.step(
                rows,
                terms,
                self._heads,
                watermark_ms,
                most_paid=self._config.learn_batch_rows,
                paid=like.paid_clicks if like else None,
            )
            self.early_clicks += early
        click_terms = Terms.of_kinds(rows.kind, (CLICK_HEAD,), weight)
        try:
            self.model.learn_terms(features, self._balanced(terms), rate_grows=True)  # while it catches up
        except DivergenceError as error:
            return Stepped(logits, click_terms, exposure_rate, paid, delays, str(error))
        self._balance.learned(logits, click_terms)
        self._level.know_since(silence.known_since_ms)
        self.model.shift_level(self._level.step(rows, logits, click_terms, silence.law, watermark_ms))
        return Stepped(logits, click_terms, exposure_rate, paid, delays, "")

    def _balanced(self, terms: Terms) -> Terms:
        """The terms with displays of the click head, the first, by their weight."""
        exposure = terms.exposure.copy()
        exposure.reshape(len(exposure), -1)[:, 0] *= np.float32(self._balance.weight)
        return Terms(exposure, terms.event)
