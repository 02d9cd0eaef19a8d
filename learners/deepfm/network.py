"""The dense part of DeepFM: from the gathered table rows of a batch to logits, and back to gradients.

A batch is worked off in chunks of a fixed number of rows, each with one-threaded GEMMs and buffers of its own, and the
chunks' gradients are added in their order. So the bits do not depend on how many threads share the chunks, and what a
chunk needs stays in the cache. Shapes: B rows, E embedded columns, D = dim, K dense inputs, H heads, U table rows.
"""

from __future__ import annotations

import numpy as np
import torch

from learners.deepfm.config import DeepFMConfig
from learners.deepfm.dense_shapes import dense_shapes
from learners.examples.terms import Terms
from learners.nn.chunk import Chunk, Floats, Inputs
from learners.nn.heads import Heads, grad_logits
from learners.nn.kernels import expand, less_own_vector, scatter
from learners.nn.mlp import Mlp
from learners.nn.optimiser import DenseParameters
from learners.nn.threads import ChunkThreads

__all__ = ["CHUNK_ROWS", "Floats", "Inputs", "Network"]

CHUNK_ROWS = 512
"""Rows of a chunk; the bits depend on it. GEMMs reach 97 % of their peak from 256 rows on."""


class Network:
    """First order + FM + MLP for the first head, an MLP of its own for each further one; all over the same inputs."""

    def __init__(self, config: DeepFMConfig, *, columns: int, dense: int) -> None:
        self._dim, self._dense = config.dim, dense
        self._width = columns * config.dim + dense
        self.heads = Heads(config.heads)
        towers = list(zip((f"mlp.{name}" for name in self.heads.names), config.tower_widths, strict=True))
        self.parameters = DenseParameters(*dense_shapes(config, columns=columns, dense=dense))
        value, bf16 = self.parameters.value, config.precision == "bf16"
        self.mlps = [Mlp(prefix, self._width, hidden, value, bf16=bf16) for prefix, hidden in towers]
        for head, mlp in enumerate(self.mlps):
            mlp.start(np.random.default_rng((config.seed, 1, head)))  # not the table's stream
        self._threads = ChunkThreads(config.threads)
        self._chunks: list[Chunk | None] = [None] * self._threads.threads
        self._total = self.parameters.like()  # the gradients of the chunks so far
        self._sums = [self.parameters.like() for _ in range(self._threads.threads)]  # and each thread's of the next one

    def logits(self, inputs: Inputs) -> Floats:
        """Each head's own logit, (H, B), in fp32."""
        logits = np.empty((len(self.mlps), len(inputs.inverse)), np.float32)

        def predict(thread: int, rows: slice) -> None:
            chunk = self._forward(thread, inputs.cut(rows), learning=False)
            logits[:, rows] = chunk.logits.numpy()

        self._threads.each(self._cuts(len(inputs.inverse)), predict)
        return logits

    def gradients(self, inputs: Inputs, terms: Terms, *, step: int = 0, first_row: int = 0) -> tuple[Floats, Floats]:
        """Sums over the rows of the loss' gradients: of ``values``, (U, D + 1), and of the parameters, flat (P,).

        ``terms`` are (B, H). The second result is a buffer that the next call overwrites. ``step`` and ``first_row``
        are for `learners.deepfm.autograd_network`, whose dropout they seed.
        """
        gradients = np.zeros(inputs.values.shape, np.float32)
        if not len(inputs.inverse):
            self._total.flat.zero_()
        for mlp in self.mlps:
            mlp.begin()

        def learn(thread: int, rows: slice) -> None:
            into = self._total if rows.start == 0 else self._sums[thread]
            self._learn(thread, inputs.cut(rows), terms.take(rows), into)

        def add(thread: int, rows: slice) -> None:
            self._scatter(thread, inputs.cut(rows), gradients)
            if rows.start > 0:
                self._total.flat.add_(self._sums[thread].flat)

        self._threads.each(self._cuts(len(inputs.inverse)), learn, add)
        less_own_vector(gradients, inputs.values)
        return gradients, self._total.flat.numpy()

    def _cuts(self, rows: int) -> list[slice]:
        """The chunks of a batch."""
        return [slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS)]

    def _chunk(self, thread: int, inputs: Inputs) -> Chunk:
        """Of a thread, for these rows."""
        rows = len(inputs.inverse)
        chunk = self._chunks[thread]
        if chunk is None or chunk.rows < rows:
            room = min(CHUNK_ROWS, 1 << (rows - 1).bit_length())
            chunk = self._chunks[thread] = Chunk(room, self._width, self._dim, self.mlps)
        return chunk.first(rows)

    def _forward(self, thread: int, inputs: Inputs, *, learning: bool) -> Chunk:
        chunk = self._chunk(thread, inputs)
        expand(inputs.values, inputs.inverse, chunk.x.numpy(), chunk.sums, chunk.logits[0].numpy())
        if self._dense:
            numbers = chunk.x[:, -self._dense :]
            numbers.numpy()[...] = inputs.dense
            chunk.logits[0].addmv_(numbers, self.parameters.value["linear.weight"])
        for head, (mlp, buffers) in enumerate(zip(self.mlps, chunk.buffers, strict=True)):
            outputs = mlp.forward(chunk.x, buffers, learning=learning)
            chunk.logits[0].add_(outputs) if head == 0 else chunk.logits[head].copy_(outputs)
        return chunk

    def _learn(self, thread: int, inputs: Inputs, terms: Terms, into: DenseParameters) -> None:
        """Forward and backward of one chunk: its dense gradients are written ``into``, ∂x stays in the buffers."""
        chunk = self._forward(thread, inputs, learning=True)
        grad_logits(chunk.logits.numpy(), terms.exposure, terms.event, chunk.grad_logits.numpy())
        gradient = into.value
        if self._dense:
            torch.mv(chunk.x[:, -self._dense :].T, chunk.grad_logits[0], out=gradient["linear.weight"])
        for head, (mlp, buffers) in enumerate(zip(self.mlps, chunk.buffers, strict=True)):
            mlp.backward(chunk.x, chunk.grad_logits[head], buffers, gradient, chunk.grad_x, add=head > 0)

    def _scatter(self, thread: int, inputs: Inputs, gradients: Floats) -> None:
        """Add the table gradients of the chunk that a thread has just learned."""
        chunk = self._chunk(thread, inputs)
        scatter(chunk.grad_x.numpy(), inputs.inverse, chunk.sums, chunk.grad_logits[0].numpy(), gradients)
