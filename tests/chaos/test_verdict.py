"""The verdict finds what is lost, doubled or changed, however little it is."""

from __future__ import annotations

import msgspec
import numpy as np
import orjson
import pytest

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.clicks.stored_clicks import packed, packed_times
from stream.kafka.broker import Broker
from stream.records.examples import ExampleRows, concat
from stream.records.topics import CLICKS, CONVERSIONS, DEADLETTER, EXAMPLES, IMPRESSIONS, SERVED
from stream.records.wire import SCORES, DeadLetter, JournalRecord, OffsetRange
from tests.chaos.cluster import JOIN
from tests.chaos.findings import of_examples, of_kinds, of_rejects
from tests.chaos.outcome import ExamplesRecord, Outcome
from tests.chaos.simulated_users import BROKEN_MARK
from tests.chaos.stores import folded_clicks, folded_sessions
from tests.chaos.topic_log import Stored, TopicLog
from tests.chaos.truth import Inputs
from tests.chaos.verdict import Check, alike, compare, covered, journalled
from tests.stream.pipeline import SPEC, START_MS, events, serve, silent

CLICKED, UNCLICKED = 1, 2
CLICK_MS, CONVERSION_MS = START_MS + 3_000, START_MS + 9_000
PRODUCED_MS = 77


def counts(check: Check) -> tuple[int, int, int]:
    """Lost, doubled, changed."""
    return check.lost, check.doubled, check.changed


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("a1 b2", (0, 0, 0)),
        ("a1", (1, 0, 0)),
        ("a1 b2 b2", (0, 1, 0)),
        ("a1 b2 c3", (0, 1, 0)),
        ("a1 b9", (0, 0, 1)),
        ("a1 b2 b9", (0, 1, 1)),
        ("", (2, 0, 0)),
    ],
)
def test_each_key_once_with_its_content(found: str, expected: tuple[int, int, int]) -> None:
    """What is missing is lost, what comes again or was never expected doubled, another content changed."""
    check = compare("letters", {"a": "1", "b": "2"}, [(one[0], one[1]) for one in found.split()])
    assert counts(check) == expected
    assert check.holds == (expected == (0, 0, 0))
    assert bool(check.instances) != check.holds


def test_a_set_holds_what_it_must_and_nothing_beyond_what_it_may() -> None:
    """Between the two it is free."""
    assert covered("letters", {"a"}, {"a", "b"}, {"a"}).holds
    assert covered("letters", {"a"}, {"a", "b"}, {"a", "b"}).holds
    assert counts(covered("letters", {"a"}, {"a", "b"}, {"b"})) == (1, 0, 0)
    assert counts(covered("letters", {"a"}, {"a", "b"}, {"a", "c"})) == (0, 1, 0)


def test_ways_to_one_value_agree_or_do_not() -> None:
    """A way that leads nowhere, or elsewhere, does not hold."""
    assert alike("weights", {"one": "x", "other": "x"}).holds
    assert counts(alike("weights", {"one": "x", "other": None})) == (1, 0, 0)
    assert counts(alike("weights", {"one": "x", "other": "y"})) == (0, 0, 1)
    assert not alike("weights", {"one": None, "other": None}).holds


def step(version: int, rows: int, *offsets: int) -> JournalRecord:
    """A step over one range of partition 0: from offset, from row, to offset, to row."""
    names = ("from_offset", "from_row", "to_offset", "to_row")
    ranges = [OffsetRange(partition=0, **dict(zip(names, offsets, strict=True)))]
    return JournalRecord(version=version, rows=rows, ranges=ranges, watermark_ms=0)


FIRST, SECOND = step(1, 2, 0, 0, 0, 2), step(2, 3, 0, 2, 5, 0)


@pytest.mark.parametrize(
    ("journal", "of_rows", "of_versions"),
    [
        ([FIRST, SECOND], (0, 0, 0), (0, 0, 0)),
        ([FIRST], (3, 0, 0), (0, 0, 0)),
        ([SECOND], (2, 0, 0), (1, 0, 0)),
        ([FIRST, SECOND, SECOND], (0, 3, 0), (0, 1, 0)),
        ([FIRST, step(2, 4, 0, 1, 5, 0)], (0, 1, 0), (0, 0, 0)),
        ([FIRST, step(2, 2, 1, 0, 5, 0)], (1, 0, 0), (0, 0, 0)),
        ([FIRST, step(2, 4, 0, 2, 5, 0)], (0, 0, 0), (0, 0, 1)),
        ([FIRST, step(3, 3, 0, 2, 5, 0)], (0, 0, 0), (1, 0, 0)),
    ],
)
def test_journal_holds_every_row_once(
    journal: list[JournalRecord], of_rows: tuple[int, int, int], of_versions: tuple[int, int, int]
) -> None:
    """A gap loses rows, an overlap doubles them; versions follow each other with as many rows as they say."""
    learnable = {0: [(0, 0), (0, 1), (0, 2), (4, 0), (4, 1)]}
    assert [counts(check) for check in journalled(learnable, journal)] == [of_rows, of_versions]


