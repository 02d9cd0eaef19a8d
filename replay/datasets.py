"""The datasets by name."""

from __future__ import annotations

from pathlib import Path

from replay.errors import DataError, UnknownDatasetError
from replay.kuairand import KuaiRand
from replay.marketplace import Marketplace
from replay.scenario import Scenario

NAMES = ("kuairand", "marketplace")


def open_dataset(name: str, data: Path | None) -> Scenario:
    """The scenario of that name.

    Raises
    ------
    UnknownDatasetError
        Naming the known ones.
    DataError
        When the dataset needs a folder and got none, or the folder's files are not whole.
    """
    if name == "marketplace":
        return Marketplace()
    if name == "kuairand":
        if data is None:
            raise DataError("dataset kuairand is read from files: name their folder with --data DIR.")
        if not data.is_dir():
            raise DataError(f"--data {data} is not a folder: name the folder that holds the KuaiRand-Pure files.")
        return KuaiRand(data)
    raise UnknownDatasetError(f"unknown dataset {name!r}: choose one of {', '.join(NAMES)}.")
