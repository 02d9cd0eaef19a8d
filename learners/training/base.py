"""Base training: a model from archived examples, the warm start of the stream.

::

    |<-------------- train -------------->|<- gap ->|<-- validation -->|<-- holdout -->|<- young ->|  displays by ts_ms
     one labelled row of an impression:              early stopping     report
     epochs, schedule, sampling
                                          |<------------ events replayed, as the stream would have ----------->|

Train rows are mature when the validation begins, ``click_window_s`` after the last of them; what is displayed from then
on is replayed event by event, and so is every click that comes from then on. The clicks that were on their way at that
moment are thus learned twice, in a label and when they come. A stream has always paid for displays whose clicks are on
their way; without those the replay would begin with displays alone and learn a fall of the click rate.

Displays younger than the window at the end of the archive may still be clicked: nothing is judged by them. They are
learned where a stream goes on behind the archive, which will learn their clicks; where none does, they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.delay_prior import CONVERSION_PRIOR, DelayPrior
from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.examples.examples import Examples, Index
from learners.examples.split import Split, arrived, split_by_time
from learners.examples.terms import CONVERSION_HEAD
from learners.features.shape import ModelShape
from learners.metrics.quality import Quality, quality
from learners.nn.heads import Heads
from learners.protocol.targets import outcomes
from learners.snapshots.snapshot import Snapshot
from learners.training.checkpoints import Checkpoints
from learners.training.conversion_shares import conversion_shares
from learners.training.distributed import ProcessGroup, SingleProcess
from learners.training.fit import Fit, FitConfig, score
from learners.training.replay import replay

_EVER = 2**62
_LEAST_START_P = 1e-4

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """How a base is trained. The defaults make it what the stream would have learned from the same examples."""

    validation_share: float = 0.1  # by these rows the best epoch is chosen
    holdout_share: float = 0.1  # the newest rows, of which the report is made
    fit: FitConfig = field(default_factory=FitConfig)
    replay_batch_rows: int = 128  # as the stream's batches
    conversion_horizon_s: float = 2_592_000.0  # no click converts later; the stream's, as the next two
    conversion_delay_median_s: float = CONVERSION_PRIOR.median_s  # what is believed of delays that are not measured
    conversion_delay_sigma: float = CONVERSION_PRIOR.sigma
    click_window_s: float = 600.0  # a display of that age counts as one whose click would have come; the stream's

    def __post_init__(self) -> None:
        for name in ("validation_share", "holdout_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must lie between 0 and 1: there would be nothing to learn, or "
                    "nothing to judge it by. Take 0.1."
                )
        if self.replay_batch_rows < 1:
            raise ValueError(
                f"replay_batch_rows={self.replay_batch_rows} must be at least 1: nothing would be learned."
            )
        self.conversion_prior  # noqa: B018  # raises for what is no prior
        if not self.conversion_horizon_s > 1:
            raise ValueError(
                f"conversion_horizon_s={self.conversion_horizon_s} must be longer than a second: no click could "
                "convert. Use the stream's MILLSTREAM_CONVERSION_HORIZON_S (2592000)."
            )
        if not self.click_window_s >= 0:
            raise ValueError(
                f"click_window_s={self.click_window_s} must not be negative: displays would be mature before they are. "
                "Use the stream's MILLSTREAM_CLICK_WINDOW_S (600)."
            )

    @property
    def conversion_prior(self) -> DelayPrior:
        """Log-normal. Raises ValueError for numbers that are no prior's."""
        return DelayPrior(median_s=self.conversion_delay_median_s, sigma=self.conversion_delay_sigma)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Base:
    """A trained base and what it was worth before it learned the rows it was judged by."""

    model: DeepFM
    split: Split
    epochs: tuple[Quality, ...]  # on the validation rows, after each epoch
    holdout: Quality  # of the model that had learned all before the holdout
    holdout_logits: NDArray[np.float32]
    replayed: tuple[Quality, Quality]  # progressive, of validation and holdout
    watermark_ms: int  # of the newest event
    newest_event_ms: int  # of the newest display

    @property
    def rows(self) -> int:
        """Mature exposures, learned or judged."""
        return self.split.rows

    def snapshot(self, offsets: Mapping[int, int] | None = None) -> Snapshot:
        """The base as snapshot version 1, the start of a stream's versions.

        ``offsets`` of the examples topic say where the stream goes on: the examples were all that stands before them.
        """
        self.model.table.take_changed()  # nobody holds an earlier version, to which these rows were news
        return Snapshot(
            version=1,
            created_from="base",
            watermark_ms=self.watermark_ms,
            newest_event_ms=self.newest_event_ms,
            shape=self.model.shape,
            config=self.model.config,
            state=self.model.state(),
            offsets=offsets or {},
        )


