"""The child's side of a benchmark: one contestant in its own process takes turns on command.

Commands come as JSON lines on stdin, answers go as JSON lines to the file descriptor that ``BENCH_ANSWERS_FD`` names:
libraries print on stdout as they please. A contestant is anything with the two methods of `Contestant`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.bench.rows import BATCH, ClickRows, load

ANSWERS_FD = "BENCH_ANSWERS_FD"


class Contestant(Protocol):
    """A learner under measurement."""

    def learn(self, rows: ClickRows) -> None:
        """One pass over the rows in their order, in batches of ``BATCH``."""

    def probabilities(self, rows: ClickRows) -> NDArray[Any]:
        """Predicted click probability of each row, (n,)."""


def log_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean negative log likelihood, with probabilities cut at 1e-7 from 0 and 1 for every contestant alike."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(labels > 0.5, np.log(p), np.log1p(-p))))


def take_turns(make: Callable[[float | None], Contestant], prepare: Callable[[ClickRows], Any] | None = None) -> None:
    """Serve turns until stdin ends.

    ``{"turn": "speed", "batches": n}`` learns the next n batches with a model kept between turns: rows, ``core_s``
    (the core time of the process) and ``wall_s``.
    ``{"turn": "quality", "rate": r, "train": n, "held_out": m}`` learns rows [0, n) once with a new model at learning
    rate r: log loss on the m rows after them.

    Parameters
    ----------
    make
        A new contestant at a learning rate, None for its own default.
    prepare
        Puts rows into the form that the contestant's users hold before learning; outside the timed part.
    """
    rows = load(Path(sys.argv[1]))
    form = prepare or (lambda part: part)
    model = make(None)
    position = 0

    def speed(batches: int) -> dict[str, float]:
        nonlocal position
        count = batches * BATCH
        if position + count > len(rows.ids):
            position = 0
        part = form(rows.part(position, position + count))
        position += count
        started, used = time.perf_counter(), time.process_time()
        model.learn(part)
        return {"rows": count, "core_s": time.process_time() - used, "wall_s": time.perf_counter() - started}

    def quality(rate: float, train: int, held_out: int) -> dict[str, float]:
        fresh = make(rate)
        fresh.learn(form(rows.part(0, train)))
        unseen = rows.part(train, train + held_out)
        return {"log_loss": log_loss(fresh.probabilities(form(unseen)), unseen.labels)}

    serve({"speed": speed, "quality": quality})


def serve(turns: Mapping[str, Callable[..., Mapping[str, float]]]) -> None:
    """Answer each line of stdin, ``{"turn": name, ...arguments}``, until it ends."""
    with os.fdopen(int(os.environ.get(ANSWERS_FD, "1")), "w") as answers:
        for line in sys.stdin:
            arguments = json.loads(line)
            answers.write(json.dumps(turns[arguments.pop("turn")](**arguments)) + "\n")
            answers.flush()