class Case:
    """Two impressions, one of which is clicked and converts, and what a faultless stream makes of them."""

    def __init__(self) -> None:
        self.log = TopicLog(Broker(bootstrap="", prefix="", partitions=1, idempotent=True))
        shown = serve([7, 8], [START_MS, START_MS], 1, first_id=CLICKED)
        self.user_key = shown.user_key
        self.columns = shown.record[0].arrays()
        self._offsets = 0
        self.put(SERVED, shown.record[0].encode())
        self.put(SERVED, silent(START_MS + 1).encode())
        displayed = [(key, START_MS + 1_000, self.user_key[key - 1]) for key in (CLICKED, UNCLICKED)]
        self.put(IMPRESSIONS, events(displayed, watermark_ms=START_MS + 2_000).encode())
        self.put(CLICKS, self.json(CLICK_MS, impression_id=CLICKED))
        self.put(CONVERSIONS, self.json(CONVERSION_MS, impression_id=CLICKED, value=2.5))
        self.put(CONVERSIONS, b'{"watermark_ms": 1700000000000}')
        exposures = [self.rows(key, EXPOSURE, known_ms=START_MS + 1_000, delay_ms=0) for key in (CLICKED, UNCLICKED)]
        click = self.rows(CLICKED, CLICK, known_ms=CLICK_MS, delay_ms=2_000, click_produced_ms=PRODUCED_MS)
        conversion = self.rows(CLICKED, CONVERSION, known_ms=CONVERSION_MS, delay_ms=6_000, value=2.5)
        self.examples = concat([*exposures, click, conversion])

    @staticmethod
    def json(ts_ms: int, **fields: float) -> bytes:
        """An event of a client."""
        return orjson.dumps({"ts_ms": ts_ms, "user_key": "1", **fields})

    def put(self, topic: str, value: bytes) -> int:
        """One more record; its offset."""
        self._offsets += 1
        self.log.take(topic, 0, Stored(self._offsets, PRODUCED_MS, value))
        return self._offsets

    def rows(self, impression_id: int, kind: int, **outcome: float) -> ExampleRows:
        """One example as a faultless join would write it."""
        at, columns = impression_id - 1, self.columns
        example = {
            "kind": kind,
            "impression_id": impression_id,
            "user_key": columns["user_key"][at],
            "ts_ms": START_MS + 1_000,
            "value": 0.0,
            "model_version": 0,
            "click_produced_ms": 0,
            **{name: columns[name][at] for name in SCORES},
            "ids": np.concatenate([columns["request_ids"][at], columns["ad_ids"][at]]),
            "dense": np.concatenate([columns["request_dense"][at], columns["ad_dense"][at]]),
            **outcome,
        }
        empty = ExampleRows.empty(SPEC.id_columns, SPEC.dense_inputs).columns()
        return ExampleRows(**{name: np.asarray(example[name], empty[name].dtype)[None] for name in empty})

    def checks(self, examples: ExampleRows) -> list[Check]:
        """What is found of such examples: of themselves, their columns."""
        self.put(EXAMPLES, examples.to_record(SPEC.hash, 0).encode())
        inputs = Inputs.read(self.log)
        return of_examples(inputs.truth(JOIN), inputs, Outcome(self.log))


@pytest.fixture
def case() -> Case:
    """A fresh one."""
    return Case()


def test_faultless_examples_hold(case: Case) -> None:
    """Two exposures, a click, a conversion."""
    checks = case.checks(case.examples)
    assert [check.expected for check in checks] == [4, 4]
    assert all(check.holds for check in checks)


@pytest.mark.parametrize("missing", range(4))
def test_a_lost_example_is_found(case: Case, missing: int) -> None:
    """Whichever kind it is of."""
    kept = np.delete(np.arange(4), missing)
    examples, columns = case.checks(case.examples.take(kept))
    assert (counts(examples), counts(columns)) == ((1, 0, 0), (1, 0, 0))


