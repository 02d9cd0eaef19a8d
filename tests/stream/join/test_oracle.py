"""The join core against an oracle that sees the whole log at once: any interleaving, any number of restarts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.clicks.stored_clicks import MemoryClickStore
from stream.join.core import JoinCore
from stream.join.late import with_late_clicks
from stream.join.output import JoinOutput, Resume
from stream.join.rejects import Reject
from stream.join.state import kernels as kernels
from stream.records.events import EventRows
from stream.records.examples import ExampleRows
from stream.records.served import ServedRows
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, INPUTS, SERVED
from tests.stream.join_harness import CONFIG, EMPTY, T0, Joined, as_examples, events, served
from tests.stream.oracle import Example, LogEvent, Rejected, join_whole_log

HOLDING = (SERVED, IMPRESSIONS, CLICKS)


@dataclass
class Log:
    """Four topics as lists of records; the offset of a record is its index."""

    served: list[ServedRows] = field(default_factory=list)
    events: dict[str, list[EventRows]] = field(default_factory=dict)

    def length(self, topic: str) -> int:
        """Records of a topic."""
        return len(self.served) if topic == SERVED else len(self.events[topic])

    def flat(self, topic: str) -> list[LogEvent]:
        """Rows of a topic in the order of their offsets."""
        if topic == SERVED:
            rows = (zip(one.impression_id.tolist(), one.served_ms.tolist(), strict=True) for one in self.served)
            return [LogEvent(key, ts_ms, user_key=key + 1) for record in rows for key, ts_ms in record]
        return [
            LogEvent(key, ts_ms, value, offset + 1, user_key)
            for offset, record in enumerate(self.events[topic])
            for key, ts_ms, value, user_key in zip(
                *(getattr(record, name).tolist() for name in ("impression_id", "ts_ms", "value", "user_key")),
                strict=True,
            )
        ]

    def feed(self, core: Joined, topic: str, offset: int) -> None:
        """Give one record to the core."""
        if topic == SERVED:
            core.served(self.served[offset], offset)
        elif topic == IMPRESSIONS:
            core.impressions(self.events[topic][offset], offset)
        elif topic == CLICKS:
            core.clicks(self.events[topic][offset], offset, produced_ms=offset + 1)
        else:
            core.conversions(self.events[topic][offset], offset)


def _records(rng: random.Random, rows: list[tuple[int, float, float, int]], disorder_s: float) -> list[EventRows]:
    """Rows in an order whose disorder stays within `disorder_s`, cut at random; some records carry a true promise."""
    ordered = sorted(rows, key=lambda row: row[1] + rng.uniform(0, disorder_s))
    out: list[EventRows] = []
    while ordered or not out:
        size = rng.choice((1, 1, 2, 5, 0))  # the first choice is what shrinking tends to
        batch, ordered = ordered[:size], ordered[size:]
        promise = min((row[1] for row in ordered), default=None) if rng.random() < 0.2 else None
        out.append(events(*batch, watermark_s=promise))
    return out


@st.composite
def logs(draw: st.DrawFn, disorder_s: float = 5.0) -> Log:
    """Logs with every fate: never displayed, late, unknown, repeated, converted early, never clicked, another's."""
    return random_log(draw(st.randoms(use_true_random=False)), draw(st.integers(1, 12)), disorder_s)


