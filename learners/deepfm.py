"""DeepFM over one hashed embedding table, learned online.

H. Guo, R. Tang, Y. Ye, Z. Li, X. He, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction",
IJCAI 2017, equations 1-4, with dense inputs beside the ids: they enter the first order and the MLP, not the FM.
Shapes: B rows, F id columns of the feature spec of which E are embedded, D = dim, K dense inputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from learners.checks import check_finite, checked_labels, checked_weight
from learners.delta import Delta, DeltaError
from learners.dense import Adam, DenseParameters
from learners.rows import Rows
from learners.shape import ModelShape
from learners.table import HashedTable, RowGradients, TableState


class DivergenceError(ArithmeticError):
    """The gradient of a batch is not finite; the model was left as it was before the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepFMConfig:
    """Sizes and learning rates; defaults chosen on six days of KuaiRand-Pure by progressive AUC and log loss."""

    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)  # as good as (256, 128) where every row is seen once, at a third of the time
    table_rows: int = 2**20  # 80 MB at dim 16; of a hundred thousand ids in use one in ten shares its row
    vector_rate: float = 0.005  # row-wise Adagrad; twice as fast a vector follows the day less than a slow one
    weight_rate: float = 0.05  # a first-order weight must answer to a few impressions: ten times the vectors' rate
    table_epsilon: float = 1e-8
    dense_rate: float = 3e-4  # Adam; 1e-3 is as good online
    init_scale: float = 0.01  # of the vectors: an unseen id must hardly move the logit
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "vector_rate", "weight_rate", "table_epsilon", "dense_rate", "init_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be positive and finite: the model could not learn. Raise it.")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden={self.hidden} must hold positive widths: a layer of 0 passes nothing on.")


class _Forward(NamedTuple):
    """What the backward pass needs of the forward pass."""

    rows: NDArray[np.int64]  # (B, E) table rows
    inputs: list[torch.Tensor]  # the input of each MLP layer; the first is (B, E·D + K)
    sums: torch.Tensor  # (B, D) sum of a row's vectors
    logits: torch.Tensor  # (B,)


