"""A model's settings as a TOML file, for `DeepFMConfig` from the command line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from learners.deepfm.config import DeepFMConfig
from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD
from learners.nn.heads import Head

__all__ = ["read_model_config"]


def read_model_config(path: Path) -> DeepFMConfig:
    """The settings in ``path``; what it leaves out keeps its default.

    ::

        hidden = [256, 128]
        admit_after = 2
        expire_after_s = 2592000.0
        heads = [{ name = "click" }, { name = "conversion", given = "click", hidden = [32] }]

    Raises
    ------
    ValueError
        No TOML, a name that is no setting, a value of another type or out of range, a conversion head that is not given
        the click.
    OSError
        The file cannot be read.
    """
    try:
        given = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error!s:.200}. Correct it there.") from error
    _check_names(path, given, DeepFMConfig, "")
    heads = given.get("heads", ())
    for index, head in enumerate(heads if isinstance(heads, list) else ()):
        if isinstance(head, Mapping):
            _check_names(path, head, Head, f"heads[{index}].")
    try:
        config = msgspec.convert(given, DeepFMConfig)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {str(error).rstrip('.')}. Correct it there.") from error
    for of in config.heads:
        if of.name == CONVERSION_HEAD and of.given != CLICK_HEAD:
            raise ValueError(
                f"{path}: head {CONVERSION_HEAD} has given = {of.given!r}: it learns from clicks alone, and serving "
                f'would refuse each ad with a value. Write {{ name = "{CONVERSION_HEAD}", given = "{CLICK_HEAD}" }}.'
            )
    return config


def _check_names(path: Path, given: Mapping[str, Any], kind: type, prefix: str) -> None:
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{path} sets {prefix}{name}, which is no setting: the model would not have what you meant. "
                + (f"Write {near[0]}." if near else f"Known: {', '.join(known)}.")
            )
