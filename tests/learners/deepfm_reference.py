"""A slow DeepFM: the papers' equations pair by pair in float64, torch autograd, torch.optim.Adam, Adagrad by rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM
from learners.examples.terms import Terms
from learners.features.rows import Rows
from tests.learners.batches import SHAPE

EMBEDDED = list(SHAPE.embedded)

Named = dict[str, torch.Tensor]


def logits_of(fm: DeepFM, looked: torch.Tensor, numbers: torch.Tensor, dense: Named) -> torch.Tensor:
    """Looked-up rows (B, E, D + 1), dense inputs (B, K) and parameters → each head's logit, (B, H)."""
    vectors, first = looked[..., :-1], looked[..., -1]
    wide = first.sum(1) + numbers @ dense["linear.weight"]
    for i in range(vectors.shape[1]):
        for j in range(i + 1, vectors.shape[1]):
            wide = wide + (vectors[:, i] * vectors[:, j]).sum(1)
    outputs: list[torch.Tensor] = []
    for name, hidden in zip(fm.heads.names, fm.config.tower_widths, strict=True):
        flow = torch.cat([vectors.flatten(1), numbers], 1)
        for layer in range(len(hidden) + 1):
            weight, bias = dense[f"mlp.{name}.{layer}.weight"], dense[f"mlp.{name}.{layer}.bias"]
            flow = torch.nn.functional.linear(flow, weight, bias)
            if layer < len(hidden):
                flow = torch.relu(flow)
        outputs.append(flow[:, 0] if outputs else flow[:, 0] + wide)
    return torch.stack(outputs, 1)


def loss_of(logits: torch.Tensor, terms: Terms) -> torch.Tensor:
    """exposure·softplus(z) − event·z, summed over rows and heads; all (B, H)."""
    exposure, event = (torch.tensor(part, dtype=torch.float64) for part in terms)
    return (exposure * torch.nn.functional.softplus(logits, threshold=1000) - event * logits).sum()


def torch_gradients(
    fm: DeepFM,
    values: NDArray[np.float32],
    inverse: NDArray[np.int32],
    numbers: NDArray[np.float32],
    terms: Terms,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Autograd's gradients of the summed loss: of ``values`` (U, D + 1), and of the parameters by name."""
    table = torch.tensor(np.concatenate([values, np.zeros((1, values.shape[1]))]), dtype=torch.float64)
    table.requires_grad_()  # the last row is the missing one: place −1
    dense = {name: value.double().requires_grad_() for name, value in fm.dense.value.items()}
    logits = logits_of(fm, table[torch.from_numpy(inverse).long()], torch.tensor(numbers).double(), dense)
    found = torch.autograd.grad(loss_of(logits, terms), [table, *dense.values()], allow_unused=True)
    of_table, *of_dense = [
        torch.zeros_like(of) if g is None else g for g, of in zip(found, [table, *dense.values()], strict=True)
    ]
    return of_table[:-1].numpy(), {name: g.numpy() for name, g in zip(dense, of_dense, strict=True)}


def root_of_rows(before: list[float], rows: float, full: float) -> float:
    """The factor of the dense rate at a step of so many rows, noted in ``before``: newer steps weigh more."""
    before.append(rows)
    weights = 0.999 ** np.arange(len(before))[::-1]
    return float(np.sqrt(min(1.0, np.average(before, weights=weights) / full)))


class Reference:
    """Learns beside ``fm``, from the same start values, by its own optimisers over its own rows."""

    def __init__(self, fm: DeepFM) -> None:
        self._fm = fm
        self._values: dict[int, NDArray[np.float64]] = {}
        self._accumulators: dict[int, NDArray[np.float64]] = {}
        self._dense = {name: value.double().requires_grad_() for name, value in fm.dense.value.items()}
        self._adam = torch.optim.Adam(list(self._dense.values()), lr=fm.config.dense_rate)
        self._rows: list[float] = []  # of the steps so far

    def learn(self, rows: Rows, terms: Terms) -> None:
        """One step of both models."""
        fm, keys = self._fm, np.unique(rows.ids[:, EMBEDDED])
        gradients = fm.gradients(rows, terms)
        for key in keys.tolist():
            if key not in self._values:  # its start value is the model's
                found = fm.table.find(np.full((1, len(EMBEDDED)), key, np.uint64))[0, :1]
                self._values[key] = fm.table.gather(found)[0].astype(np.float64)
                self._accumulators[key] = np.zeros(2)
        fm.step(gradients, len(rows.ids))
        self._step(keys, rows, terms)

    def _step(self, keys: NDArray[np.uint64], rows: Rows, terms: Terms) -> None:
        table = torch.tensor(np.stack([self._values[key] for key in keys.tolist()])).requires_grad_()
        looked = table[torch.from_numpy(np.searchsorted(keys, rows.ids[:, EMBEDDED]))]
        full = self._fm.config.full_batch_rows
        logits = logits_of(self._fm, looked, torch.tensor(rows.dense).double(), self._dense)
        self._adam.param_groups[0]["lr"] = self._fm.config.dense_rate * root_of_rows(self._rows, len(rows.ids), full)
        self._adam.zero_grad()
        torch.autograd.backward(loss_of(logits, terms))
        for value in self._dense.values():
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad / full
        self._adam.step()
        assert table.grad is not None
        rates = (self._fm.config.vector_rate, self._fm.config.scaled_weight_rate)
        for key, gradient in zip(keys.tolist(), table.grad.numpy(), strict=True):
            if key:
                self._adagrad(key, gradient, rates)

    def _adagrad(self, key: int, gradient: NDArray[np.float64], rates: tuple[float, float]) -> None:
        accumulators = self._accumulators[key]
        accumulators += np.mean(gradient[:-1] ** 2), gradient[-1] ** 2
        betas = np.array([self._fm.config.vector_beta, self._fm.config.weight_beta])
        steps = np.array(rates) / np.sqrt(betas + accumulators)
        self._values[key][:-1] -= steps[0] * gradient[:-1]
        self._values[key][-1] -= steps[1] * gradient[-1]

    def logits(self, rows: Rows) -> NDArray[np.float64]:
        """Each head's logit, (B, H); an id never learned has its column's default row, which nothing has moved."""
        absent = np.zeros(self._fm.config.dim + 1)
        looked = np.array([[self._values.get(key, absent) for key in row] for row in rows.ids[:, EMBEDDED].tolist()])
        with torch.no_grad():
            return logits_of(self._fm, torch.tensor(looked), torch.tensor(rows.dense).double(), self._dense).numpy()
