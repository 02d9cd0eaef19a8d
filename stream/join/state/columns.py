"""The columns of served rows until they settle: in blocks, in the order in which they came.

Rows served together are due together, so that a block empties as a whole and its memory goes; nothing is ever moved.
What belongs to a request is kept once for all its rows in a block, and a score that all of them share once, too: the
propensity of a ranker that does not explore, the conversions' probability of a model without that head.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.join.state.kernels import BLOCK, gather
from stream.records.served import ServedRows
from stream.records.wire import SCORES

_FIRST_REQUESTS = 64
_BY_ROW = ("ad_ids", "ad_dense")
_BY_REQUEST = ("user_key", "model_version", "request_ids", "request_dense")


class _Block:
    """`BLOCK` rows and their requests."""

    def __init__(self, like: ServedRows) -> None:
        self.rows = {name: _rows_like(getattr(like, name), BLOCK) for name in _BY_ROW}
        # (1,) while all are equal, else one a row
        self.scores = {name: np.full(1, np.nan, np.float32) for name in SCORES}
        self.requests = {name: _rows_like(getattr(like, name), _FIRST_REQUESTS) for name in _BY_REQUEST}
        self.request_of = np.empty(BLOCK, np.uint16)
        self.request_count = 0

    @property
    def bytes(self) -> int:
        arrays = (*self.rows.values(), *self.scores.values(), *self.requests.values(), self.request_of)
        return sum(array.nbytes for array in arrays)

    def put(self, rows: ServedRows, which: NDArray[np.intp], first: int) -> None:
        """Store the rows ``which`` at ``first`` and on."""
        here = slice(first, first + len(which))
        for name, column in self.rows.items():
            column[here] = getattr(rows, name)[which]
        for name in SCORES:
            self._put_score(name, getattr(rows, name)[which], first)
        request = rows.row_request[which]
        first_of = np.ones(len(request), bool)  # rows of a request stand together
        np.not_equal(request[1:], request[:-1], out=first_of[1:])
        requests = request[first_of]
        end = self.request_count + len(requests)
        self._make_room(end)
        self.request_of[here] = self.request_count - 1 + np.cumsum(first_of)
        for name, column in self.requests.items():
            column[self.request_count : end] = getattr(rows, name)[requests]
        self.request_count = end

    def empty_columns(self, count: int) -> dict[str, NDArray[Any]]:
        """Columns for ``count`` rows, not filled."""
        out = {name: np.empty(count, np.float32) for name in SCORES}
        for name, dtype in (("ids", np.uint64), ("dense", np.float32)):
            width = self.requests[f"request_{name}"].shape[1] + self.rows[f"ad_{name}"].shape[1]
            out[name] = np.empty((count, width), dtype)
        return {**out, "user_key": np.empty(count, np.uint64), "model_version": np.empty(count, np.int64)}

    def copy(self, rows: NDArray[np.int64], out: dict[str, NDArray[Any]], to: NDArray[np.intp]) -> None:
        """Write rows to ``to`` of such columns."""
        requests = self.request_of[rows]
        for name, score in self.scores.items():
            out[name][to] = score[rows] if len(score) == BLOCK else score[0]
        for name in ("user_key", "model_version"):
            out[name][to] = self.requests[name][requests]
        for name in ("ids", "dense"):
            gather(rows, requests, self.requests[f"request_{name}"], self.rows[f"ad_{name}"], to, out[name])

    def _put_score(self, name: str, values: NDArray[np.float32], first: int) -> None:
        score = self.scores[name]
        if len(score) == 1:
            if not first:
                score[0] = values[0]
            if (values.view(np.uint32) == score.view(np.uint32)).all():  # bits: NaN is equal to itself
                return
            self.scores[name] = score = np.full(BLOCK, score[0], np.float32)
        score[first : first + len(values)] = values

    def _make_room(self, requests: int) -> None:
        size = len(self.requests["user_key"])
        while size < requests:
            size *= 2
        if size > len(self.requests["user_key"]):
            for name, column in self.requests.items():
                self.requests[name] = _rows_like(column, size)
                self.requests[name][: self.request_count] = column[: self.request_count]


class PendingRows:
    """Indices for served rows, and their columns: an index is the number of its block times `BLOCK`, plus its row."""

    def __init__(self) -> None:
        self._blocks: list[_Block | None] = []
        self._free: list[int] = []  # a heap: low numbers first, so that those at the end can be given up
        self._open_block: int | None = None  # the block that is being filled
        self._open_rows = 0  # rows of it that are filled
        self._bytes = 0

    @property
    def block_count(self) -> int:
        """Blocks, those without rows too."""
        return len(self._blocks)

    @property
    def bytes(self) -> int:
        """Memory taken by columns."""
        return self._bytes

    @property
    def id_bytes(self) -> int:
        """The part of it that ids and dense inputs take."""
        blocks = [block for block in self._blocks if block is not None]
        rows = sum(column.nbytes for block in blocks for column in block.rows.values())
        return rows + sum(block.requests[name].nbytes for block in blocks for name in ("request_ids", "request_dense"))

    def next_indices(self, count: int) -> NDArray[np.int64]:
        """The indices of the next ``count`` rows; `put` takes the first of them."""
        indices, missing = [], count
        block, used = self._open_block, self._open_rows
        free = iter([*sorted(self._free), *range(len(self._blocks), len(self._blocks) + count // BLOCK + 1)])
        while missing:
            if block is None or used == BLOCK:
                block, used = next(free), 0
            taken = min(missing, BLOCK - used)
            indices.append(np.arange(block * BLOCK + used, block * BLOCK + used + taken))
            used += taken
            missing -= taken
        return np.concatenate(indices) if indices else np.zeros(0, np.int64)

    def put(self, rows: ServedRows, which: NDArray[np.intp]) -> None:
        """Store the rows ``which`` at the next indices."""
        at = 0
        while at < len(which):
            if self._open_block is None or self._open_rows == BLOCK:
                self._begin_block(rows)
            block = self._blocks[self._open_block or 0]
            assert block is not None
            part = which[at : at + BLOCK - self._open_rows]
            before = block.bytes
            block.put(rows, part, self._open_rows)
            self._bytes += block.bytes - before
            self._open_rows += len(part)
            at += len(part)

    def columns(self, indices: NDArray[np.int64], spare: int = 0) -> dict[str, NDArray[Any]]:
        """What was served at these indices, in their order: ids and dense inputs of request and ad side by side.

        The columns have ``spare`` rows more, not filled.
        """
        numbers = indices // BLOCK
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        out: dict[str, NDArray[Any]] = {}
        for part in np.split(order, cuts):
            block = self._blocks[int(numbers[part[0]])]
            assert block is not None
            out = out or block.empty_columns(len(indices) + spare)
            block.copy(indices[part] % BLOCK, out, part)
        return out

    def free(self, live: NDArray[np.int32], indices: NDArray[np.int64]) -> None:
        """Free the blocks of these indices in which no row is left; ``live`` counts them by block."""
        for number in np.unique(indices // BLOCK).tolist():
            block = self._blocks[number]
            if live[number] or block is None:
                continue
            if number == self._open_block and not (self._free and self._free[0] < number):
                self._open_rows, block.request_count = 0, 0  # it is filled again from its start
            else:
                self._blocks[number] = None
                self._bytes -= block.bytes
                heapq.heappush(self._free, number)
                if number == self._open_block:
                    self._open_block = None

    def trim(self) -> None:
        """Give up the numbers of empty blocks at the end, once they are most of all."""
        used = max((number for number, block in enumerate(self._blocks) if block is not None), default=-1) + 1
        if 2 * used < len(self._blocks):
            del self._blocks[used:]
            self._free = sorted(number for number in self._free if number < used)

    def _begin_block(self, like: ServedRows) -> None:
        block = _Block(like)
        self._bytes += block.bytes
        if self._free:
            self._open_block = heapq.heappop(self._free)
            self._blocks[self._open_block] = block
        else:
            self._open_block = len(self._blocks)
            self._blocks.append(block)
        self._open_rows = 0


def _rows_like(column: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.empty((rows, *column.shape[1:]), column.dtype)
