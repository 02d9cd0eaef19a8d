"""Live progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0


class Progress:
    """Says what is going on, on stderr; ``quiet`` says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(message)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of things done since its last call."""
        if self._console.is_terminal:
            with Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
                console=self._console,
            ) as bar:  # fmt: skip
                yield _BarCount(bar, what, total)
        else:
            count = _LineCount(self.say, what, total)
            yield count
            count.line()


class _BarCount:
    def __init__(self, bar: Bar, what: str, total: int) -> None:
        self._bar, self._began, self._done = bar, time.monotonic(), 0
        self._task = bar.add_task(what, total=total, rate="")

    def __call__(self, done: int) -> None:
        self._done += done
        rate = self._done / max(time.monotonic() - self._began, 1e-6)
        self._bar.update(self._task, advance=done, rate=f"{rate:,.0f}/s")


class _LineCount:
    def __init__(self, say: Callable[[str], None], what: str, total: int) -> None:
        self._say, self._what, self._total = say, what, total
        self._began = self._said = time.monotonic()
        self._done = 0

    def __call__(self, done: int) -> None:
        self._done += done
        if time.monotonic() - self._said >= LINE_EVERY_S:
            self.line()

    def line(self) -> None:
        """Say how far it is."""
        self._said = time.monotonic()
        elapsed = self._said - self._began
        share = self._done / self._total if self._total else 1.0
        self._say(
            f"{self._what}: {self._done:,}/{self._total:,} ({share:.0%}), {self._done / max(elapsed, 1e-6):,.0f}/s"
        )
