"""How long a contestant worked, by the wall and by its core."""

from __future__ import annotations

import time


class Stopwatch:
    """Starts with the first record that was read."""

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None

    def start(self) -> None:
        """Start, unless it runs."""
        if self._started is None:
            self._started = time.perf_counter(), time.process_time()

    def stop(self, outputs: int) -> dict[str, float]:
        """The answer of a turn: ``outputs``, ``wall_s`` and ``core_s`` (of all threads of the process)."""
        stopped = time.perf_counter(), time.process_time()
        started = self._started or stopped
        return {"outputs": outputs, "wall_s": stopped[0] - started[0], "core_s": stopped[1] - started[1]}
