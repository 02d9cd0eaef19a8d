"""What the learning loop is beside its model: what a snapshot holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.metrics.divergence import WatchState
from learners.protocol.state_names import prefixed, under
from stream.learn.click_silence import SilenceState

CLICK_DELAYS, STEP = "click_delays.", "step."
"""Of ``LoopState.arrays``: the law of the clicks' delays, and what the step follows."""
_JSON, _ARRAYS = "loop.state", "loop.array."


class LoopState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a restarted loop needs beside the model: goes into the snapshot."""

    version: int
    positions: dict[int, tuple[int, int]]  # partition -> (offset, row) of the first row not learned
    watermarks: dict[int, int]  # partition -> watermark_ms
    watermark_ms: int
    newest_event_ms: int
    loss_watch: WatchState = WatchState()
    skipped_in_a_row: int = 0  # batches, the last ones
    silence: SilenceState = SilenceState()
    arrays: dict[str, Any] = {}  # not in the JSON

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays beside those of the model."""
        encoded = msgspec.json.encode(msgspec.structs.replace(self, arrays={}))
        return {_JSON: np.frombuffer(encoded, np.uint8), **prefixed(_ARRAYS, self.arrays)}

    @classmethod
    def from_arrays(cls, state: Mapping[str, NDArray[Any]]) -> LoopState | None:
        """What `to_arrays` gave, None where there is none; msgspec.ValidationError for anything else."""
        if _JSON not in state:
            return None
        decoded = msgspec.json.decode(np.asarray(state[_JSON]).tobytes(), type=cls)
        return msgspec.structs.replace(decoded, arrays=under(_ARRAYS, state))


def check_layout(state: Mapping[str, NDArray[Any]], layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise ValueError for an array of another type or shape than ``layout`` says; −1 is any length."""
    for name, (dtype, shape) in layout.items():
        if name not in state:
            continue
        found = state[name]
        fits = found.ndim == len(shape) and all(a in (-1, b) for a, b in zip(shape, found.shape, strict=True))
        if found.dtype != np.dtype(dtype) or not fits:
            raise ValueError(
                f"{name} is {found.shape} of {found.dtype}, and must be {shape} of {np.dtype(dtype)} (-1: any length): "
                "what is counted on in it would be cut or mean something else"
            )
