"""Runs targets for a time in a process of their own, and says what failed: also a hang, a death, memory without end."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import resource
import signal
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase

from tests.fuzz.target import TAKEN, Target
from tests.fuzz.targets import TARGETS

CPU_S = 3.0
"""Of one input: no record, body or file of these sizes needs a tenth of it."""
_MOST_CPU_S = 30.0  # where it is ended: the first input of a kind may compile kernels
MEMORY_BYTES = 600 << 20
"""By which the process may grow over one input; the largest bound of the product is 256 MiB."""
_PATIENCE_S = 120.0  # where nothing in Python can end it
_ROUND = 100  # inputs between two looks at the clock
_HEADER = struct.Struct("<QQ")  # inputs so far, length of the present one
_SHARED_BYTES = 8 << 20
_ALL_HEALTHY = list(HealthCheck)


class HangError(AssertionError):
    """An input took longer than any may."""


class GrowthError(AssertionError):
    """An input took more memory than any may."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The smallest input that made a target fail."""

    target: str
    value: bytes
    error: str


class Explored(NamedTuple):
    """What became of a target's inputs."""

    target: str
    executions: int
    reasons: dict[str, int]  # of rejection; "": taken
    failure: Failure | None


def replay(target: Target, value: bytes) -> str:
    """Run one input within its bounds. Raises what the target raises, HangError, GrowthError."""
    before = _peak_bytes()
    for _ in range(2):
        began_s = time.process_time()
        with _cpu_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reason = target.run(value)
        if (took_s := time.process_time() - began_s) < CPU_S:
            break
    else:
        raise HangError(f"{took_s:.1f} s of processor time for {len(value)} bytes, {CPU_S:g} may be")
    if (grown := _peak_bytes() - before) > MEMORY_BYTES:
        raise GrowthError(f"the process grew by {grown >> 20} MiB over {len(value)} bytes, {MEMORY_BYTES >> 20} may be")
    return reason


def explore(
    target: Target, *, seed: int, examples: int, note: Callable[[bytes], None] = lambda _: None, shrink: bool = True
) -> Explored:
    """Run so many mutated inputs, fewer when one fails; the same ones for the same seed.

    note : told of each before it is run.
    """
    reasons: dict[str, int] = {}
    smallest: list[Failure] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=_ALL_HEALTHY,
        derandomize=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    @hypothesis.given(target.inputs())
    def run(value: bytes) -> None:
        note(value)
        try:
            reason = replay(target, value)
        except Exception as error:
            failure = Failure(target.name, value, f"{type(error).__name__}: {error}")
            if not smallest or len(value) <= len(smallest[0].value):
                smallest[:] = [failure]
            raise
        reasons[reason] = reasons.get(reason, 0) + 1

    with contextlib.suppress(Exception), contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hypothesis prints what it found, and warns of its size
        run()
    executions = sum(reasons.values()) + bool(smallest)
    return Explored(target.name, executions, reasons, smallest[0] if smallest else None)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _cpu_limit() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise HangError(f"more than {_MOST_CPU_S:g} s of processor time for one input")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _MOST_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


# ---------------------------------------------------------------------------------------------- in a process of its own


class Campaign:
    """Goes through targets for some seconds in all, and starts its process again when one of them killed it.

    Parameters
    ----------
    progress : told of each target when its time is over.
    """

    def __init__(self, names: Sequence[str], seconds: float, seed: int, progress: Callable[[Explored], None]) -> None:
        self._names = [*names]
        self._seconds = seconds / max(1, len(self._names))
        self._seed = seed
        self._progress = progress

    def run(self) -> list[Explored]:
        """What was found, target by target."""
        found: list[Explored] = []
        with tempfile.TemporaryFile() as file:
            file.truncate(_SHARED_BYTES)
            with mmap.mmap(file.fileno(), _SHARED_BYTES) as shared:
                while len(found) < len(self._names):
                    found += self._process(self._names[len(found) :], file.fileno(), shared)
        return found

    def _process(self, names: Sequence[str], descriptor: int, shared: mmap.mmap) -> list[Explored]:
        """What a process said of its targets; of the one that it died or hung over what is known of that."""
        shared[: _HEADER.size] = bytes(_HEADER.size)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        process = context.Process(target=_child, args=(list(names), self._seconds, self._seed, path, theirs))
        process.start()
        theirs.close()
        found: list[Explored] = []
        heard, before = time.monotonic(), b""
        while len(found) < len(names):
            if ours.poll(0.5):
                try:
                    found.append(ours.recv())
                except EOFError:
                    break
                self._progress(found[-1])
            if (now := shared[: _HEADER.size]) != before or not process.is_alive():
                heard, before = time.monotonic(), now
            if time.monotonic() - heard > _PATIENCE_S:
                process.kill()
        process.join()
        if len(found) < len(names):
            found.append(self._died(names[len(found)], shared, process.exitcode))
            self._progress(found[-1])
        return found

    @staticmethod
    def _died(name: str, shared: mmap.mmap, status: int | None) -> Explored:
        count, length = _HEADER.unpack(shared[: _HEADER.size])
        value = shared[_HEADER.size : _HEADER.size + length]
        return Explored(name, count, {}, Failure(name, value, f"the process ended with {status} over this input"))


def _child(names: Sequence[str], seconds: float, seed: int, path: str, said: Connection) -> None:
    shared_file = Path(path).open("r+b")  # noqa: SIM115 - for as long as the process lives
    with mmap.mmap(shared_file.fileno(), _SHARED_BYTES) as shared:
        for name in names:
            said.send(_explore_for(TARGETS[name], seconds, seed, shared))


def _explore_for(target: Target, seconds: float, seed: int, shared: mmap.mmap) -> Explored:
    began, executions, reasons = time.monotonic(), 0, dict[str, int]()

    def note(value: bytes) -> None:
        nonlocal executions
        executions += 1
        kept = value[: _SHARED_BYTES - _HEADER.size]
        shared[: _HEADER.size + len(kept)] = _HEADER.pack(executions, len(kept)) + kept

    failure = None
    while failure is None and time.monotonic() - began < seconds:
        found = explore(target, seed=seed, examples=_ROUND, note=note)
        failure, seed = found.failure, seed + 1
        for reason, count in found.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return Explored(target.name, executions, reasons, failure)


def as_json(found: Explored) -> dict[str, Any]:
    """For `--json`."""
    said: dict[str, Any] = {
        "target": found.target,
        "executions": found.executions,
        "taken": found.reasons.get(TAKEN, 0),
        "rejected": {reason: count for reason, count in sorted(found.reasons.items()) if reason != TAKEN},
    }
    if found.failure is not None:
        said["failure"] = {"error": found.failure.error, "input_hex": found.failure.value[:200].hex()}
    return said
