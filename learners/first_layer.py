"""What ids add to a row, looked up by id in a batch some of whose columns hold few different ones.

An id gives the same vector to the FM and the same product with the weights to the first layer of an MLP in every row
that holds it. For a column of a tab, an hour or a bucket it is cheaper to multiply each different vector once, and to
add up what a row looks up, than to multiply a matrix that repeats them. It is the GEMM's sum in another order.
Shapes: n rows of a chunk, U table rows, F columns with few values and N values, `learners.few_values`, D = dim,
W units of a layer, R inputs of the other columns and dense.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from learners.few_values import FewValues, Groups, add_flows, add_to_places, sum_products

_ROOM = 1024  # ids by which the buffers grow: memory that is new in each batch costs its page faults

Floats = NDArray[np.float32]


class LookUp:
    """What each value gives to a row that holds it, and the sums of what flows back from these rows.

    products, sums : (N + 1 or more, W). The product at N is zero.
    """

    def __init__(self) -> None:
        self.products = self.sums = torch.empty((0, 0))

    def begin_sums(self, few: FewValues, width: int) -> None:
        """For a new batch: sums of 0 everywhere, and products for the caller to fill in."""
        ids = len(few.places)
        if len(self.products) <= ids:
            self.products, self.sums = torch.empty((ids + _ROOM, width)), torch.empty((ids + _ROOM, width))
        self.products[ids].zero_()
        self.sums[:ids].zero_()
        self._few = few

    def look_up(self, slots: NDArray[np.int32], out: torch.Tensor) -> None:
        """``out`` (n, W) = what the values of a chunk's rows give together."""
        sum_products(self.products.numpy(), slots, out.numpy())

    def add(self, flow: torch.Tensor, groups: Groups) -> None:
        """∂loss/∂out (n, W) of a chunk, to the sums."""
        add_flows(flow.numpy(), *groups, self.sums.numpy())


class Factors(LookUp):
    """Vectors for the FM (W = D + 1): their sum, and the first order less half of their squares."""

    def begin(self, few: FewValues, vectors: Floats, first: Floats) -> None:
        """For a batch with these vectors (N, D) and first-order weights (N,)."""
        ids, dim = vectors.shape
        self.begin_sums(few, dim + 1)
        products = self.products.numpy()
        products[:ids, :dim] = vectors
        products[:ids, dim] = first - np.float32(0.5) * (vectors * vectors).sum(1)

    def add_to(self, gradients: Floats) -> None:
        """The sums to the table's gradients (U, D + 1), which still lack ``less_own_vector``."""
        add_to_places(self.sums.numpy(), self._few.places, gradients)


class FirstLayer(LookUp):
    """The products with the weights of an MLP's first layer.

    A batch is: ``begin``, ``multiply``, ``look_up``, ``add_rest`` and ``add`` for each chunk, ``finish``, ``add_to``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim
        self._rest_memory = torch.empty(0)

    def begin(self, few: FewValues, vectors: Floats, weight: torch.Tensor) -> None:
        """For a batch with these vectors (N, D), and weight (W, all inputs) that does not change during it."""
        self.begin_sums(few, len(weight))
        self._vectors, self._flows = torch.from_numpy(vectors), torch.empty(vectors.shape)
        self._weight, self._embedded = weight, (len(few.columns) + len(few.rest)) * self._dim
        if not len(self._rest_memory):
            self._rest_memory = torch.empty(weight.numel())
        self.rest_weight = self.rest_gradient(self._rest_memory)  # (W, R): multiplied row by row
        ours, all_inputs = self._blocks(self.rest_weight), self._blocks(weight)
        np.take(all_inputs[0], few.rest, axis=1, out=ours[0], mode="clip")
        ours[1][...] = all_inputs[1]

    def multiply(self) -> None:
        """The products of all ids."""
        parts = zip(self._by_id(self._vectors), self._by_column(self._weight), self._by_id(self.products), strict=True)
        for vectors, weight, products in parts:
            torch.mm(vectors, weight.T, out=products)

    def add_rest(self, x: torch.Tensor, output: torch.Tensor) -> None:
        """The part of the other inputs (n, R), to what was looked up (n, W); the bias is nobody's here."""
        output.addmm_(x, self.rest_weight.T)

    def rest_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """(W, R): where a chunk's gradient of ``rest_weight`` lies in the memory of that of the weight."""
        units, inputs = self._weight.shape
        inputs -= len(self._few.columns) * self._dim
        return gradient.view(-1)[: units * inputs].view(units, inputs)

    def finish(self, gradient: torch.Tensor) -> None:
        """Put what is in ``rest_gradient`` where it belongs in the weight's gradient (W, all inputs); make the others.

        The gradients of the vectors come with them.
        """
        rest, all_inputs = self._blocks(self.rest_gradient(gradient).clone()), self._blocks(gradient)
        all_inputs[0][:, self._few.rest] = rest[0]
        all_inputs[1][...] = rest[1]
        parts = zip(
            self._by_id(self.sums),
            self._by_id(self._vectors),
            self._by_column(self._weight),
            self._by_column(gradient),
            self._by_id(self._flows),
            strict=True,
        )
        for sums, vectors, weight, of_weight, flows in parts:
            torch.mm(sums.T, vectors, out=of_weight)
            torch.mm(sums, weight, out=flows)

    def add_to(self, gradients: Floats) -> None:
        """∂loss/∂vectors to the table's gradients (U, D + 1)."""
        add_to_places(self._flows.numpy(), self._few.places, gradients)

    def _by_id(self, array: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(array[: len(self._few.places)], np.diff(self._few.starts).tolist())

    def _by_column(self, weight: torch.Tensor) -> list[torch.Tensor]:
        columns = torch.split(weight, self._dim, 1)
        return [columns[column] for column in self._few.columns.tolist()]

    def _blocks(self, weight: torch.Tensor) -> tuple[Floats, Floats]:
        """Views of the embedded columns' weights (W, columns, D), and of the dense inputs'."""
        units, dense = len(weight), self._weight.shape[1] - self._embedded
        embedded = weight.shape[1] - dense
        array = weight.numpy()
        return array[:, :embedded].reshape(units, -1, self._dim), array[:, embedded:]