def random_log(rng: random.Random, most: int, disorder_s: float = 5.0) -> Log:
    """A log of ``most`` impressions."""
    rows: dict[str, list[tuple[int, float, float, int]]] = {topic: [] for topic in INPUTS}
    for key in range(1, most + 1):
        at = rng.randint(0, 100)
        if rng.random() < 0.9:
            rows[SERVED] += [(key, at, 0, 0)] * rng.choice((1, 1, 1, 2))
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            rows[IMPRESSIONS] += [(key, at + rng.randint(-2, 9), 0, 0)] * rng.choice((1, 1, 2))
        clicked = [at]
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            clicked.append(at + rng.choice((rng.randint(0, 12), rng.randint(10, 18), rng.randint(18, 42))))
            rows[CLICKS] += [(key, clicked[-1], 0, 0)] * rng.choice((1, 1, 2))
        for value in range(rng.choice((0, 0, 1, 2, 4))):
            late = 11_000 if rng.random() < 0.1 else 0
            converted = max(at, max(clicked) + rng.randint(-4, 40)) + late
            rows[CONVERSIONS] += [(key, converted, value + 1, 0)] * rng.choice((1, 1, 2))
        for topic in (IMPRESSIONS, CLICKS, CONVERSIONS):  # somebody else's, at the times of the user's own
            rows[topic] += [(*row[:3], 5) for row in rows[topic] if row[0] == key and rng.random() < 0.1]
    records = {topic: _records(rng, rows[topic], disorder_s) for topic in INPUTS}
    log = Log(events={topic: records[topic] for topic in (IMPRESSIONS, CLICKS, CONVERSIONS)})
    for record in records[SERVED]:
        seconds = (record.ts_ms - T0) / 1000
        batch = served(*zip(record.impression_id.tolist(), seconds.tolist(), strict=True))
        log.served.append(replace(batch, watermark_ms=record.watermark_ms))
    return log


