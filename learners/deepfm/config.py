"""Sizes, rates and habits of a DeepFM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from learners.nn.heads import Head, Heads
from learners.table.config import TableConfig

PrecisionSetting = Literal["fp32", "bf16"]
_MOST_THREADS, _MOST_WIDTH = 256, 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepFMConfig:
    """Defaults chosen on six days of KuaiRand-Pure by progressive AUC and log loss, and with known truth at CTR 1 %.

    ``accumulator_half_life_s`` is off: what is best depends on how fast ids change. Over a simulated month of 200 ads,
    3 days took 11 % off the excess log loss of the last ten days where effects moved by 0.1 a day, 8 % at 0.3 a day,
    and cost 16 % where nothing moved; 10 days took off 7 % and 3 %, and cost 2 %.

    ``batch_norm`` and ``dropout`` are for base models that pass over their examples in large shuffled batches. Online
    they stay off: the statistics of a batch of a hundred impressions, most of them of a few users, are those of the
    users and not of the stream, so that a row's logit would depend on its neighbours and differ between learning and
    serving; and where every row is learned once there is nothing to overfit, so dropout only adds noise.
    """

    dim: Annotated[int, Gt(0)] = 16
    """Numbers of an id's vector."""
    hidden: tuple[int, ...] = (64, 32)
    """Widths of the MLP; as good as (256, 128) where every row is seen once, at a third of the time."""
    heads: tuple[Head, ...] = (Head("click"),)
    """What is predicted: name, given, hidden, start_p of each; see `learners.nn.heads.Head`."""
    vector_rate: Annotated[float, Gt(0)] = 0.005
    """Row-wise Adagrad of the vectors; a vector twice as fast follows the day less than a slow one."""
    weight_rate: Annotated[float, Gt(0)] = 0.05
    """Of the first-order weights, which must answer to a few impressions; see `scaled_weight_rate`."""
    vector_beta: Annotated[float, Gt(0)] = 1e-4
    """What the vectors' accumulators start from: a tenth of the usual root mean square of a gradient."""
    weight_beta: Annotated[float, Gt(0)] = 1.0
    """The weights': a click's gradient. An exposure, of gradient p, must not move an id as far as a click."""
    dense_rate: Annotated[float, Gt(0)] = 3e-4
    """Adam of the MLP and the biases; 1e-3 is as good online."""
    full_batch_rows: Annotated[int, Gt(0)] = 128
    """The dense rate is that of such batches; with fewer rows it falls by their root."""
    init_scale: Annotated[float, Gt(0)] = 0.01
    """Standard deviation of a new vector: an unseen id must hardly move the logit."""
    seed: int = 0
    """Of the start values."""
    admit_after: int = 1
    """Sightings before an id has a row of its own, 1 to 255."""
    expire_after_s: float | None = None
    """Event time unseen after which an id loses its row, at least 64; unset: never."""
    max_rows: int | None = 20_000_000
    """Ids, 2 GB at dim 16; the longest unseen go first. None, from Python: no bound."""
    accumulator_half_life_s: float | None = None
    """Event time in which a row forgets half of its gradients' size; unset: never."""
    start_from_default: bool = False
    """A new id starts where its column's default row stands."""
    precision: PrecisionSetting = "fp32"
    """Of the GEMMs of learning; bf16 pays with AMX and layers of 256 or wider."""
    threads: Annotated[int, Gt(0), Le(_MOST_THREADS)] = 1
    """Changes no bits."""
    batch_norm: bool = False
    """Batch norm of the hidden layers; for base models."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of each hidden layer's outputs that is left out while learning; for base models."""

    def __post_init__(self) -> None:
        rates = ("vector_rate", "weight_rate", "vector_beta", "weight_beta", "dense_rate", "init_scale")
        for name in ("dim", *rates, "full_batch_rows", "threads"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be positive and finite: the model could not learn. Raise it.")
        if any(width < 1 for widths in (self.hidden, *self.tower_widths) for width in widths):
            raise ValueError(f"hidden={self.hidden} must hold positive widths: a layer of 0 passes nothing on.")
        if max((self.dim, *self.hidden, *(width for widths in self.tower_widths for width in widths))) > _MOST_WIDTH:
            raise ValueError(
                f"dim={self.dim} and the widths {self.hidden}, {self.tower_widths} must be at most {_MOST_WIDTH}: no "
                "machine could hold the layers between them. Lower them."
            )
        if self.threads > _MOST_THREADS:
            raise ValueError(
                f"threads={self.threads} must be at most {_MOST_THREADS}: each has gradients and buffers of its own. "
                "Take the machine's cores."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1): with 1 nothing passes. Take 0.1.")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision} must be fp32 or bf16: no other is known. Take fp32.")
        Heads(self.heads)
        _ = self.table

    @property
    def table(self) -> TableConfig:
        """The part of it that the embedding table is made with. Raises ValueError for one that makes none."""
        return TableConfig(
            admit_after=self.admit_after,
            expire_after_s=self.expire_after_s,
            max_rows=self.max_rows,
            accumulator_half_life_s=self.accumulator_half_life_s,
            init_scale=self.init_scale,
            start_from_default=self.start_from_default,
            seed=self.seed,
        )

    @property
    def tower_widths(self) -> tuple[tuple[int, ...], ...]:
        """The hidden widths of each head's MLP."""
        return tuple(self.hidden if head.hidden is None else head.hidden for head in self.heads)

    @property
    def scaled_weight_rate(self) -> float:
        """``weight_rate`` is for events as often as not; with rate p it is divided by twice √(p·(1 − p)).

        A weight's Adagrad steps are rate·g / √(n·p·(1 − p)) after n rows, and the log-odds that a row is evidence for
        g / (p·(1 − p)): the same share of them at every p needs a rate that grows as 1 / √(p·(1 − p)). Measured: best
        are 0.2 at a CTR of 1 %, 0.1 at 6.5 %, 0.05 at 43 %.
        """
        return self.weight_rate / self._event_deviation

    @property
    def scaled_dense_rate(self) -> float:
        """``dense_rate`` is for events as often as not; with rate p it is multiplied by twice √(p·(1 − p)).

        A batch of n rows tells n·p·(1 − p) about the level, and Adam moves by as much whatever it tells: a level that
        is to remember the same number of clicks at every p needs a rate that falls with the root of that, as it falls
        with the root of the rows (`learners.nn.optimiser.Adam`).
        """
        return self.dense_rate * self._event_deviation

    @property
    def _event_deviation(self) -> float:
        """The standard deviation of an event of the first head's rate, over that of one as often as not."""
        p = self.heads[0].start_p or 0.5
        return 2 * math.sqrt(p * (1 - p))

    @property
    def regularised(self) -> bool:
        """Whether learning differs from predicting by batch norm or dropout."""
        return self.batch_norm or self.dropout > 0
