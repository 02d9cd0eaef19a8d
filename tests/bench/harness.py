"""What every benchmark shares: processes pinned to a core, and the table of measures against their targets."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.bench.turns import ANSWERS_FD

ROOT = Path(__file__).parents[2]
PEER_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Child:
    """A process on cores of its own choice that takes turns, see `tests.bench.turns`.

    Only the one whose turn it is works: A and B measured in alternation meet the same disturbances.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        cores: Sequence[int],
        python: str | Path = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
        inherited |= dict.fromkeys(_THREAD_SETTINGS, str(len(cores)))
        answers, child_end = os.pipe()
        self._module = module
        self._process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            cwd=ROOT,
            env=inherited | dict(environment or {}) | {ANSWERS_FD: str(child_end)},
            pass_fds=(child_end,),
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            text=True,
        )
        os.close(child_end)  # so that the answers end when the child does
        self._answers = os.fdopen(answers)
        os.sched_setaffinity(self._process.pid, cores)  # before the interpreter has started a thread

    def turn(self, name: str, **arguments: Any) -> dict[str, float]:
        """Run one turn and return its answer.

        Raises
        ------
        RuntimeError
            The process died; its own words are on stderr.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"turn": name, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(
                f"{self._module} ended with exit code {self._process.wait()} in its turn {name!r}: nothing was "
                "measured. Its traceback is above; `make bench` installs what the peers need."
            )
        answer: dict[str, float] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._process.stdin is not None:
            self._process.stdin.close()
        else:
            self._process.kill()
        self._process.wait()
        self._answers.close()


@dataclass(frozen=True, slots=True)
class Bound:
    """What a measure is held against: ``of`` names the column, ``least`` or ``most`` its bound."""

    of: Literal["ours", "ratio", "share of roof"]
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        sign, value = ("≥", self.least) if self.most is None else ("≤", self.most)
        return f"{self.of} {sign} {value:g}"

    def holds(self, value: float) -> bool:
        """Whether the value is within the bound; NaN is not."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One line of the table. ``ratio`` is ours / peer; a measure without a target is there for reading."""

    name: str
    ours: float
    peer: float | None = None
    roof: float | None = None  # in the unit of ``ours``
    target: Bound | None = None

    @property
    def ratio(self) -> float | None:
        """Ours / peer."""
        return None if self.peer is None else self.ours / self.peer

    @property
    def share(self) -> float | None:
        """Ours / roof."""
        return None if self.roof is None else self.ours / self.roof

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        value = {"ours": self.ours, "ratio": self.ratio, "share of roof": self.share}[self.target.of]
        return value is not None and self.target.holds(value)


COLUMNS = ("measure", "ours", "peer", "ratio", "share of roof", "target", "holds")


def as_json(benchmark: str, measures: Iterable[Measure]) -> str:
    """One object: the benchmark, the machine, the measures, and whether all targets are met."""
    found = list(measures)
    lines = [
        {
            "measure": measure.name,
            "ours": measure.ours,
            "peer": measure.peer,
            "ratio": measure.ratio,
            "share_of_roof": measure.share,
            "target": None if measure.target is None else asdict(measure.target),
            "holds": measure.holds,
        }
        for measure in found
    ]
    return json.dumps({"benchmark": benchmark, "machine": machine(), "measures": lines, "holds": all_hold(found)})


def as_table(measures: Iterable[Measure]) -> str:
    """The same as aligned columns."""
    cells = [
        (
            measure.name,
            _number(measure.ours),
            _number(measure.peer),
            _number(measure.ratio),
            "" if measure.share is None else f"{measure.share:.0%}",
            str(measure.target or ""),
            {True: "yes", False: "NO", None: ""}[measure.holds],
        )
        for measure in measures
    ]
    widths = [max(len(line[column]) for line in (COLUMNS, *cells)) for column in range(len(COLUMNS))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (COLUMNS, *cells)
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "-+-".join("-" * width for width in widths), *lines[1:]))


def all_hold(measures: Iterable[Measure]) -> bool:
    """Whether no target is missed."""
    return all(measure.holds is not False for measure in measures)


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def progress(text: str) -> None:
    """A line on stderr: results alone go to stdout."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def median(values: Iterable[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
