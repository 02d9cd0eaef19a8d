"""Base training: a model from archived examples, the warm start of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from learners.archive import Examples
from learners.deepfm import DeepFM, DeepFMConfig
from learners.metrics import Quality, quality
from learners.rows import Rows
from learners.shape import ModelShape
from learners.snapshot import Snapshot

_SCORED_AT_ONCE = 4096

Order = Literal["time", "shuffled"]
Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """How a base is trained. The defaults make it what the stream would have learned from the same examples."""

    batch_rows: int = 128  # as the stream's batches: the rates were chosen for it
    epochs: int = 1  # a second pass over the same ids overfits: it cost 0.004 AUC of the stream that followed
    order: Order = "time"  # shuffled only pays with several epochs
    holdout_share: float = 0.1  # the newest rows, on which the report is made before they are learned too
    patience: int = 1  # epochs without a lower holdout log loss before training stops
    seed: int = 0  # of the shuffling

    def __post_init__(self) -> None:
        if self.batch_rows < 1 or self.epochs < 1 or self.patience < 1:
            raise ValueError(
                f"batch_rows={self.batch_rows}, epochs={self.epochs} and patience={self.patience} must be at least 1: "
                "nothing would be learned. Raise them."
            )
        if not 0 < self.holdout_share < 1:
            raise ValueError(
                f"holdout_share={self.holdout_share} must lie between 0 and 1: there would be nothing to learn, or "
                "nothing to judge it by. Take 0.1."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A trained base. ``holdout`` was measured before the holdout was learned, ``epochs`` likewise after each pass."""

    model: DeepFM
    holdout: Quality
    rows: int
    watermark_ms: int  # newest time at which a label became known
    newest_event_ms: int
    epochs: list[Quality] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """The base as snapshot version 1, the start of the stream's versions."""
        return Snapshot(
            version=1,
            created_from="base",
            watermark_ms=self.watermark_ms,
            newest_event_ms=self.newest_event_ms,
            shape=self.model.shape,
            config=self.model.config,
            state=self.model.state(),
        )


def train_base(
    examples: Examples,
    shape: ModelShape,
    *,
    model_config: DeepFMConfig | None = None,
    config: BaseConfig | None = None,
    progress: Progress = lambda done, total: None,
) -> Base:
    """Learn the oldest examples, judge on the newest, keep the best epoch, then learn the newest as well.

    Rows are in the order in which their labels became known, so the holdout is a true future.

    Raises
    ------
    ValueError
        Too few settled examples to hold any out.
    DivergenceError
        The rates are too high for these examples.
    """
    config = config or BaseConfig()
    settled, labels = examples.settled()
    by_time = np.argsort(examples.columns["known_ms"][settled], kind="stable")
    training = _Training(examples, settled[by_time], labels[by_time], config, progress)
    model, epochs = training.fit(DeepFM(model_config or DeepFMConfig(), shape))
    holdout = epochs[-1] if len(epochs) == 1 else training.judge(model)
    training.learn(model, training.tail)
    return Base(
        model=model,
        holdout=holdout,
        rows=len(settled),
        watermark_ms=int(examples.columns["known_ms"].max()),
        newest_event_ms=int(examples.columns["ts_ms"].max()),
        epochs=epochs,
    )


class _Training:
    """The settled rows in time order, cut into a head to learn and a tail to judge by."""

    def __init__(
        self,
        examples: Examples,
        index: NDArray[np.intp],
        labels: NDArray[np.bool_],
        config: BaseConfig,
        progress: Progress,
    ) -> None:
        held_out = int(len(index) * config.holdout_share)
        if held_out < 1 or held_out == len(index):
            raise ValueError(
                f"{len(index)} settled examples leave {held_out} to hold out at holdout_share={config.holdout_share}: "
                "the base could not be judged. Archive more examples."
            )
        self._rows, self._weight = examples.rows, examples.columns["weight"]
        self._index, self._labels = index, labels
        self._config, self._progress = config, progress
        places = np.arange(len(index))
        self.head, self.tail = places[:-held_out], places[-held_out:]
        self._done, self._total = 0, config.epochs * len(self.head) + held_out

    def fit(self, model: DeepFM) -> tuple[DeepFM, list[Quality]]:
        """The model after its best epoch, and what each epoch reached."""
        generator = np.random.default_rng(self._config.seed)
        epochs: list[Quality] = []
        best, best_epoch = model.state(), 0
        for epoch in range(self._config.epochs):
            shuffled = self._config.order == "shuffled"
            self.learn(model, generator.permutation(self.head) if shuffled else self.head)
            epochs.append(self.judge(model))
            if epoch == 0 or epochs[-1].log_loss < epochs[best_epoch].log_loss:
                best, best_epoch = model.state(), epoch
            elif epoch - best_epoch >= self._config.patience:
                break
        if best_epoch < len(epochs) - 1:
            model = DeepFM.from_state(model.config, model.shape, best)
        return model, epochs

    def learn(self, model: DeepFM, places: NDArray[np.intp]) -> None:
        """One pass over the rows at ``places``."""
        for batch in _cut(places, self._config.batch_rows):
            index = self._index[batch]
            model.learn_many(self._at(index), self._labels[batch], self._weight[index])
            self._done += len(batch)
            self._progress(self._done, self._total)

    def judge(self, model: DeepFM) -> Quality:
        """Quality on the tail, which is not learned."""
        logits = [model.predict_many(self._at(self._index[batch])) for batch in _cut(self.tail, _SCORED_AT_ONCE)]
        return quality(np.concatenate(logits), self._labels[self.tail])

    def _at(self, index: NDArray[np.intp]) -> Rows:
        return Rows(self._rows.ids[index], self._rows.dense[index])


def _cut(places: NDArray[np.intp], rows: int) -> Iterator[NDArray[np.intp]]:
    return (places[start : start + rows] for start in range(0, len(places), rows))
