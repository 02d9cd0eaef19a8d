"""What can be wrong with an input of the replay.

ReplayError
├── UnknownDatasetError  no dataset of that name
├── DataError            a missing, truncated or malformed file: names the file and, where it can, the row
└── PlaybackError        the loop cannot go on: serving or the workers stopped answering
"""

from __future__ import annotations


class ReplayError(Exception):
    """Base of every error that the replay raises for its user."""


class UnknownDatasetError(ReplayError, ValueError):
    """No dataset of that name."""


class DataError(ReplayError, ValueError):
    """A file of the dataset is missing, truncated or malformed."""


class PlaybackError(ReplayError, RuntimeError):
    """The live loop stopped answering."""
