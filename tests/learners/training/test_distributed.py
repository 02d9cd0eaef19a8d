"""Processes that train together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.training.distributed import SingleProcess, process_group, share_of
from tests.learners.torchrun import torchrun


@dataclass
class FakeRank(SingleProcess):
    """One of several, without the others."""

    rank: int = 0
    size: int = 1


@given(count=st.integers(1, 9), rows=st.integers(0, 300))
def test_shares_cover_a_batch_once_and_evenly(count: int, rows: int) -> None:
    """In the order of the ranks."""
    shares = [share_of(FakeRank(rank, count), rows) for rank in range(count)]
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(rows))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_a_process_of_its_own_is_alone() -> None:
    """Sums are what they were."""
    with process_group() as group:
        array: NDArray[Any] = np.ones(2, np.float32)
        group.all_reduce(array)
        assert (group.rank, group.size, group.all_gather("x"), array.tolist()) == (0, 1, ["x"], [1, 1])


def test_two_processes_add_and_gather(tmp_path: Path) -> None:
    """Both get the sum, and the values by rank."""
    program = Path(__file__).with_name("process_program.py")
    ended = torchrun(str(program), str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one["sums"] for one in said] == [[0, 3, 6, 9, 12]] * 2
    assert [one["share"] for one in said] == [[0, 3], [3, 7]]
    assert [one["ranks"] for one in said] == [[0, 1]] * 2
