"""What changed in a model between two published versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

_NO_CLICKS, _NO_KEYS = np.empty(0, np.int64), np.empty(0, np.uint64)
_DENSE = "dense."


class DeltaError(ValueError):
    """A delta that cannot be read or does not fit; who follows the deltas must reload a snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delta:
    """Weights of ``version`` that differ from those of ``parent``, and keys that it no longer has; no optimiser state.

    ``version == parent`` is a heartbeat: nothing changed, but everything up to ``watermark_ms`` has been learned.
    """

    spec_hash: str
    version: int
    parent: int
    watermark_ms: int  # event time: every example known before it is in this version
    newest_event_ms: int  # event time of the newest example learned so far
    # (C,) wall-clock times at which the broker received the clicks that are first learned here
    clicks_produced_ms: NDArray[np.int64] = field(default_factory=lambda: _NO_CLICKS)
    keys: NDArray[np.uint64]  # (n,) ascending
    values: NDArray[np.float32]  # (n, dim + 1) their vector and first-order weight
    removed: NDArray[np.uint64] = field(default_factory=lambda: _NO_KEYS)  # (m,) ascending: keys without a row now
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
            keys=_NO_KEYS,
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
        tensors: dict[str, NDArray[Any]] = {"keys": self.keys, "values": self.values, "removed": self.removed}
        return save(tensors | {_DENSE + name: np.ascontiguousarray(array) for name, array in self.dense.items()})


class Weights(NamedTuple):
    """What a payload holds; the fields are those of `Delta`."""

    keys: NDArray[np.uint64]
    values: NDArray[np.float32]
    removed: NDArray[np.uint64]
    dense: dict[str, NDArray[np.float32]]


def weights_of(payload: bytes) -> Weights:
    """The weights in a ``Delta.payload``.

    Raises
    ------
    DeltaError
        Bytes that are not safetensors or lack keys, values or removed keys; arrays of other types or dimensions, key
        0, weights that are not finite.
    """
    try:
        tensors = load(payload)
        keys, values, removed = (tensors.pop(name) for name in ("keys", "values", "removed"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DeltaError(
            f"a delta payload of {len(payload)} bytes is unreadable: {error}. Reload a snapshot."
        ) from error
    for name, array, dtype, dimensions in (
        ("keys", keys, np.uint64, 1),
        ("removed", removed, np.uint64, 1),
        ("values", values, np.float32, 2),
        *((name, array, np.float32, None) for name, array in tensors.items()),
    ):
        if array.dtype != dtype or (dimensions or array.ndim) != array.ndim:
            raise DeltaError(
                f"a delta's {name} are {array.shape} of {array.dtype}, not {np.dtype(dtype)} of the model's "
                "dimensions: they are the weights of no model. Reload a snapshot."
            )
        if dtype is np.float32 and not np.isfinite(array).all():
            raise DeltaError(
                f"{np.count_nonzero(~np.isfinite(array))} of {array.size} weights in a delta's {name} are not finite: "
                "every row that meets them would be scored NaN. Look at the learner; reload a snapshot."
            )
    if len(values) != len(keys) or not keys.all():
        raise DeltaError(f"a delta has {len(keys)} keys, a 0 among them, or not as many values: reload a snapshot.")
    return Weights(keys, values, removed, {name.removeprefix(_DENSE): array for name, array in tensors.items()})
