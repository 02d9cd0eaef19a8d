"""All that a network looks up by id in a large batch: the FM's vectors, and the first layers of its MLPs.

Shapes: n rows of a chunk, F columns with few values, U table rows, D = dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learners.chunk import Chunk, Floats, Inputs
from learners.deepfm_config import DeepFMConfig
from learners.dense import DenseParameters
from learners.few_values import FewValues, Groups, few_values
from learners.first_layer import Factors, FirstLayer
from learners.mlp import Mlp

LEAST_OUTPUTS = 500_000
"""Of a first layer, rows x units, from which on looking up columns of few values pays; the bits depend on it.

Measured with 39 columns, 22 of few values: 1024 rows x 512 units take 7 % less time, 2048 x 512 13 %, but 512 x 512 the
same, and 2048 x 64 5 % more, because what is done once per column is too much for so few units.
"""


class LookUps:
    """For a batch: ``set_apart``; for each chunk: ``start``, ``flow_back``, ``add``; then ``finish``."""

    def __init__(self, config: DeepFMConfig, mlps: Sequence[Mlp], parameters: DenseParameters) -> None:
        self._mlps, self._parameters = mlps, parameters
        # of the narrowest first layer; 0 where columns are never looked up: autograd has its own, a linear head none
        self._units = 0 if config.regularised else min(hidden[0] if hidden else 0 for hidden in config.tower_widths)
        self._factors = Factors()
        self._firsts = {mlp.first_weight: FirstLayer(config.dim) for mlp in mlps}
        self._groups: dict[int, Groups] = {}  # of the chunk that a thread has just learned

    def set_apart(self, inputs: Inputs) -> Inputs:
        """The same batch with its columns of few values apart, where there are some and it pays."""
        pays = len(inputs.inverse) * self._units >= LEAST_OUTPUTS
        few = few_values(inputs.inverse, len(inputs.values)) if pays else None
        for mlp, first in zip(self._mlps, self._firsts.values(), strict=True):
            mlp.use_first(None if few is None else first)
        if few is None:
            return inputs
        looked_up = inputs.values[few.places]
        looked_up[few.places < 0] = 0  # the missing id
        vectors = np.ascontiguousarray(looked_up[:, :-1])
        self._factors.begin(few, vectors, looked_up[:, -1])
        for name, first in self._firsts.items():
            first.begin(few, vectors, self._parameters.value[name])
            first.multiply()
        return inputs._replace(inverse=inputs.inverse.take(few.rest, axis=1), few=few)

    def start(self, chunk: Chunk, few: FewValues) -> None:
        """Begin the sums of a chunk with what is looked up."""
        self._factors.look_up(few.slots, chunk.looked_up)
        chunk.sums[...] = chunk.looked_up.numpy()[:, :-1]
        chunk.logits[0].copy_(chunk.looked_up[:, -1])
        for first, buffers in zip(self._firsts.values(), chunk.buffers, strict=True):
            first.look_up(few.slots, buffers.outputs[0])

    def flow_back(self, thread: int, chunk: Chunk, few: FewValues) -> None:
        """Prepare to ``add`` a chunk whose backward pass is done."""
        self._groups[thread] = few.groups()
        pulls, error = chunk.looked_up.numpy(), chunk.errors[0].numpy()  # what flows back to what was looked up
        np.multiply(chunk.sums, error[:, None], out=pulls[:, :-1])
        pulls[:, -1] = error

    def add(self, thread: int, chunk: Chunk) -> None:
        """What flowed back in a thread's chunk."""
        groups = self._groups[thread]
        self._factors.add(chunk.looked_up, groups)
        for first, buffers in zip(self._firsts.values(), chunk.buffers, strict=True):
            first.add(buffers.flows[0], groups)

    def add_rest(self, total: DenseParameters, sums: DenseParameters) -> None:
        """Add gradients of parameters to others; of a first layer's weight there is only the rest."""
        for name, of_all in total.value.items():
            first, more = self._firsts.get(name), sums.value[name]
            if first is None:
                of_all.add_(more)
            else:
                first.rest_gradient(of_all).add_(first.rest_gradient(more))

    def finish(self, total: DenseParameters, gradients: Floats) -> None:
        """Complete the first layers' gradients, and add what flowed back to the table's, (U, D + 1).

        The table's still lack ``less_own_vector``.
        """
        self._factors.add_to(gradients)
        for mlp, (name, first) in zip(self._mlps, self._firsts.items(), strict=True):
            first.finish(total.value[name])
            first.add_to(gradients)
            mlp.use_first(None)
