"""Every check of a run: what the topics, the stores and the files hold against what the inputs say they must."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from learners.examples.archive import read_examples
from learners.examples.archive_parts import ArchiveError
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.snapshots.snapshot import versions
from stream.calibrate.calibrator import PartitionCalibrator
from stream.records.topics import CALIBRATION, DEADLETTER, EXAMPLES, INPUTS, JOURNAL
from stream.records.wire import CalibrationRecord
from stream.servers.settings import StreamSettings
from tests.chaos.cluster import CALIBRATE_INTERVAL_S, CALIBRATOR, JOIN
from tests.chaos.outcome import ExamplesRecord, Outcome
from tests.chaos.progress import say
from tests.chaos.stores import Stores, folded_clicks, folded_sessions
from tests.chaos.topic_log import TopicLog
from tests.chaos.truth import Inputs
from tests.chaos.verdict import Check, alike, compare, covered, journalled
from tests.stream.oracle import Example, Truth
from tests.stream.pipeline import SPEC

_ROOT = Path(__file__).parents[2]


async def findings(
    log: TopicLog, outcome: Outcome, settings: StreamSettings, snapshots: Path, archive: Path
) -> list[Check]:
    """Read everything to its end and check it; workers and serving are stopped."""
    await log.read_on(*INPUTS, EXAMPLES, JOURNAL, CALIBRATION, DEADLETTER)
    inputs = Inputs.read(log)
    say(f"{len(inputs.rows):,} served rows, {sum(map(len, inputs.events.values())):,} events: asking the oracle")
    truth = inputs.truth(JOIN)
    return [
        *of_examples(truth, inputs, outcome),
        of_kinds(outcome),
        *of_rejects(truth, inputs, outcome),
        *await of_stores(Stores(settings.redis_url or "", SPEC), outcome),
        *journalled(outcome.learnable(), outcome.journal()),
        await of_weights(settings, snapshots, outcome),
        of_calibration(outcome),
        of_archive(archive, outcome),
    ]


def of_examples(truth: Truth, inputs: Inputs, outcome: Outcome) -> list[Check]:
    """The examples are the oracle's, exposures, clicks and conversions, and hold what was served."""
    found = [*outcome.examples()]
    wanted = {_identity(one): one for one in truth.examples}
    served = {key: row for key in wanted if (row := inputs.served.get(key[0])) is not None}
    keys = [_identity(example) for example, _ in found]
    return [
        compare("examples", wanted, zip(keys, (example for example, _ in found), strict=True)),
        compare("their columns as served", served, zip(keys, (row for _, row in found), strict=True)),
    ]


def _identity(example: Example) -> tuple[int, int, int]:
    """What is there once: an exposure and a click of an impression, and each of its conversions."""
    return example.impression_id, example.kind, example.known_ms if example.kind == CONVERSION else 0


def of_kinds(outcome: Outcome) -> Check:
    """Every kind of example came up: a run in which little happened proves little."""
    kinds = {example.kind for example, _ in outcome.examples()}
    return compare(
        "kinds of example that came up", dict.fromkeys((EXPOSURE, CLICK, CONVERSION)), dict.fromkeys(kinds).items()
    )


def of_rejects(truth: Truth, inputs: Inputs, outcome: Outcome) -> list[Check]:
    """What yields nothing is put aside, and nothing else."""
    events, records = outcome.rejected()
    return [
        covered("events put aside", truth.rejected - truth.repeated, truth.rejected | truth.repeated, events),
        covered("records put aside", inputs.unreadable, inputs.unreadable, records),
    ]


async def of_stores(stores: Stores, outcome: Outcome) -> list[Check]:
    """Session states and clicks are the folds of the examples topic, byte for byte."""
    sessions: dict[bytes, bytes] = {}
    clicks: dict[bytes, bytes] = {}
    found_sessions: dict[bytes, bytes] = {}
    found_clicks: dict[bytes, bytes] = {}
    ends = outcome.ends()
    for partition, records in outcome.partitions():
        sessions |= folded_sessions(SPEC, partition, records)
        clicks |= folded_clicks(SPEC, partition, records)
        found_sessions |= await stores.values(partition, ("u", "c"))
        found_clicks |= await stores.values(partition, ("click",))
    return [
        compare("session states", sessions, found_sessions.items()),
        compare("session fences", ends, (await stores.fences(len(ends), "fence")).items()),
        compare("clicks", clicks, found_clicks.items()),
    ]


async def of_weights(settings: StreamSettings, snapshots: Path, outcome: Outcome) -> Check:
    """The newest version, made again from the oldest snapshot and the journal, has the weights that were published."""
    version = max((record.version for record in outcome.journal()), default=0)
    say(f"making version {version} again from snapshot {min(versions(str(snapshots)))}")
    arguments = ["rebuild", "--snapshots", str(snapshots), "--version", str(version), "--json"]
    arguments += ["--from", str(min(versions(str(snapshots))))]
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers or "",
        "MILLSTREAM_PARTITIONS": str(settings.partitions),
        "OMP_NUM_THREADS": "1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stream", *arguments,
        cwd=_ROOT, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, complaint = await process.communicate()
    try:
        rebuilt: dict[str, Any] = orjson.loads(output)
    except orjson.JSONDecodeError:
        rebuilt = {}
    ways = {"made again": "sha256", "as published": "published_sha256", "its snapshot": "snapshot_sha256"}
    check = alike("weights, three ways", {way: rebuilt.get(name) for way, name in ways.items()})
    if not check.holds:
        check.instances.extend([*rebuilt.get("notes", ()), complaint.decode(errors="replace").strip()])
    return check


def of_calibration(outcome: Outcome) -> Check:
    """The newest state of each partition holds all of its examples, each once, in their order."""
    wanted = {partition: _state(_calibrated(partition, records)) for partition, records in outcome.partitions()}
    return compare("calibration states", wanted, ((p, _state(found)) for p, found in outcome.calibration().items()))


def _calibrated(partition: int, records: Iterable[ExamplesRecord]) -> CalibrationRecord | None:
    calibrator = PartitionCalibrator(partition, CALIBRATOR, CALIBRATE_INTERVAL_S, plan=SPEC.slice_plan)
    for record in records:
        calibrator.step(record.rows, record.offset, record.watermark_ms)
    return calibrator.take_publication(at_once=True)


def _state(record: CalibrationRecord | None) -> tuple[int, int, str] | None:
    if record is None:
        return None
    return record.rows, record.next_offset, hashlib.sha256(record.state).hexdigest()


def of_archive(archive: Path, outcome: Outcome) -> Check:
    """The archive holds every example at its place in the topic."""
    try:
        columns = read_examples(archive).columns
    except ArchiveError as error:
        return compare("examples in the archive", outcome.archived(), [(str(error), None)])
    keys = zip(*(columns[name].tolist() for name in ("partition", "offset", "ordinal")), strict=True)
    rows = zip(*(columns[name].tolist() for name in ("impression_id", "kind", "known_ms")), strict=True)
    return compare("examples in the archive", outcome.archived(), zip(keys, rows, strict=True))


def of_stops(statuses: Mapping[str, int]) -> Check:
    """Every program ends in good order when it is asked to."""
    return compare("programs stopped in good order", dict.fromkeys(statuses, 0), statuses.items())
