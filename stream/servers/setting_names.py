"""Variables that are named like a setting of ours and are none: they would be ignored in silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from stream.servers.known_settings import NAMES

_OWN = "MILLSTREAM_"
_OTHERS_TOO = ("KAFKA_", "REDIS_")  # other programs' settings begin so as well: only a near miss of ours is named
_NEAR = 0.6  # of difflib's ratio: LEARNBATCH is as near to LEARN_BATCH_ROWS
_VERY_NEAR = 0.9


def say_unknown_settings() -> None:
    """Say on stderr what is named like a setting in the environment and is none."""
    for fault in unknown_settings(os.environ):
        sys.stderr.write(f"warning: {fault}\n")


def unknown_settings(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that is named like a setting of ours and is none; its value is not in it."""
    for given in sorted(environment):
        name = given.upper()  # settings are read whatever their case
        if name in NAMES or not name.startswith((_OWN, *_OTHERS_TOO)):
            continue
        nearest = get_close_matches(name, NAMES, 1, _NEAR if name.startswith(_OWN) else _VERY_NEAR)
        if nearest:
            yield f"{given} is no setting and is ignored: did you mean {nearest[0]}?"
        elif name.startswith(_OWN):
            yield f"{given} is no setting and is ignored; the README lists those that there are. Unset it."
