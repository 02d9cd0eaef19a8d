"""The verdict finds what is lost, doubled or changed, however little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import orjson
import pytest

from learners.kinds import CONVERSION, SETTLED
from stream.broker import Broker
from stream.examples import Displays, ExampleRows, concat
from stream.examples_log import decode_record
from stream.records import DeadLetter, JournalRecord, OffsetRange
from stream.topics import CLICKS, CONVERSIONS, DEADLETTER, EXAMPLES, IMPRESSIONS, SERVED
from tests.chaos.cluster import JOIN
from tests.chaos.findings import of_examples, of_rejects
from tests.chaos.outcome import ExamplesRecord, Outcome
from tests.chaos.stores import folded_clicks, folded_sessions
from tests.chaos.topic_log import Stored, TopicLog
from tests.chaos.truth import Inputs
from tests.chaos.verdict import Check, alike, compare, covered, journalled
from tests.stream.rig import SPEC, START_MS, example_rows, serve

STEPS = [  # three rows in offset 0, two in offset 2, and what made which version of them
    JournalRecord(version=1, rows=2, watermark_ms=0, ranges=[OffsetRange(0, 0, 0, 0, 2)]),
    JournalRecord(version=2, rows=3, watermark_ms=0, ranges=[OffsetRange(0, 0, 2, 3, 0)]),
]