class DeepFM:
    """Logit = first order + FM + MLP; learns by row-wise Adagrad (table) and Adam (all else) on the log loss.

    Deterministic: the same batches give the same bits on the same machine and torch build. For that the constructor
    sets torch to one thread, in the whole process; scale by processes. A row scored alone may differ in the last bit
    from the same row scored in a batch, because the GEMM then adds in another order.

    The backward pass is written out: at 64 rows it takes 60 % of autograd's time. The tests hold it against autograd.

    Parameters
    ----------
    config
        Sizes and rates.
    shape
        What the feature spec says about ids and dense inputs.
    """

    def __init__(self, config: DeepFMConfig, shape: ModelShape) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.shape = shape
        self.table = HashedTable(rows=config.table_rows, dim=config.dim, seed=config.seed, init_scale=config.init_scale)
        self._columns = np.array(shape.embedded, np.intp)
        self._embedded_width = len(shape.embedded) * config.dim
        widths = (self._embedded_width + shape.dense, *config.hidden, 1)
        self._layers = len(widths) - 1
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (shape.dense,)}
        for layer in range(self._layers):
            shapes |= {
                f"mlp.{layer}.weight": (widths[layer + 1], widths[layer]),
                f"mlp.{layer}.bias": (widths[layer + 1],),
            }
        self.dense = DenseParameters(shapes)
        self._adam = Adam(len(self.dense.values))
        self._start_mlp()

    def _start_mlp(self) -> None:
        """He et al. 2015 for ReLU layers; the output layer at half of it, so that early logits stay near 0."""
        generator = np.random.default_rng((self.config.seed, 1))  # not the table's stream
        for layer in range(self._layers):
            weight = self.dense.value[f"mlp.{layer}.weight"].numpy()
            scale = math.sqrt(2 / weight.shape[1]) * (1 if layer < self._layers - 1 else 0.5)
            weight[...] = generator.standard_normal(weight.shape, dtype=np.float32) * np.float32(scale)

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32. Changes nothing.

        Raises
        ------
        ValueError
            Widths that are not the feature spec's.
        """
        self._check_widths(rows)
        return self._forward(rows).logits.numpy()

    def learn_many(self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None) -> None:
        """One step on B rows; the gradient of row i is scaled by ``weight[i]`` (default 1).

        The table's gradient is the sum over the batch, the dense one the mean.

        Raises
        ------
        ValueError
            An empty batch, wrong widths or lengths, labels outside {0, 1}, dense inputs or weights that are not
            finite, negative weights. The model is untouched.
        DivergenceError
            A gradient that is not finite. The model is untouched.
        """
        self._check_widths(rows)
        target = checked_labels(labels, len(rows.ids))
        scale = checked_weight(weight, len(rows.ids))
        check_finite("dense inputs", rows.dense, "Reject such rows before learning.")
        forward = self._forward(rows)
        gradients = self._backward(forward, target, scale)
        self._check_finite(forward, gradients)
        self._adam.step(self.dense.values, self.dense.gradients, self.config.dense_rate)
        rates = (self.config.vector_rate, self.config.weight_rate)
        self.table.update(gradients, rates=rates, epsilon=self.config.table_epsilon)

    def _check_widths(self, rows: Rows) -> None:
        ids, dense = rows.ids.shape, rows.dense.shape
        if ids[1:] != (self.shape.id_columns,) or dense != (ids[0], self.shape.dense):
            raise ValueError(
                f"ids {ids} and dense {dense} must be (B, {self.shape.id_columns}) and (B, {self.shape.dense}): the "
                f"columns are those of feature spec {self.shape.spec_name} ({self.shape.spec_hash}). Encode the rows "
                "with it."
            )

    def _forward(self, rows: Rows) -> _Forward:
        table_rows = self.table.rows_of(rows.ids[:, self._columns])  # (B, E)
        values = self.table.gather(table_rows)  # (B, E, D + 1)
        batch, fields, dim = len(table_rows), len(self._columns), self.config.dim
        x = torch.empty((batch, self._embedded_width + self.shape.dense))
        x[:, : self._embedded_width].view(batch, fields, dim).copy_(values[:, :, :dim])
        x.numpy()[:, self._embedded_width :] = rows.dense
        embedded = x[:, : self._embedded_width]
        sums = embedded.view(batch, fields, dim).sum(1)
        pairs = 0.5 * (sums.square().sum(1) - embedded.square().sum(1))  # (B,), equation 2's inner products
        first = values[:, :, dim].sum(1) + x[:, self._embedded_width :] @ self.dense.value["linear.weight"]
        inputs = [x]
        for layer in range(self._layers - 1):
            inputs.append(self._affine(layer, inputs[-1]).relu_())
        deep = self._affine(self._layers - 1, inputs[-1])[:, 0]
        return _Forward(table_rows, inputs, sums, first + pairs + deep)

    def _affine(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        value = self.dense.value
        return torch.addmm(value[f"mlp.{layer}.bias"], x, value[f"mlp.{layer}.weight"].T)

    def _backward(self, forward: _Forward, target: torch.Tensor, scale: torch.Tensor) -> RowGradients:
        """Fill the dense gradients (mean over the batch) and return the table's (sum over the batch)."""
        gradient = self.dense.gradient
        error = (torch.sigmoid(forward.logits) - target).mul_(scale)  # (B,) ∂loss/∂logit
        x = forward.inputs[0]
        torch.mv(x[:, self._embedded_width :].T, error, out=gradient["linear.weight"])
        flow = error[:, None]  # (B, width of the layer's output)
        for layer in reversed(range(self._layers)):
            layer_input = forward.inputs[layer]
            torch.mm(flow.T, layer_input, out=gradient[f"mlp.{layer}.weight"])
            torch.sum(flow, 0, out=gradient[f"mlp.{layer}.bias"])
            flow = flow @ self.dense.value[f"mlp.{layer}.weight"]
            if layer:
                flow.mul_(layer_input > 0)
        self.dense.gradients.div_(len(error))
        batch, fields, dim = len(error), len(self._columns), self.config.dim
        vectors = x[:, : self._embedded_width].view(batch, fields, dim)
        table = torch.empty((batch, fields, dim + 1))
        # ∂FM/∂v = (sum of the row's vectors) − v
        fm = (forward.sums[:, None, :] - vectors).mul_(error[:, None, None])
        table[:, :, :dim] = fm.add_(flow[:, : self._embedded_width].view(batch, fields, dim))
        table[:, :, dim] = error[:, None]
        return self.table.summed(forward.rows, table)

    def _check_finite(self, forward: _Forward, gradients: RowGradients) -> None:
        """The squared norms must be finite: then so is every square that the optimisers accumulate."""
        dense = float(torch.dot(self.dense.gradients, self.dense.gradients))
        flat = gradients.sums.view(-1)
        table = float(torch.dot(flat, flat))
        if not (math.isfinite(dense) and math.isfinite(table)):
            largest = float(forward.logits.abs().max())
            raise DivergenceError(
                f"squared gradient norms {dense:g} (dense) and {table:g} (table) at a largest |logit| of {largest:g} "
                "must be finite: a step would make every weight NaN. Nothing was learned; go back to a snapshot or "
                f"lower vector_rate={self.config.vector_rate:g}, "
                f"weight_rate={self.config.weight_rate:g} and dense_rate={self.config.dense_rate:g}."
            )

    def changes(
        self, *, version: int, parent: int, watermark_ms: int, newest_event_ms: int, clicks_produced_ms: ArrayLike = ()
    ) -> Delta:
        """The rows that changed since the last call, and all dense weights, as a delta from parent to version."""
        rows = self.table.take_changed()
        return Delta(
            spec_hash=self.shape.spec_hash,
            version=version,
            parent=parent,
            watermark_ms=watermark_ms,
            newest_event_ms=newest_event_ms,
            clicks_produced_ms=np.array(clicks_produced_ms, np.int64),
            rows=rows.astype(np.uint32),
            values=self.table.values[rows],
            dense=self.dense.arrays(),
        )

    def apply(self, delta: Delta) -> None:
        """Take over a delta's weights: predictions become bit-equal to those of the model that made it.

        Whether the delta's parent is what this model holds is for the caller to know. A heartbeat changes nothing.

        Raises
        ------
        DeltaError
            Another feature spec, rows outside the table, other shapes. The model is untouched.
        """
        if delta.spec_hash != self.shape.spec_hash:
            raise DeltaError(
                f"delta {delta.version} is of feature spec {delta.spec_hash}, this model of {self.shape.spec_hash}: "
                "its weights mean other fields. Run the learner and serving with one spec."
            )
        if delta.is_heartbeat:
            return
        highest = int(delta.rows.max(initial=0))
        if highest >= self.table.capacity or delta.values.shape != (len(delta.rows), self.config.dim + 1):
            raise DeltaError(
                f"delta {delta.version} with {len(delta.rows)} rows up to {highest} and values {delta.values.shape} "
                f"does not fit a table of {self.table.capacity} rows of {self.config.dim} + 1 numbers. Reload a "
                "snapshot."
            )
        try:
            self.dense.load(delta.dense)
        except ValueError as error:
            raise DeltaError(f"delta {delta.version}: {error}") from error
        self.table.assign(delta.rows, delta.values)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that ``from_state`` needs to continue bit-equal: copies, touched rows only."""
        table = self.table.state()
        return {
            **{f"table.{name}": array for name, array in table._asdict().items()},
            **{f"dense.{name}": array for name, array in self.dense.arrays().items()},
            "adam.first": self._adam.first.numpy().copy(),
            "adam.second": self._adam.second.numpy().copy(),
            "adam.steps": np.array([self._adam.steps], np.int64),
        }

    @classmethod
    def from_state(cls, config: DeepFMConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """The model that ``state`` was taken from.

        Raises
        ------
        ValueError
            A state of another config or shape, or one that lacks arrays.
        """
        model = cls(config, shape)
        try:
            table = TableState(*(state[f"table.{name}"] for name in TableState._fields))
            first, second, steps = state["adam.first"], state["adam.second"], state["adam.steps"]
        except KeyError as error:
            raise ValueError(
                f"a model state without {error} cannot be continued: take it from DeepFM.state()."
            ) from error
        model.dense.load({name.removeprefix("dense."): a for name, a in state.items() if name.startswith("dense.")})
        model.table.restore(table)
        model._adam.first.numpy()[...] = first
        model._adam.second.numpy()[...] = second
        model._adam.steps = int(steps[0])
        return model

    def weights_sha256(self) -> str:
        """SHA-256 over the weights that a prediction depends on (no optimiser), in a fixed order."""
        table = self.table.state()
        digest = hashlib.sha256()
        for array in (table.rows, table.values, *(self.dense.arrays()[name] for name in sorted(self.dense.value))):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