@dataclass
class Run:
    """What one or more lives of a core have stored, as a worker would.

    ``atomic``: examples and offsets are stored in one go, as in a transaction; else record by record, then the offsets.
    """

    log: Log
    rng: random.Random
    atomic: bool = True
    stored: list[tuple[ExampleRows, int]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    committed: dict[str, int] = field(default_factory=dict)
    resume: Resume = field(default_factory=Resume)
    clicks: MemoryClickStore = field(default_factory=lambda: MemoryClickStore(2, 2))
    fence: int = 0  # examples before it are in `clicks`
    lives: int = 0
    reached: dict[str, float] = field(default_factory=dict)  # how far each input has come in this life at most, ms
    counted: dict[str, float] = field(default_factory=dict)  # and at least: an event that is refused moves no time
    came: list[tuple[str, int]] = field(default_factory=list)  # records since the last step, by their offsets

    def live(self, crash: float) -> bool:
        """Rebuild a core and feed it to the log's end, or until it crashes; return whether it reached the end."""
        self.lives += 1
        join = Joined(CONFIG)
        join.core.start_at(self.committed, self.resume)
        for offset, (rows, watermark_ms) in enumerate(self.stored):
            if offset >= self.resume.examples:
                join.core.restore(rows, offset, watermark_ms)
        self.catch_up()
        self.reached, self.came = dict.fromkeys(HOLDING, float("-inf")), []
        self.counted = dict(self.reached)
        at = {topic: self.committed.get(topic, 0) for topic in INPUTS}
        speed = {topic: self.rng.choice((1, 3, 20)) for topic in INPUTS}
        while left := [topic for topic in INPUTS if at[topic] < self.log.length(topic)]:
            topic = self.rng.choices(left, [speed[one] for one in left])[0]
            self.log.feed(join, topic, at[topic])
            self.came.append((topic, at[topic]))
            at[topic] += 1
            if self.rng.random() < 0.5 and not self.step(join.core, crash):
                return False
        if not self.step(join.core, crash):
            return False
        for topic in HOLDING:
            join.core.watermark(topic, T0 + 100_000_000)
            self.reached[topic] = self.counted[topic] = float("inf")
        ended = self.step(join.core, 0)
        assert (join.core.pending_rows, join.core.exposed_rows, join.core.waiting_events) == (0, 0, 0)
        return ended

    def come(self, rejects: Sequence[Reject]) -> None:
        """Note how far inputs have come: to the newest event, or to what was promised and the allowed lateness."""
        refused = {_identity(reject) for reject in rejects if reject.reason in ("late", "wrong_user")}
        for topic, offset in self.came:
            if topic == CONVERSIONS:
                continue
            record = self.log.served[offset] if topic == SERVED else self.log.events[topic][offset]
            promise_ms = record.watermark_ms + CONFIG.allowed_lateness_s * 1000 if record.watermark_ms else 0
            times = list(zip(record.impression_id.tolist(), record.ts_ms.tolist(), strict=True))
            self.reached[topic] = max(self.reached[topic], promise_ms, *(at for _, at in times))
            counting = (at for key, at in times if topic == SERVED or (topic, key, at) not in refused)
            self.counted[topic] = max(self.counted[topic], promise_ms, *counting)
        self.came = []

    def catch_up(self) -> None:
        """Bring the store of clicks up to the log."""
        for rows, _ in self.stored[self.fence :]:
            self.clicks.put(rows)
        self.fence = len(self.stored)

    def step(self, core: JoinCore, crash: float) -> bool:
        """Everything that the worker does between two readings; False for a crash on the way."""
        while True:
            records = {offset: rows for offset, (rows, _) in enumerate(self.stored)}
            if not self.store(core, with_late_clicks(core.poll(), records, 0), crash):
                return False
            self.catch_up()
            wanted = core.wanted_clicks()
            if not (len(wanted) and core.clicks_found(self.clicks.find(wanted))):
                return True

    def store(self, core: JoinCore, out: JoinOutput, crash: float) -> bool:
        """Store the output, then commit; return False for a crash before, between or after."""
        self.come(out.rejects)
        self.check_gate(as_examples(out.examples), core)
        dies_at = self.rng.randrange(3) if self.rng.random() > 1 - crash else None
        if dies_at == 0:
            return False
        reached_ms = self.stored[-1][1] if self.stored else 0
        assert out.watermark_ms >= reached_ms
        self.rejects += out.rejects
        records = list(self.records(out, reached_ms))
        offsets = [len(self.stored) + at for at in range(len(records))]
        if dies_at == 1 and not self.atomic:
            self.stored += [record for record, _ in records[: self.rng.randint(0, len(records))]]
            return False
        self.stored += [record for record, _ in records]
        assert all(out.offsets[topic] >= offset for topic, offset in self.committed.items() if topic in out.offsets)
        self.committed |= out.offsets
        self.resume = out.resume
        if dies_at == 2:
            return False
        core.stored(offsets, [first for _, first in records])
        return True

    def check_gate(self, found: list[Example], core: JoinCore) -> None:
        """No exposure without its click is ahead of the slowest input by more than the lead; all others are out."""
        gate_ms = min(self.reached.values()) + CONFIG.display_lead_s * 1000
        clicked = {one.impression_id for one in found if one.kind == CLICK}
        for one in found:
            if one.kind == EXPOSURE and one.impression_id not in clicked:
                assert one.ts_ms <= gate_ms
        surely_ms = min(self.counted.values()) + CONFIG.display_lead_s * 1000
        assert all(ts_ms > surely_ms for ts_ms in core.waiting_display_ms())

    def records(self, out: JoinOutput, before_ms: int) -> Iterator[tuple[tuple[ExampleRows, int], int]]:
        """The output cut into records, each with the row that it begins with; the last one carries the watermark."""
        rows = EMPTY if out.examples is None else out.examples
        cut = self.rng.randint(0, len(rows))
        if 0 < cut < len(rows):
            yield (rows.take(slice(0, cut)), before_ms), 0
            yield (rows.take(slice(cut, None)), out.watermark_ms), cut
        elif len(rows):
            yield (rows, out.watermark_ms), 0


def check_against_oracle(run: Run) -> None:
    """The stored examples are the oracle's, each once; so are the rejected events."""
    truth = join_whole_log(CONFIG, *(run.log.flat(topic) for topic in INPUTS))
    found = [one for rows, _ in run.stored for one in as_examples(rows)]
    assert sorted(found) == sorted(truth.examples)
    rejected = {_identity(reject) for reject in run.rejects}
    again: set[Rejected] = set()
    if (
        run.lives > 1
    ):  # what an earlier life joined and forgot is read again with the record that moved a watermark last
        clicked = {one.impression_id for one in truth.examples if one.kind == CLICK}
        again |= {(IMPRESSIONS, one.impression_id, one.ts_ms) for one in truth.examples}
        again |= {
            (CLICKS, one.impression_id, one.ts_ms) for one in run.log.flat(CLICKS) if one.impression_id in clicked
        }
    assert truth.rejected - truth.repeated <= rejected <= truth.rejected | truth.repeated | again
    kinds: dict[int, int] = {}
    for one in found:  # a click follows its exposure, a conversion its click
        assert one.kind == EXPOSURE or kinds[one.impression_id] >= one.kind - 1
        kinds[one.impression_id] = one.kind


def _identity(reject: Reject) -> Rejected:
    fields: Sequence[bytes] = reject.payload.split(b'"')
    return reject.topic, int(fields[3]), int(fields[6].strip(b":,"))


@settings(max_examples=300, deadline=None)
@given(log=logs(), rng=st.randoms(use_true_random=False))
def test_any_interleaving_equals_the_oracle(log: Log, rng: random.Random) -> None:
    """Whatever the speeds, cuts, repetitions and disorder within the allowed lateness, the examples are the same."""
    run = Run(log, rng)
    assert run.live(crash=0)
    check_against_oracle(run)


@settings(max_examples=300, deadline=None)
@given(log=logs(), rng=st.randoms(use_true_random=False), atomic=st.booleans())
def test_restarts_lose_and_double_nothing(log: Log, rng: random.Random, atomic: bool) -> None:
    """Cores die before, between and after storing and committing; the union of their examples is the oracle's."""
    run = Run(log, rng, atomic)
    while not run.live(crash=0.15):
        pass
    check_against_oracle(run)


@settings(max_examples=100, deadline=None)
@given(log=logs(), rng=st.randoms(use_true_random=False), window_s=st.sampled_from((0.001, 10.0, 1e6)))
def test_nothing_waits_for_the_click_window(log: Log, rng: random.Random, window_s: float) -> None:
    """The age at which a cohort counts as mature changes neither what the join puts out nor when."""
    outputs = []
    order = [topic for topic in INPUTS for _ in range(log.length(topic))]
    rng.shuffle(order)
    for config in (CONFIG, replace(CONFIG, click_window_s=window_s)):
        join, at = Joined(config), dict.fromkeys(INPUTS, 0)
        found = []
        for topic in order:
            log.feed(join, topic, at[topic])
            at[topic] += 1
            found.append(as_examples(join.poll().examples))
        outputs.append(found)
    assert outputs[0] == outputs[1]


@settings(max_examples=200, deadline=None)
@given(log=logs(disorder_s=200.0), rng=st.randoms(use_true_random=False))
def test_every_event_has_one_end_however_late_it_comes(log: Log, rng: random.Random) -> None:
    """Beyond the allowed lateness outcomes hang on arrival, but each row is exposed, repeated, dropped or rejected."""
    join = Joined(CONFIG)
    at = dict.fromkeys(INPUTS, 0)
    counts: Counter[str] = Counter()
    found: list[Example] = []

    def note(out: JoinOutput) -> None:
        counts.update(out.counts)
        counts.update(f"rejected_{reject.topic.split('.')[1]}" for reject in out.rejects)
        found.extend(as_examples(out.examples))

    while left := [topic for topic in INPUTS if at[topic] < log.length(topic)]:
        topic = rng.choice(left)
        log.feed(join, topic, at[topic])
        at[topic] += 1
        note(join.poll() if at[rng.choice(INPUTS)] % 2 or len(left) > 1 else join.advance(100_000))
    note(join.advance(1_000_000))
    assert (join.core.pending_rows, join.core.exposed_rows, join.core.waiting_events) == (0, 0, 0)
    shown = counts["exposures"]
    assert counts["rows_served"] == shown + counts["undisplayed"] + counts["duplicate_served"]
    assert counts["rows_impressions"] == shown + counts["duplicate_impressions"] + counts["rejected_impressions"]
    assert counts["rows_clicks"] == counts["clicks"] + counts["duplicate_clicks"] + counts["rejected_clicks"]
    ended = counts["conversions"] + counts["duplicate_conversions"] + counts["rejected_conversions"]
    assert counts["rows_conversions"] == ended
    assert Counter(one.kind for one in found) == {
        kind: counts[name]
        for kind, name in ((EXPOSURE, "exposures"), (CLICK, "clicks"), (CONVERSION, "conversions"))
        if counts[name]
    }
    once = [one for one in found if one.kind != CONVERSION]
    assert len(once) == len({(one.kind, one.impression_id) for one in once})
    assert len(found) == len({(one.kind, one.impression_id, one.known_ms) for one in found})
