"""Epochs over the train rows: early stopping, learning-rate schedule, sampling of non-clicks, checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM
from learners.examples.examples import Examples, Index
from learners.examples.split import Split
from learners.examples.terms import CLICK_HEAD
from learners.features.rows import Rows
from learners.metrics.quality import Quality, quality
from learners.protocol.targets import outcomes
from learners.training.checkpoints import Checkpoint, Checkpoints, Progress, State
from learners.training.distributed import ProcessGroup, SingleProcess, share_of
from learners.training.sampling import NegativeSampling
from learners.training.schedule import RateSchedule

_SCORED_AT_ONCE = 4096

Order = Literal["time", "shuffled"]
Report = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How the train rows are learned. The defaults are one pass in the order of display at constant rates.

    On KuaiRand-Pure that pass was the best base. A second pass over the same ids overfits: it cost 0.004 AUC of the
    stream that followed.
    """

    batch_rows: int = 128  # as the stream's batches: the rates were chosen for it
    epochs: int = 1
    order: Order = "time"  # shuffled only pays with several epochs
    patience: int = 1  # epochs without a lower validation log loss before training stops
    seed: int = 0  # of the shuffling and of the negatives that are left out
    schedule: RateSchedule = field(default_factory=RateSchedule)
    sampling: NegativeSampling = field(default_factory=NegativeSampling)
    checkpoint_steps: int = 5_000

    def __post_init__(self) -> None:
        if min(self.batch_rows, self.epochs, self.patience, self.checkpoint_steps) < 1:
            raise ValueError(
                f"batch_rows={self.batch_rows}, epochs={self.epochs}, patience={self.patience} and checkpoint_steps="
                f"{self.checkpoint_steps} must be at least 1: nothing would be learned. Raise them."
            )


