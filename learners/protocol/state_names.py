"""Names of a state's arrays: those of a part stand under the part's name and a dot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def prefixed(prefix: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """A part's arrays by their names in the whole; the arrays are not copied."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def under(prefix: str, state: Arrays) -> dict[str, NDArray[Any]]:
    """What stands under ``prefix``, by its names in the part: the inverse of ``prefixed``."""
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
