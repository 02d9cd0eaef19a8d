"""DeepFM over one embedding table, learned online.

H. Guo, R. Tang, Y. Ye, Z. Li, X. He, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction",
IJCAI 2017, equations 1-4, with dense inputs beside the ids: they enter the first order and the MLP, not the FM.
Shapes: B rows, F id columns of the feature spec of which E are embedded, D = dim, K dense inputs, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from learners.deepfm.autograd_network import AutogradNetwork
from learners.deepfm.config import DeepFMConfig
from learners.deepfm.delta import Delta, DeltaError
from learners.deepfm.gradients import DivergenceError, Gradients
from learners.deepfm.model_state import ModelCopy, sha256_of, to_state
from learners.deepfm.network import Inputs, Network
from learners.deepfm.output_bias import OutputBiases
from learners.deepfm.state_checks import check_state
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.nn.optimiser import Adam
from learners.protocol.batch import check_finite, check_widths, checked_labels, checked_terms, checked_weight
from learners.protocol.state_names import prefixed, under
from learners.table.table import EmbeddingTable

__all__ = ["DeepFM", "DeepFMConfig", "DivergenceError", "Gradients"]

_MOMENTUM = np.float32(0.1)  # of batch norm's running statistics, as in torch


class DeepFM:
    """Logit = first order + FM + MLP; learns by row-wise Adagrad (table) and Adam (all else) on the log loss.

    ``config.heads`` beyond the first are MLPs of their own over the same embeddings and dense inputs,
    `learners.nn.heads`.

    Deterministic: the same batches give the same bits on the same machine and torch build, whatever ``threads`` is.
    For that the constructor sets torch to one thread, in the whole process; ``threads`` of its own share the chunks of
    a batch. A row scored alone may differ in the last bit from the same row scored in a batch, because the GEMM then
    adds in another order. An instance is for one thread at a time.

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
        self.table = EmbeddingTable(config.dim, shape.default_keys, config.table)
        self._columns = np.array(shape.embedded, np.intp)
        kind = AutogradNetwork if config.regularised else Network
        self.network: Network | AutogradNetwork = kind(config, columns=len(self._columns), dense=shape.dense)
        self.dense = self.network.parameters
        self.heads = self.network.heads
        OutputBiases(config, self.dense.value).start_at_rates()
        self._adam = Adam(self.dense.learned_size, config.full_batch_rows)

    def move_to(self, device: torch.device) -> None:
        """Have the dense part on ``device`` from now on; states are exchanged freely with models that lie elsewhere."""
        network = AutogradNetwork(self.config, columns=len(self._columns), dense=self.shape.dense, device=device)
        network.parameters.load(self.dense.arrays())
        self.network, self.dense = network, network.parameters

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits of the first head, (B,) float32. Changes nothing.

        Raises
        ------
        ValueError
            Widths that are not the feature spec's.
        """
        logits: NDArray[np.float32] = self._logits(rows)[0]
        return logits

    def predict_heads(self, rows: Rows) -> NDArray[np.float32]:
        """Each head's own logit, (B, H), of P(head | given). ``heads.joint`` multiplies them along their chains.

        Raises
        ------
        ValueError
            Widths that are not the feature spec's.
        """
        return np.ascontiguousarray(self._logits(rows).T)

    def _logits(self, rows: Rows) -> NDArray[np.float32]:
        check_widths(rows, self.shape)
        found = self.table.find(rows.ids[:, self._columns])
        inverse = np.arange(found.size, dtype=np.int32).reshape(found.shape)
        return self.network.logits(Inputs(self.table.gather(found.reshape(-1)), inverse, rows.dense))

    def advance(self, event_ms: int) -> None:
        """Event time has moved on: ids unseen for ``expire_after_s`` lose their rows."""
        self.table.advance(event_ms)

    def learn_terms(self, rows: Rows, terms: Terms, *, rate_factor: float = 1.0, rate_grows: bool = False) -> None:
        """One step on B rows; the gradient of a row's logit is exposure·σ(z) − event, for each head its own.

        The gradients are sums over the batch; the dense rate is lower where batches are small,
        `learners.nn.optimiser.Adam`.

        Parameters
        ----------
        rows
            The batch.
        terms
            (B,) for a model of one head, else (B, H).
        rate_factor
            What all learning rates are multiplied by.
        rate_grows
            Whether the dense rate of batches of more than ``config.full_batch_rows`` is higher, too.

        Raises
        ------
        ValueError
            An empty batch, wrong widths or lengths, dense inputs or weights that are not finite, weights that are
            negative or huge. The model is untouched.
        DivergenceError
            A gradient that is not finite. Weights and optimiser are untouched; ids first met in this batch have been
            sighted, and keep the rows that they were given at their start values.
        """
        self.step(self.gradients(rows, terms), len(rows.ids), rate_factor=rate_factor, rate_grows=rate_grows)

    def shift_level(self, log_odds: float) -> None:
        """Add to the output bias of the first head: every logit of it moves by as much."""
        OutputBiases(self.config, self.dense.value).shift_first(log_odds)

    def learn_many(
        self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None, *, rate_factor: float = 1.0
    ) -> None:
        """``learn_terms`` of rows whose labels are known, see ``terms_of_labels``."""
        self.learn_terms(rows, self.terms_of_labels(rows, labels, weight), rate_factor=rate_factor)

    def terms_of_labels(self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None) -> Terms:
        """The weighted log loss of B labelled rows as terms, (B, H).

        Parameters
        ----------
        rows
            The batch.
        labels
            (B,) for a model of one head, else (B, H): whether it happened. A head with ``given`` learns only from the
            rows where that happened.
        weight
            (B,), or (B, H) where a row does not tell every head the same; default 1.

        Raises
        ------
        ValueError
            An empty batch, wrong widths or lengths, labels outside {0, 1}, weights that are not finite, negative or
            huge.
        """
        check_widths(rows, self.shape)
        count, heads = len(rows.ids), len(self.heads)
        target, scale = checked_labels(labels, count, heads), checked_weight(weight, count, heads)
        return self.heads.terms_of_labels(target.reshape(count, heads), scale)

    def gradients(self, rows: Rows, terms: Terms, part: slice | None = None) -> Gradients:
        """The first half of ``learn_terms``: admits the ids of all rows, and sums the gradients of ``rows[part]`` only.

        So processes that share a batch hold the same table; add up their gradients, then ``step`` in each.
        Raises ValueError as ``learn_terms`` does, the model untouched.
        """
        check_widths(rows, self.shape)
        terms = checked_terms(terms, len(rows.ids), len(self.heads))
        check_finite("dense inputs", rows.dense, "Reject such rows before learning.")
        lookup = self.table.admit(rows.ids[:, self._columns])
        inputs = Inputs(self.table.gather(lookup.unique), lookup.inverse, rows.dense)
        part = part or slice(None)
        table, dense = self.network.gradients(
            inputs.cut(part), terms.take(part), step=self._adam.steps, first_row=part.start or 0
        )
        return Gradients(lookup, table, dense)

    def step(
        self, gradients: Gradients, batch_rows: int, *, rate_factor: float = 1.0, rate_grows: bool = False
    ) -> None:
        """The second half of ``learn_terms``: one step of both optimisers. Raises DivergenceError as it does."""
        gradients.check_finite(self.config)
        learned, config = self.dense.learned_size, self.config
        flat = self.dense.flat.numpy()
        dense_rate = config.scaled_dense_rate * rate_factor
        self._adam.step(flat[:learned], gradients.dense[:learned], rows=batch_rows, rate=dense_rate, grows=rate_grows)
        statistics = flat[learned:]
        statistics += _MOMENTUM * (gradients.dense[learned:] / np.float32(batch_rows) - statistics)
        rates = (config.vector_rate * rate_factor, config.scaled_weight_rate * rate_factor)
        betas = (config.vector_beta, config.weight_beta)
        self.table.update(gradients.lookup.unique, gradients.table, rates=rates, betas=betas)

    def changes(
        self, *, version: int, parent: int, watermark_ms: int, newest_event_ms: int, clicks_produced_ms: ArrayLike = ()
    ) -> Delta:
        """The rows made, changed or removed since the last call, and all dense weights, from parent to version."""
        changed = self.table.take_changed()
        return Delta(
            spec_hash=self.shape.spec_hash,
            version=version,
            parent=parent,
            watermark_ms=watermark_ms,
            newest_event_ms=newest_event_ms,
            clicks_produced_ms=np.array(clicks_produced_ms, np.int64),
            keys=changed.keys,
            values=changed.values,
            removed=changed.removed,
            dense=self.dense.arrays(),
        )

    def apply(self, delta: Delta) -> None:
        """Take over a delta's weights: predictions become bit-equal to those of the model that made it.

        Whether the delta's parent is what this model holds is for the caller to know. A heartbeat changes nothing.

        Raises
        ------
        DeltaError
            Another feature spec, other shapes, a key 0. The model is untouched.
        """
        if delta.spec_hash != self.shape.spec_hash:
            raise DeltaError(
                f"delta {delta.version} is of feature spec {delta.spec_hash}, this model of {self.shape.spec_hash}: "
                "its weights mean other fields. Run the learner and serving with one spec."
            )
        if delta.is_heartbeat:
            return
        try:
            self.dense.check(delta.dense)
            self.table.assign(delta.keys, delta.values)
        except (ValueError, MemoryError) as error:
            raise DeltaError(f"delta {delta.version}: {error}") from error
        self.table.remove(delta.removed)
        self.dense.load(delta.dense)

    def begin_snapshot(self) -> ModelCopy:
        """The state as it is now, copied in steps while the model learns on; the dense part is copied at once.

        Raises
        ------
        RuntimeError
            Another snapshot is being made.
        """
        return ModelCopy(self.table, self._dense_state())

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that ``from_state`` needs to continue bit-equal: copies.

        Raises
        ------
        RuntimeError
            A snapshot has begun and is not done.
        """
        return to_state(self.table.state(), self._dense_state())

    def _dense_state(self) -> dict[str, NDArray[Any]]:
        return {**prefixed("dense.", self.dense.arrays()), **self._adam.state()}

    @classmethod
    def from_state(cls, config: DeepFMConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """The model that ``state`` was taken from.

        Raises
        ------
        ValueError
            A state of another config or shape, or one that lacks arrays or holds impossible numbers.
        """
        check_state(config, shape, state)
        model = cls(config, shape)
        model.dense.load(under("dense.", state))
        model._adam.restore(state)
        model.table.restore(under("table.", state))
        return model

    def weights_sha256(self) -> str:
        """SHA-256 over what a prediction depends on, by ascending key: `model_state.sha256_of` its state."""
        return sha256_of(self.state())
