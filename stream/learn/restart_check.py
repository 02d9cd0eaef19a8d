"""Whether a learner could go on from a snapshot: asked before it is taken, so that an older one is tried instead."""

from __future__ import annotations

import numpy as np

from learners.features.spec import FeatureSpec
from learners.protocol.state_names import under
from learners.snapshots.manifest import UnsoundSnapshotError
from learners.snapshots.snapshot import Snapshot, check_columns
from stream.learn.click_silence import ClickSilence
from stream.learn.model_step import check_step_state
from stream.learn.state import CLICK_DELAYS, STEP, LoopState

_MOST = (1 << 63) - 1


def check_restart(snapshot: Snapshot, spec: FeatureSpec) -> None:
    """Raise UnsoundSnapshotError where its columns are not the spec's, or its loop's state is none."""
    check_columns(snapshot, spec)
    try:
        state = LoopState.from_arrays(snapshot.state)
        if state is not None:
            _check_numbers(state, snapshot)
            ClickSilence(least_probability=0.0, state=state.silence, law=under(CLICK_DELAYS, state.arrays))
            check_step_state(under(STEP, state.arrays), snapshot.shape.id_columns, snapshot.shape.dense)
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise UnsoundSnapshotError(
            f"snapshot {snapshot.version} holds no state that a learner could go on from ({type(error).__name__}: "
            f"{error!s:.300}): it was altered or damaged. Take an older snapshot."
        ) from error


def _check_numbers(state: LoopState, snapshot: Snapshot) -> None:
    if state.version != snapshot.version:
        raise ValueError(f"its loop stood at version {state.version}: rows between the two would be learned twice")
    numbers = [state.watermark_ms, state.newest_event_ms, state.skipped_in_a_row, *state.watermarks.values()]
    numbers += [*state.positions, *(number for position in state.positions.values() for number in position)]
    if outside := [number for number in numbers if not 0 <= number <= _MOST]:
        raise ValueError(f"{outside[0]} must be 0 to {_MOST}: it is no position, time or count")
    for name, array in state.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite: every weight learned from it would be wrong")