def train_base(
    examples: Examples,
    shape: ModelShape,
    *,
    model_config: DeepFMConfig | None = None,
    config: BaseConfig | None = None,
    goes_on: bool = False,
    group: ProcessGroup | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    progress: Progress = lambda done, total: None,
) -> Base:
    """Fit on the oldest examples, keep the best epoch, report on the newest, then learn all that came since the split.

    ``goes_on``: a stream will learn what comes behind the archive in its log, the clicks of its youngest displays
    among it.

    Raises
    ------
    ValueError
        Too few mature exposures to hold any out; checkpoints of another training.
    DivergenceError
        The rates are too high for these examples.
    """
    config, model_config = config or BaseConfig(), model_config or DeepFMConfig()
    plan = _plan(examples, model_config, config, goes_on=goes_on)
    examples, split = plan.examples, plan.split
    fit = Fit(
        examples,
        split,
        config.fit,
        heads=plan.heads,
        shares=plan.shares,
        group=group or SingleProcess(),
        checkpoints=checkpoints,
        device=device,
        report=lambda done, total: progress(done, total + plan.replayed_rows),
    )
    model = DeepFM(_at_known_rates(model_config, examples, split, plan.shares), shape)
    model, epochs = fit.run(model, resume=resume)
    replays = _Replays(plan, model, config.replay_batch_rows, fit.rows * len(epochs), progress)
    replays.learn(split.replay_from_ms, split.validation_from_ms)
    before_holdout = replays.learn(split.validation_from_ms, split.holdout_from_ms)
    logits = score(model, examples, split.holdout)
    of_holdout = replays.learn(split.holdout_from_ms, _EVER)
    progress(replays.total, replays.total)
    return Base(
        model=model,
        split=split,
        epochs=epochs,
        holdout=quality(logits, examples.clicked(split.holdout)),
        holdout_logits=logits,
        replayed=(before_holdout, of_holdout),
        watermark_ms=plan.watermark_ms,
        newest_event_ms=int(examples.columns["ts_ms"].max()),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """What a training learns from N examples, before any of it is learned."""

    examples: Examples  # without those that it leaves out
    split: Split
    heads: tuple[str, ...]
    shares: NDArray[np.float32] | None  # (N,) of a click's terms that its conversion head is paid; None: no such head
    watermark_ms: int  # of the newest event
    mature_until_ms: int  # displays before that are judged by
    labelled: NDArray[np.uint64]  # impressions whose click is in their label
    replayed_rows: int  # events from the split on


def _plan(examples: Examples, model_config: DeepFMConfig, config: BaseConfig, *, goes_on: bool) -> _Plan:
    """Raises ValueError for too few mature exposures to hold any out."""
    watermark_ms, click_window_ms = examples.end_ms, round(config.click_window_s * 1000)
    mature_until_ms = watermark_ms - click_window_ms + 1
    if not goes_on:
        examples = examples.displayed_before(mature_until_ms)
    split = split_by_time(
        examples,
        validation_share=config.validation_share,
        holdout_share=config.holdout_share,
        click_window_ms=click_window_ms,
        mature_until_ms=mature_until_ms,
    )
    heads = tuple(head.name for head in model_config.heads)
    converts = CONVERSION_HEAD in heads
    in_label = examples.clicked(split.train, before_ms=split.validation_from_ms)
    prior = config.conversion_prior
    return _Plan(
        examples=examples,
        split=split,
        heads=heads,
        shares=conversion_shares(examples, watermark_ms, config.conversion_horizon_s, prior) if converts else None,
        watermark_ms=watermark_ms,
        mature_until_ms=mature_until_ms,
        labelled=examples.columns["impression_id"][split.train[in_label]],
        replayed_rows=len(arrived(examples, (split.replay_from_ms, _EVER), conversions=converts).rows),
    )


class _Replays:
    """The replay of what came since the split, span by span; every process replays alone.

    Batches of the stream's size are too small to be shared.

    Parameters
    ----------
    batch_rows : of a step.
    fitted_rows : that were learned before, of all epochs.
    progress : told of every step.
    """

    def __init__(self, plan: _Plan, model: DeepFM, batch_rows: int, fitted_rows: int, progress: Progress) -> None:
        self._plan, self._model, self._batch_rows = plan, model, batch_rows
        self._progress = progress
        self._done = fitted_rows
        self.total = fitted_rows + plan.replayed_rows

    def learn(self, start_ms: int, stop_ms: int) -> Quality:
        """Learn a span of event time; the progressive quality of its mature displays."""
        plan = self._plan
        return replay(
            self._model,
            plan.examples,
            (start_ms, stop_ms),
            heads=plan.heads,
            batch_rows=self._batch_rows,
            mature_until_ms=plan.mature_until_ms,
            shares=plan.shares,
            labelled=plan.labelled,
            report=self._report,
        )

    def _report(self, rows: int) -> None:
        self._done += rows
        self._progress(self._done, self.total)


def known_users(examples: Examples, split: Split) -> NDArray[np.uint64]:
    """The user keys of the rows before the holdout, ascending."""
    before: Index = np.concatenate((split.train, split.gap, split.validation))
    return np.unique(examples.columns["user_key"][before])


def _at_known_rates(
    config: DeepFMConfig, examples: Examples, split: Split, shares: NDArray[np.float32] | None
) -> DeepFMConfig:
    """The config with heads that start at the rates of the train rows, where it leaves them open."""
    names = tuple(head.name for head in config.heads)
    targets = outcomes(examples, split.train, names, before_ms=split.validation_from_ms, shares=shares)
    labels = targets.labels.reshape(len(targets.labels), -1).astype(np.float32)
    terms = targets.terms(Heads(config.heads).terms_of_labels(labels, targets.weight))
    heads = []
    for at, head in enumerate(config.heads):
        rows, events = (float(part[:, at].sum(dtype=np.float64)) for part in terms)
        known = head.start_p is None and 0 < events < rows
        p = min(max(events / rows, _LEAST_START_P), 1 - _LEAST_START_P) if known else head.start_p
        heads.append(replace(head, start_p=p))
    return replace(config, heads=tuple(heads))
