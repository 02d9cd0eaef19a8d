"""All names that a setting of the environment can have, so that one which is none does not pass in silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

_OWN = "MILLSTREAM_"
_OTHERS_TOO = ("KAFKA_", "REDIS_")  # other programs' settings begin so as well: only a near miss of ours is named
_NEAR = 0.6  # of difflib's ratio: LEARNBATCH is as near to LEARN_BATCH_ROWS
_VERY_NEAR = 0.9

_SERVERS = (
    *("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SESSION_TIMEOUT_S", "KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_MECHANISM"),
    *("KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD", "KAFKA_SSL_CAFILE", "KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEYFILE"),
    *("KAFKA_SSL_KEYFILE_PASSWORD", "REDIS_URL", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_SSL_CAFILE"),
    *("REDIS_SSL_CERTFILE", "REDIS_SSL_KEYFILE", "REDIS_SSL_KEYFILE_PASSWORD"),
)
_MILLSTREAM = (
    *("PARTITIONS", "REPLICATION_FACTOR", "TOPIC_PREFIX", "TEST_BROKER"),
    # options of the worker's command line
    *("SPEC", "ARCHIVE", "CLOCK", "RUNNER"),
    # of the worker
    *("CLICK_WINDOW_S", "DISPLAY_HORIZON_S", "CLICK_HORIZON_S", "CONVERSION_HORIZON_S", "ALLOWED_LATENESS_S"),
    *("DISPLAY_LEAD_S", "IDLE_TIMEOUT_S", "MAX_AHEAD_S", "JOIN_MEMORY_BYTES", "MOST_UNLEARNED_ROWS"),
    *("LEARN_BATCH_ROWS", "LEARN_INTERVAL_S", "PUBLISH_INTERVAL_S", "SNAPSHOT_INTERVAL_S", "DIVERGED_LOSS_RATIO"),
    *("DIVERGED_LOSS_BATCHES", "MOST_SKIPPED_BATCHES", "SILENCE_PROBABILITY", "EXPOSURE_RATE", "FORCE_BASE"),
    *("CONVERSION_DELAY_MEDIAN_S", "CONVERSION_DELAY_SIGMA", "MOST_DELAYED_CLICKS", "ARCHIVE_ROWS"),
    *("ARCHIVE_INTERVAL_S", "HALF_LIFE_CLICKS", "GATE_HALF_LIFE_CLICKS", "CONVERSION_WINDOW_S"),
    "CALIBRATE_INTERVAL_S",
    # of serving
    *("FEATURE_REFRESH_S", "FEATURE_TIMEOUT_S", "HEARTBEAT_S", "FRESH_WITHIN_S", "MAP_REFIT_INTERVAL_S"),
    *("SERVED_QUEUE_BYTES", "MAX_ADS", "MAX_REQUESTS"),
)

NAMES = frozenset(_SERVERS) | {_OWN + name for name in _MILLSTREAM}
"""A test compares them with the settings' classes."""


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