@pytest.mark.parametrize("twice", range(4))
def test_a_doubled_example_is_found(case: Case, twice: int) -> None:
    """Whichever kind it is of."""
    examples, columns = case.checks(concat([case.examples, case.examples.take(slice(twice, twice + 1))]))
    assert (counts(examples), counts(columns)) == ((0, 1, 0), (0, 1, 0))


@pytest.mark.parametrize("column", ["ts_ms", "known_ms", "delay_ms", "value", "click_produced_ms"])
def test_an_example_with_another_outcome_is_found(case: Case, column: str) -> None:
    """Any of what the oracle knows."""
    getattr(case.examples, column)[0] += 1
    examples, columns = case.checks(case.examples)
    assert (counts(examples), counts(columns)) == ((0, 0, 1), (0, 0, 0))


@pytest.mark.parametrize("column", ["user_key", "model_version", *SCORES, "ids", "dense"])
def test_an_example_that_was_not_served_so_is_found(case: Case, column: str) -> None:
    """Any of what serving logged."""
    getattr(case.examples, column)[2] += 1
    examples, columns = case.checks(case.examples)
    assert (counts(examples), counts(columns)) == ((0, 0, 0), (0, 0, 1))


def test_two_conversions_of_a_click_are_two(case: Case) -> None:
    """One at another time is expected once it happened, and an equal one never."""
    case.put(CONVERSIONS, case.json(CONVERSION_MS + 1, impression_id=CLICKED, value=4.0))
    case.put(CONVERSIONS, case.json(CONVERSION_MS + 1, impression_id=CLICKED, value=4.0))
    assert counts(case.checks(case.examples)[0]) == (1, 0, 0)
    more = case.rows(CLICKED, CONVERSION, known_ms=CONVERSION_MS + 1, delay_ms=6_001, value=4.0)
    case.put(EXAMPLES, more.to_record(SPEC.hash, 0).encode())
    inputs = Inputs.read(case.log)
    assert all(check.holds for check in of_examples(inputs.truth(JOIN), inputs, Outcome(case.log)))


def test_a_run_in_which_little_happened_proves_little(case: Case) -> None:
    """A kind of example that never came up does not hold."""
    case.checks(case.examples.take(case.examples.kind != CLICK))
    assert counts(of_kinds(Outcome(case.log))) == (1, 0, 0)


def test_what_must_be_put_aside_is_known_and_nothing_else(case: Case) -> None:
    """Of unknown impressions, of a clock never set, unreadable: each by what it was; letters may come twice."""
    unknown, misdated = case.json(START_MS, impression_id=9), case.json(5, impression_id=10)
    broken = b"{" + BROKEN_MARK + b"1"
    put = {
        case.put(CLICKS, unknown): (CLICKS, unknown),
        case.put(CLICKS, misdated): (CLICKS, misdated),
        case.put(IMPRESSIONS, broken): (IMPRESSIONS, broken),
    }
    inputs = Inputs.read(case.log)
    truth, outcome = inputs.truth(JOIN), Outcome(case.log)
    assert [counts(check) for check in of_rejects(truth, inputs, outcome)] == [(2, 0, 0), (1, 0, 0)]
    for offset, (topic, payload) in [*put.items(), *put.items()]:
        case.put(DEADLETTER, letter(topic, offset, payload))
    assert all(check.holds for check in of_rejects(truth, inputs, outcome))
    case.put(DEADLETTER, letter(CLICKS, 4, case.json(CLICK_MS, impression_id=CLICKED)))
    assert [counts(check) for check in of_rejects(truth, inputs, outcome)] == [(0, 1, 0), (0, 0, 0)]


def letter(topic: str, offset: int, payload: bytes) -> bytes:
    """A record of the dead letters."""
    found = DeadLetter.of(topic, 0, offset, "schema", "", payload)
    return msgspec.msgpack.encode(found)


def test_stores_are_folds_of_the_examples(case: Case) -> None:
    """A display or an outcome more is another state; a conversion shows in the click it is of."""
    whole = [ExamplesRecord(0, 0, case.examples, 0)]
    without = [ExamplesRecord(0, 0, case.examples.take(slice(0, 3)), 0)]
    sessions, clicks = folded_sessions(SPEC, 0, whole), folded_clicks(SPEC, 0, whole)
    assert sessions.keys() == folded_sessions(SPEC, 0, without).keys()
    assert sessions != folded_sessions(SPEC, 0, without)
    (name,) = clicks
    row = packed(case.examples.take(slice(2, 3)))[0]
    assert name.endswith(b"{0}:click:%016x" % CLICKED)
    (time,) = packed_times(np.array([CONVERSION_MS]))
    assert (clicks[name], folded_clicks(SPEC, 0, without)[name]) == (row + time, row)
