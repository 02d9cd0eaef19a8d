"""Snapshots with right sizes and checksums whose content was altered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

State = dict[str, NDArray[Any]]


def forge(
    folder: Path,
    manifest: Callable[[dict[str, Any]], None] = lambda manifest: None,
    state: Callable[[State], None] = lambda state: None,
) -> None:
    """Alter what the manifest and the arrays say, and have every size and checksum fit again."""
    arrays = dict(load((folder / "model.safetensors").read_bytes()))
    state(arrays)
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    (folder / "model.safetensors").write_bytes(data)
    facts = json.loads((folder / "manifest.json").read_bytes())
    facts["files"]["model.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest(facts)
    (folder / "manifest.json").write_text(json.dumps(facts))
