"""The dense part of DeepFM: from the gathered table rows of a batch to logits, and back to gradients.

A batch is worked off in chunks of a fixed number of rows, each with one-threaded GEMMs and buffers of its own, and the
chunks' gradients are added in their order. So the bits do not depend on how many threads share the chunks, and what a
chunk needs stays in the cache. Shapes: B rows, E embedded columns, D = dim, K dense inputs, H heads, U table rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from learners.deepfm_config import DeepFMConfig
from learners.dense import DenseParameters
from learners.fm_kernels import expand, less_own_vector, scatter
from learners.heads import Heads
from learners.mlp import Mlp
from learners.regularised import RegularisedMlp

CHUNK_ROWS = 512
"""Rows of a chunk; the bits depend on it. GEMMs reach 97 % of their peak from 256 rows on."""

Floats = NDArray[np.float32]


class Inputs(NamedTuple):
    """Rows of a batch: values (U, D + 1), inverse (B, E) int32 into them (negative: missing), dense (B, K)."""

    values: Floats
    inverse: NDArray[np.int32]
    dense: Floats

    def cut(self, rows: slice) -> Inputs:
        """Some of the rows."""
        return Inputs(self.values, self.inverse[rows], self.dense[rows])


class Targets(NamedTuple):
    """Of rows of a batch: labels and weight, (B, H)."""

    labels: Floats
    weight: Floats

    def cut(self, rows: slice) -> Targets:
        """Some of the rows."""
        return Targets(self.labels[rows], self.weight[rows])


class _Chunk:
    """Buffers of n rows; ``first`` gives a view of them for fewer."""

    def __init__(self, rows: int, columns: int, dim: int, dense: int, mlps: Sequence[Mlp]) -> None:
        width, heads = columns * dim + dense, len(mlps)
        self.rows = rows
        self.x, self.flow = torch.empty((rows, width)), torch.empty((rows, width))
        self.sums = np.empty((rows, dim), np.float32)
        self.logits, self.errors = torch.empty((heads, rows)), torch.empty((heads, rows))
        self.buffers = [mlp.buffers(rows) for mlp in mlps]

    def first(self, rows: int) -> _Chunk:
        """The same memory for the first ``rows`` rows."""
        if rows == self.rows:
            return self
        part = copy(self)
        heads = len(self.logits)
        part.rows = rows
        part.x, part.flow, part.sums = self.x[:rows], self.flow[:rows], self.sums[:rows]
        part.logits = self.logits.view(-1)[: heads * rows].view(heads, rows)
        part.errors = self.errors.view(-1)[: heads * rows].view(heads, rows)
        part.buffers = [buffers.first(rows) for buffers in self.buffers]
        return part


class Network:
    """First order + FM + MLP for the first head, an MLP of its own for each further one; all over the same inputs."""

    def __init__(self, config: DeepFMConfig, *, columns: int, dense: int) -> None:
        self._columns, self._dim, self._dense = columns, config.dim, dense
        self._width = columns * config.dim + dense
        self.heads = Heads(config.heads)
        self._regularised = config.regularised
        self.parameters, self.mlps = self._made(config)
        for place, mlp in enumerate(self.mlps):
            mlp.start(np.random.default_rng((config.seed, 1, place)))  # not the table's stream
        self._threads = 1 if config.regularised else config.threads
        # torch counts its own threads per thread: without this each of ours would start some, and change the bits.
        self._pool = (
            ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
            if self._threads > 1
            else None
        )
        self._chunks: list[_Chunk | None] = [None] * self._threads
        self._total = self.parameters.like()  # the gradients of the chunks so far
        self._sums = [self.parameters.like() for _ in range(self._threads)]  # and each thread's of the next one

    def _made(self, config: DeepFMConfig) -> tuple[DenseParameters, list[Mlp]]:
        learned: dict[str, tuple[int, ...]] = {"linear.weight": (self._dense,)}
        statistics: dict[str, tuple[int, ...]] = {}
        towers = list(zip((f"mlp.{name}" for name in self.heads.names), config.tower_widths, strict=True))
        for prefix, hidden in towers:
            learned |= Mlp.shapes(prefix, self._width, hidden)
            if config.batch_norm:
                learned |= RegularisedMlp.norm_shapes(prefix, hidden)
                statistics |= RegularisedMlp.statistics_shapes(prefix, hidden)
        parameters = DenseParameters(learned, statistics)
        if not config.regularised:
            return parameters, [Mlp(prefix, self._width, hidden, parameters.value) for prefix, hidden in towers]
        regularised = [
            RegularisedMlp(
                prefix,
                self._width,
                hidden,
                parameters.value,
                batch_norm=config.batch_norm,
                dropout=config.dropout,
                seed=(config.seed, 2, place),
            )
            for place, (prefix, hidden) in enumerate(towers)
        ]
        return parameters, list(regularised)

    def use_halves(self, on: bool) -> None:
        """From now on, learn with bf16 copies of the weights as they are at this moment (or with fp32 again)."""
        for mlp in self.mlps:
            mlp.use_halves(on)

    def logits(self, inputs: Inputs) -> Floats:
        """Each head's own logit, (H, B), in fp32."""
        logits = np.empty((len(self.mlps), len(inputs.inverse)), np.float32)

        def predict(thread: int, rows: slice) -> None:
            chunk = self._forward(thread, inputs.cut(rows), learning=False)
            logits[:, rows] = chunk.logits.numpy()

        for slices in self._rounds(len(inputs.inverse)):
            self._each(predict, slices)
        return logits

    def loss(self, inputs: Inputs, targets: Targets) -> float:
        """The summed log loss of all rows, as learning sees it."""
        total = 0.0
        for slices in self._rounds(len(inputs.inverse)):
            for rows in slices:
                chunk, cut = self._forward(0, inputs.cut(rows), learning=True), targets.cut(rows)
                total += self.heads.loss(chunk.logits.numpy(), cut.labels, cut.weight)
        return total

    def gradients(
        self, inputs: Inputs, targets: Targets, *, step: int = 0, first_row: int = 0
    ) -> tuple[Floats, Floats]:
        """Sums over the rows of the log loss' gradients: of ``values``, (U, D + 1), and of the parameters, flat (P,).

        The second is a buffer that the next call overwrites. ``step`` and ``first_row`` seed the dropout.
        """
        gradients = np.zeros(inputs.values.shape, np.float32)
        places = _shares(len(gradients), self._threads)
        if not len(inputs.inverse):
            self._total.flat.zero_()
        for mlp in self.mlps:
            mlp.begin(step, first_row)

        def learn(thread: int, rows: slice) -> None:
            into = self._total if rows.start == 0 else self._sums[thread]
            self._learn(thread, inputs.cut(rows), targets.cut(rows), into)

        for slices in self._rounds(len(inputs.inverse)):
            self._each(learn, slices)

            def add_rows(thread: int, share: slice, slices: Sequence[slice] = slices) -> None:
                self._scatter(inputs, slices, share, gradients)

            self._each(add_rows, places)
            for thread, rows in enumerate(slices):
                if rows.start > 0:
                    self._total.flat.add_(self._sums[thread].flat)
        less_own_vector(gradients, inputs.values)
        return gradients, self._total.flat.numpy()

    def _rounds(self, rows: int) -> Iterator[list[slice]]:
        """The chunks of a batch, as many at once as there are threads."""
        size = max(rows, 1) if self._regularised else CHUNK_ROWS  # batch norm needs the whole batch
        cuts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        return (cuts[start : start + self._threads] for start in range(0, len(cuts), self._threads))

    def _each(self, work: Callable[[int, slice], None], slices: Sequence[slice]) -> None:
        """``work(thread, slice)`` for each of them, side by side."""
        if self._pool is None or len(slices) == 1:
            for thread, part in enumerate(slices):
                work(thread, part)
        else:
            list(self._pool.map(work, range(len(slices)), slices))

    def _chunk(self, thread: int, rows: int) -> _Chunk:
        chunk = self._chunks[thread]
        if chunk is None or chunk.rows < rows:
            room = rows if self._regularised else min(CHUNK_ROWS, 1 << (rows - 1).bit_length())
            chunk = self._chunks[thread] = _Chunk(room, self._columns, self._dim, self._dense, self.mlps)
        return chunk.first(rows)

    def _forward(self, thread: int, inputs: Inputs, *, learning: bool) -> _Chunk:
        chunk = self._chunk(thread, len(inputs.inverse))
        expand(inputs.values, inputs.inverse, chunk.x.numpy(), chunk.sums, chunk.logits[0].numpy())
        if self._dense:
            numbers = chunk.x[:, -self._dense :]
            numbers.numpy()[...] = inputs.dense
            chunk.logits[0].addmv_(numbers, self.parameters.value["linear.weight"])
        for place, (mlp, buffers) in enumerate(zip(self.mlps, chunk.buffers, strict=True)):
            outputs = mlp.forward(chunk.x, buffers, learning=learning)
            chunk.logits[0].add_(outputs) if place == 0 else chunk.logits[place].copy_(outputs)
        return chunk

    def _learn(self, thread: int, inputs: Inputs, targets: Targets, into: DenseParameters) -> None:
        """Forward and backward of one chunk: its dense gradients are written ``into``, ∂x stays in the buffers."""
        chunk = self._forward(thread, inputs, learning=True)
        self.heads.errors(chunk.logits.numpy(), targets.labels, targets.weight, chunk.errors.numpy())
        gradient = into.value
        if self._dense:
            torch.mv(chunk.x[:, -self._dense :].T, chunk.errors[0], out=gradient["linear.weight"])
        for place, (mlp, buffers) in enumerate(zip(self.mlps, chunk.buffers, strict=True)):
            mlp.backward(chunk.x, chunk.errors[place], buffers, gradient, chunk.flow, add=place > 0)

    def _scatter(self, inputs: Inputs, slices: Sequence[slice], share: slice, gradients: Floats) -> None:
        """Add the table gradients of the chunks just learned, in the order of their rows."""
        for thread, rows in enumerate(slices):
            chunk = self._chunk(thread, rows.stop - rows.start)
            flow, error = chunk.flow.numpy(), chunk.errors[0].numpy()
            scatter(flow, inputs.inverse[rows], chunk.sums, error, share.start, share.stop, gradients)


def _shares(places: int, parts: int) -> list[slice]:
    """0..places−1 in equal parts."""
    cuts = [places * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]
