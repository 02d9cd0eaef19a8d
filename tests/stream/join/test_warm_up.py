"""After the warm-up the join compiles nothing more, whatever comes: in a process that has joined nothing before."""

from __future__ import annotations

import subprocess
import sys

import stream.join.state.kernels
import stream.join.state.waiting
from stream.join.warm_up import load_join_kernels
from tests.bench.join_core import core


def compiled() -> dict[str, int]:
    """How often each kernel of the join was compiled, for so many types of arguments."""
    modules = (stream.join.state.kernels, stream.join.state.waiting)
    kernels = {name: one for module in modules for name, one in vars(module).items() if hasattr(one, "signatures")}
    return {name: len(one.signatures) for name, one in kernels.items()}


def main() -> None:
    """Write which kernels the warm-up missed."""
    load_join_kernels()
    before = compiled()
    right = core(impressions=20_000, rounds=1)["right"]
    missed = [name for name, count in compiled().items() if count != before[name]]
    sys.stdout.write(f"right {right}, missed {missed}")


def test_nothing_is_compiled_after_the_warm_up() -> None:
    """With records as a worker reads them."""
    run = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, timeout=170)
    assert run.stdout == "right 1.0, missed []", run.stderr


if __name__ == "__main__":
    main()
