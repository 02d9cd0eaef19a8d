"""A network of `learners.models.networks` over an `EmbeddingTable`, learned online as DeepFM is.

A step: admit the batch's keys, gather their rows, forward and backward by autograd, row-wise Adagrad on the rows (sum
of the batch's gradients), Adam on the network, `learners.nn.optimiser.Adam`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from learners.deepfm.model import DivergenceError
from learners.examples.terms import Terms
from learners.features.hashing import salt_of
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.models.networks import NETWORKS, CtrNetwork, Gathered, NetworkConfig
from learners.nn.optimiser import Adam, DenseParameters
from learners.protocol.batch import TermsBatch, check_widths, checked_terms_batch, terms_of_labels
from learners.protocol.state_names import prefixed, under
from learners.table.table import EmbeddingTable

_FORGET_STEPS = 64


class NetworkLearner:
    """FM, Wide & Deep, DCN-v2 or DIN, by ``config.kind``.

    Deterministic: the same batches give the same bits on the same machine and torch build. For that the constructor
    sets torch to one thread, in the whole process. Memory is bounded by ``config.table.max_rows``.

    The table has a column for each embedded column of the shape, and where the network reads it one for each column of
    the history: its ids are those of the ad column and share their rows.
    """

    def __init__(self, config: NetworkConfig, shape: ModelShape) -> None:
        torch.set_num_threads(1)
        self.config, self.shape = config, shape
        kind = NETWORKS[config.kind]
        history = shape.history if kind.reads_history else ()
        if kind.reads_history and not history:
            raise ValueError(
                f"feature spec {shape.spec_name} logs no recent ads, {config.kind} must attend to some: it would be an "
                "MLP. Set recent_ads in the spec's [session]."
            )
        self._embedded = len(shape.embedded)
        self.columns = np.array((*shape.embedded, *history), np.intp)
        self._target = shape.embedded.index(shape.target) if shape.target is not None else 0
        history_keys = [salt_of(f"default:history:{at}") for at in range(len(history))]
        default_keys = np.concatenate((shape.default_keys, np.array(history_keys, np.uint64)))
        self.table = EmbeddingTable(config.dim, default_keys, config.table)
        with torch.device("meta"):  # no start values from torch's global generator
            self.network: CtrNetwork = kind(config, shape)
        self.network.to_empty(device="cpu")
        self.dense = DenseParameters({name: tuple(p.shape) for name, p in self.network.named_parameters()})
        self._gradients = self.dense.like()
        self._adam = Adam(self.dense.learned_size, config.full_batch_rows)
        for name, parameter in self.network.named_parameters():
            parameter.data, parameter.grad = self.dense.value[name], self._gradients.value[name]
        self._start()

    def _start(self) -> None:
        """Matrices as He et al. 2015, those with one output at half of it; vectors at 0."""
        generator = np.random.default_rng((self.config.table.seed, 1))  # not the table's stream
        for value in self.dense.value.values():
            if value.ndim == 2 and value.shape[1]:
                scale = math.sqrt(2 / value.shape[1]) * (1 if value.shape[0] > 1 else 0.5)
                start = generator.standard_normal(tuple(value.shape), dtype=np.float32)
                value.numpy()[...] = start * np.float32(scale)

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32. Changes nothing."""
        check_widths(rows, self.shape)
        if not len(rows.ids):
            return np.zeros(0, np.float32)
        keys = rows.ids[:, self.columns]
        found = self.table.find(keys)
        values = torch.from_numpy(self.table.gather(found.reshape(-1))).view(*found.shape, self.config.dim + 1)
        with torch.inference_mode():
            logits: torch.Tensor = self.network(self.gathered(values, keys, rows.dense))
        return np.array(logits.numpy())

    def learn_terms(self, rows: Rows, terms: Terms) -> None:
        """One step on B rows; the gradient of a row's logit is exposure·σ(z) − event. Both weights 0: no such row.

        Raises
        ------
        ValueError
            As every learner's. The learner is untouched.
        DivergenceError
            A gradient that is not finite. No weight was changed; the batch's ids count as seen.
        """
        batch = checked_terms_batch(self.shape, rows, terms)
        batch = batch.where(batch.weight > 0)
        if len(batch.ids):
            self._step(batch)

    def learn_many(self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None) -> None:
        """``learn_terms`` of labelled rows; ``weight`` scales a row's gradient (default 1)."""
        self.learn_terms(rows, terms_of_labels(self.shape, rows, labels, weight))

    def _step(self, batch: TermsBatch) -> None:
        keys = batch.ids[:, self.columns]
        lookup = self.table.admit(keys)
        values = torch.from_numpy(self.table.gather(lookup.unique)).requires_grad_()
        self._gradients.flat.zero_()
        self._backward(values, lookup.inverse, keys, batch)
        gradient = values.grad
        assert gradient is not None
        self._check_finite(gradient)
        rows = float(batch.weight.sum(dtype=np.float64))
        dense, flat = self.dense.flat.numpy(), self._gradients.flat.numpy()
        self._adam.step(dense, flat, rows=rows, rate=self.config.dense_rate)
        rates = (self.config.vector_rate, self.config.weight_rate)
        betas = (self.config.vector_beta, self.config.weight_beta)
        self.table.update(lookup.unique, gradient.numpy(), rates=rates, betas=betas)
        if self._adam.steps % _FORGET_STEPS == 0:
            self.table.take_changed()  # nobody publishes them, and removed keys would pile up

    def advance(self, event_ms: int) -> None:
        """Let the table forget ids."""
        self.table.advance(event_ms)

    def _backward(
        self, values: torch.Tensor, inverse: NDArray[np.int32], keys: NDArray[np.uint64], batch: TermsBatch
    ) -> None:
        """The gradients of the batch's summed terms, in ``values.grad`` and the network's parameters."""
        padded = torch.cat((values.new_zeros((1, values.shape[1])), values))
        looked = torch.nn.functional.embedding(torch.from_numpy(inverse) + 1, padded, padding_idx=0)
        logits: torch.Tensor = self.network(self.gathered(looked, keys, batch.dense))
        exposure, event = map(torch.from_numpy, batch.terms)
        p = logits.detach().sigmoid()
        torch.autograd.backward(logits, (exposure - event) * p + event * (p - 1))

    def gathered(self, looked: torch.Tensor, keys: NDArray[np.uint64], dense: NDArray[np.float32]) -> Gathered:
        """The parts of rows (B, E + T, D + 1) that stand for ``keys`` (B, E + T)."""
        vectors, history = looked[:, : self._embedded, :-1], looked[:, self._embedded :, :-1]
        return Gathered(
            vectors=vectors,
            weights=looked[:, : self._embedded, -1],
            dense=torch.from_numpy(np.array(dense, np.float32)),
            target=vectors[:, self._target],
            history=history,
            present=torch.from_numpy(keys[:, self._embedded :] != 0),
        )

    def _check_finite(self, gradient: torch.Tensor) -> None:
        """The squared norms must be finite: then so is every square that the optimisers accumulate."""
        norms = [float(torch.dot(flat, flat)) for flat in (self._gradients.flat, gradient.reshape(-1))]
        if not all(map(math.isfinite, norms)):
            raise DivergenceError(
                f"squared gradient norms {norms[0]:g} (network) and {norms[1]:g} (table) must be finite: a step would "
                "make every weight NaN. No weight was changed; go back to a snapshot or lower "
                f"vector_rate={self.config.vector_rate:g}, weight_rate={self.config.weight_rate:g} and "
                f"dense_rate={self.config.dense_rate:g}."
            )

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays under ``table.``, ``dense.`` and ``adam.``."""
        return {
            **prefixed("table.", self.table.state()),
            **prefixed("dense.", self.dense.arrays()),
            **self._adam.state(),
        }

    @classmethod
    def from_state(cls, config: NetworkConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """The learner that ``state`` was taken from. Raises ValueError for one of another config or without arrays."""
        learner = cls(config, shape)
        learner.dense.load(under("dense.", state))
        try:
            learner._adam.restore(state)
        except KeyError as error:
            raise ValueError(f"a state without {error} is none of NetworkLearner: it cannot be continued.") from error
        learner.table.restore(under("table.", state))
        return learner