class Fit:
    """One model's way through the train rows of a split.

    With several processes in ``group`` every one of them runs the same fit; their models stay bit-equal.
    """

    def __init__(
        self,
        examples: Examples,
        split: Split,
        config: FitConfig,
        *,
        heads: tuple[str, ...] = (CLICK_HEAD,),
        shares: NDArray[np.float32] | None = None,
        group: ProcessGroup | None = None,
        checkpoints: Checkpoints | None = None,
        device: torch.device | None = None,
        report: Report = lambda done, total: None,
    ) -> None:
        self._examples, self._split, self._config = examples, split, config
        self._group, self._checkpoints, self._report = group or SingleProcess(), checkpoints, report
        self._device = device or torch.device("cpu")
        known = {"before_ms": split.validation_from_ms}
        clicked = examples.clicked(split.train, **known)
        kept = config.sampling.kept(examples.columns["impression_id"][split.train], clicked, config.seed)
        self._train = split.train[kept]
        targets = outcomes(examples, self._train, heads, shares=shares, **known)
        self._targets = targets._replace(weight=config.sampling.weight(clicked[kept], targets.weight))
        self._validated = examples.clicked(split.validation)

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return len(self._train)

    def run(self, model: DeepFM, *, resume: bool = False) -> tuple[DeepFM, tuple[Quality, ...]]:
        """The model after its best epoch, on the CPU; and each epoch's quality on the validation rows.

        ``resume`` goes on from the newest checkpoint; the weights become those of a run that was never stopped.

        Raises
        ------
        CheckpointError
            The checkpoints are of other examples or settings.
        DivergenceError
            The rates are too high for these examples.
        """
        progress, best = Progress(fingerprint=self.fingerprint(model)), None
        if resume and self._checkpoints and (found := self._checkpoints.newest(progress.fingerprint)):
            progress, best = found.progress, found.best
            model = DeepFM.from_state(model.config, model.shape, found.state)
        if self._device.type != "cpu":
            model.move_to(self._device)
        while not self._finished(progress):
            progress = self._epoch(model, progress, best)
            if progress.best_epoch == progress.epoch - 1 and self._config.epochs > 1:
                best = model.state()
            self._keep(model, progress, best)
        state = model.state() if best is None else dict(best)
        return DeepFM.from_state(model.config, model.shape, state), progress.epochs

    def fingerprint(self, model: DeepFM) -> str:
        """SHA-256 over everything that the weights depend on: examples, settings, number of processes."""
        config = asdict(replace(self._config, checkpoint_steps=1))  # when to keep one does not matter
        settings = [config, asdict(model.config), model.shape.spec_hash, self._group.size, self._device.type]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for array in (self._train, self._split.validation, *self._targets, self._validated):
            digest.update(np.ascontiguousarray(array).tobytes())
        for name in ("impression_id", "ts_ms"):
            digest.update(np.ascontiguousarray(self._examples.columns[name]).tobytes())
        return digest.hexdigest()[:16]

    def _finished(self, progress: Progress) -> bool:
        stale = progress.epoch - 1 - progress.best_epoch >= self._config.patience
        return progress.epoch >= self._config.epochs or stale

    def _epoch(self, model: DeepFM, progress: Progress, best: State | None) -> Progress:
        """The rest of an epoch, then its judgement."""
        size, order = self._config.batch_rows, self._order(progress.epoch)
        times = self._times(order, progress.epoch)
        for start in range(progress.batch * size, len(order), size):
            stop = min(start + size, len(order))
            model.advance(int(times[stop - 1]))
            self._step(model, order[start:stop], self._config.schedule.factor(progress.step))
            progress = replace(progress, step=progress.step + 1, batch=progress.batch + 1)
            self._report(progress.epoch * len(order) + stop, self._config.epochs * len(order))
            if progress.step % self._config.checkpoint_steps == 0:
                self._keep(model, progress, best)
        found = quality(score(model, self._examples, self._split.validation), self._validated)
        lowest = not progress.epochs or found.log_loss < progress.epochs[progress.best_epoch].log_loss
        return replace(
            progress,
            epoch=progress.epoch + 1,
            batch=0,
            epochs=(*progress.epochs, found),
            best_epoch=progress.epoch if lowest else progress.best_epoch,
        )

    def _order(self, epoch: int) -> Index:
        """Indices of the train rows; an epoch's order depends on the seed and its number alone."""
        if self._config.order == "time":
            return np.arange(len(self._train))
        return np.random.default_rng((self._config.seed, epoch)).permutation(len(self._train))

    def _times(self, order: Index, epoch: int) -> NDArray[np.int64]:
        """Event time after each row of ``order``; it never goes back: a later epoch stands at the end of the first."""
        ts_ms = self._examples.columns["ts_ms"][self._train]
        return np.asarray(np.full(len(order), ts_ms.max()) if epoch else np.maximum.accumulate(ts_ms[order]))

    def _step(self, model: DeepFM, order: Index, rate_factor: float) -> None:
        index = self._train[order]
        rows, targets = rows_at(self._examples, index), self._targets.at(order)
        terms = targets.terms(model.terms_of_labels(rows, targets.labels, targets.weight))
        if len(index) < self._group.size or self._group.size == 1:  # too few to share: all do the same
            model.learn_terms(rows, terms, rate_factor=rate_factor)
            return
        gradients = model.gradients(rows, terms, share_of(self._group, len(index)))
        self._group.all_reduce(gradients.table)
        self._group.all_reduce(gradients.dense)
        model.step(gradients, len(index), rate_factor=rate_factor)

    def _keep(self, model: DeepFM, progress: Progress, best: State | None) -> None:
        if self._checkpoints and self._group.rank == 0:
            self._checkpoints.write(Checkpoint(progress=progress, state=model.state(), best=best))


def rows_at(examples: Examples, index: Index) -> Rows:
    """The rows of examples at ``index``."""
    return Rows(examples.rows.ids[index], examples.rows.dense[index])


def score(model: DeepFM, examples: Examples, index: Index) -> NDArray[np.float32]:
    """Logits of the examples at ``index``."""
    cuts = range(0, len(index), _SCORED_AT_ONCE)
    logits = [model.predict_many(rows_at(examples, index[at : at + _SCORED_AT_ONCE])) for at in cuts]
    return np.concatenate(logits) if logits else np.empty(0, np.float32)
