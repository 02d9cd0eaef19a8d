"""A worker and serving among mutated records and bodies: a bounded run of what `make fuzz` does for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.programs import fuzz_programs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


async def test_programs_live_count_what_they_reject_and_learn_what_is_valid(tmp_path: Path) -> None:
    """No 5xx but 503, no traceback, finite weights, every valid display learned once."""
    outcome = await fuzz_programs(tmp_path, seconds=1.5, seed=7, lives=1)
    assert outcome.faults == []
    assert outcome.records > 20
    assert outcome.calls > 10
    assert outcome.rejected > 10
