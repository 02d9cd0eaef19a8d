"""Every decoder of the product on mutated inputs: taken and sound, or rejected with its reason; a bounded run."""

from __future__ import annotations

import pytest

from tests.fuzz.engine import explore, replay
from tests.fuzz.target import CORPUS, TAKEN
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.timeout(60)
_EXAMPLES = 40  # `make fuzz` runs for as long as it is told to
_FAILED_ONCE = [(target.name, path.name) for target in TARGETS.values() for path in target.corpus_files()]


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_taken_and_mutated_ones_are_sound_or_rejected(name: str) -> None:
    """The same inputs in every run."""
    target = TARGETS[name]
    assert [replay(target, seed) for seed in target.seeds()] == [TAKEN] * len(target.seeds())
    found = explore(target, seed=20, examples=_EXAMPLES, shrink=False)
    assert found.failure is None, found.failure
    assert found.executions >= _EXAMPLES // 2
    assert found.reasons.keys() - {TAKEN}, f"no mutated input was rejected: {found.reasons}"


@pytest.mark.parametrize(("name", "file"), _FAILED_ONCE)
def test_what_failed_once_does_not_fail_again(name: str, file: str) -> None:
    """Each file of the corpus."""
    replay(TARGETS[name], (CORPUS / name / file).read_bytes())
