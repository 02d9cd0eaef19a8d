"""Threads that share the chunks of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Condition

import torch

Work = Callable[[int, slice], None]
"""Of a thread, counted from 0, on some rows."""


class ChunkThreads:
    """Chunk i is thread (i mod T)'s. What must be done in the chunks' order each thread does for its own.

    So a thread finds in its cache what it has just made, and while it adds that up the others are at their next chunk.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        # torch counts its own threads per thread: without this each of ours would start some, and change the bits.
        self._pool = (
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) if threads > 1 else None
        )

    def each(self, chunks: Sequence[slice], work: Work, in_order: Work | None = None) -> None:
        """``work`` on all chunks side by side, and after it on each ``in_order``, one after the other as they lie.

        What one of them raises ends the others after the chunk that they are at.
        """
        if self._pool is None or len(chunks) < 2:
            for chunk in chunks:
                work(0, chunk)
                if in_order is not None:
                    in_order(0, chunk)
            return
        turns = _Turns()

        def share(thread: int) -> None:
            with turns:
                for index in range(thread, len(chunks), self.threads):
                    work(thread, chunks[index])
                    if not turns.wait(index):
                        return
                    if in_order is not None:
                        in_order(thread, chunks[index])
                    turns.end()

        shares = [self._pool.submit(share, thread) for thread in range(min(self.threads, len(chunks)))]
        wait(shares)  # all of them: the buffers are the next batch's
        for done in shares:
            done.result()


class _Turns:
    """Whose turn it is; once a thread has left by an exception, nobody's."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._now = 0
        self._over = False

    def wait(self, index: int) -> bool:
        """Until it is ``index``'s turn; whether that will ever be."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._now == index)
            return not self._over

    def end(self) -> None:
        """The next one's turn."""
        with self._changed:
            self._now += 1
            self._changed.notify_all()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with self._changed:
                self._over = True
                self._changed.notify_all()
