"""What changed in a model between two published versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

_NO_CLICKS = np.empty(0, np.int64)
_DENSE = "dense."


class DeltaError(ValueError):
    """A delta that cannot be read or does not fit; whoever follows the deltas must reload a snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delta:
    """Weights of ``version`` that differ from those of ``parent``; optimiser state stays with the learner.

    ``version == parent`` is a heartbeat: nothing changed, but everything up to ``watermark_ms`` has been learned.
    """

    spec_hash: str
    version: int
    parent: int
    watermark_ms: int  # event time: every example known before it is in this version
    newest_event_ms: int  # event time of the newest example learned so far
    # (C,) wall-clock times at which the broker received the clicks that are first learned here
    clicks_produced_ms: NDArray[np.int64] = field(default_factory=lambda: _NO_CLICKS)
    rows: NDArray[np.uint32]  # (n,) ascending table rows
    values: NDArray[np.float32]  # (n, dim + 1) their vector and first-order weight
    dense: Mapping[str, NDArray[np.float32]]  # every dense parameter, whole

    @classmethod
    def heartbeat(cls, *, spec_hash: str, version: int, watermark_ms: int, newest_event_ms: int) -> Self:
        """A delta without any change."""
        return cls(
            spec_hash=spec_hash,
            version=version,
            parent=version,
            watermark_ms=watermark_ms,
            newest_event_ms=newest_event_ms,
            rows=np.empty(0, np.uint32),
            values=np.empty((0, 0), np.float32),
            dense={},
        )

    @property
    def is_heartbeat(self) -> bool:
        """True when the model did not change."""
        return self.version == self.parent

    def payload(self) -> bytes:
        """The weights as safetensors; empty for a heartbeat."""
        if self.is_heartbeat:
            return b""
        tensors = {"rows": self.rows, "values": self.values}
        return save(tensors | {_DENSE + name: np.ascontiguousarray(array) for name, array in self.dense.items()})


def weights_of(payload: bytes) -> tuple[NDArray[np.uint32], NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Rows, values and dense parameters of ``Delta.payload``.

    Raises
    ------
    DeltaError
        Bytes that are not safetensors or lack rows or values.
    """
    try:
        tensors = load(payload)
        rows, values = tensors.pop("rows"), tensors.pop("values")
    except (SafetensorError, KeyError) as error:
        raise DeltaError(
            f"a delta payload of {len(payload)} bytes is unreadable: {error}. Reload a snapshot."
        ) from error
    return rows, values, {name.removeprefix(_DENSE): array for name, array in tensors.items()}
