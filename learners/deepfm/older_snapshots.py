"""What snapshots say of a precision that was chosen by measurement: they go on in the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from learners.deepfm.config import DeepFMConfig

_BF16_CODE = 1  # ``precision.code`` of a state after bf16 had been chosen


def without_auto(manifest: Any) -> Any:
    """A decoded manifest with ``precision: auto`` in its config read as fp32; any other as it is."""
    config = manifest.get("config") if isinstance(manifest, dict) else None
    if not isinstance(config, dict) or config.get("precision") != "auto":
        return manifest
    return {**manifest, "config": {**config, "precision": "fp32"}}


def with_chosen_precision(config: DeepFMConfig, state: Mapping[str, NDArray[Any]]) -> DeepFMConfig:
    """``config``, with bf16 if the state notes that it was learned so."""
    if "precision.code" in state and int(state["precision.code"][0]) == _BF16_CODE:
        return replace(config, precision="bf16")
    return config
