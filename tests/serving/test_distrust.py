"""What serving is sent and must not believe: weights and calibration states of no model."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from safetensors.numpy import load, save

from calibration.cohorts import CohortTable
from calibration.head import HeadCalibration
from serving.calibrator import HotCalibrator
from serving.model import OfferResult
from stream.records.seal import sealed
from stream.records.topics import CALIBRATION, WEIGHTS
from stream.records.wire import DeltaPart
from tests.learners.small_spec import SMALL
from tests.serving import test_calibrator as calibrated
from tests.serving.conftest import Start
from tests.serving.test_model import ROWS, hot_model
from tests.serving.trainer import NOW_MS, Trainer, encoded, request, rows_of, wire


def altered(part: DeltaPart, **tensors: Any) -> DeltaPart:
    """The part with other tensors under a right checksum."""
    payload = save({**load(part.payload), **tensors})
    return msgspec.structs.replace(part, payload=payload, checksum=xxhash.xxh3_64_intdigest(payload))


def no_weights(part: DeltaPart) -> dict[str, DeltaPart]:
    """A delta of each kind that no learner makes."""
    held = load(part.payload)
    dense = next(name for name in held if name.startswith("dense."))
    nan, huge = held["values"].copy(), held[dense].copy()
    nan[0, 0], huge.flat[0] = np.nan, np.inf
    return {
        "NaN": altered(part, values=nan),
        "infinity": altered(part, **{dense: huge}),
        "keys of two dimensions": altered(part, keys=held["keys"].reshape(1, -1)),
        "values of one": altered(part, values=held["values"].ravel()),
        "removed of two": altered(part, removed=np.ones((2, 2), np.uint64)),
        "another type": altered(part, keys=held["keys"].astype(np.int64)),
        "key 0": altered(part, keys=np.zeros_like(held["keys"])),
        "other dense": altered(part, **{dense: held[dense].reshape(1, *held[dense].shape)}),
        "a name of ours missing": altered(part, **{dense + "2": held[dense]}),
        "no safetensors": msgspec.structs.replace(part, payload=b"?", checksum=xxhash.xxh3_64_intdigest(b"?")),
    }


@pytest.mark.parametrize("kind", no_weights(*Trainer().step()))
def test_a_delta_that_is_no_models_is_put_aside_and_the_true_one_is_taken(kind: str) -> None:
    """Nothing of it is applied; it is no gap, so that the log goes on from the version in use."""
    trainer = Trainer()
    hot = hot_model(trainer)
    before = hot.predict(ROWS).click
    (part,) = trainer.step()
    assert hot.offer(no_weights(part)[kind]) is OfferResult.GAP
    assert hot.fault
    assert not hot.lost
    np.testing.assert_array_equal(hot.predict(ROWS).click, before)
    assert hot.offer(part) is OfferResult.SWAPPED
    np.testing.assert_array_equal(hot.predict(ROWS).click, trainer.model.predict_many(ROWS))


def hostile_state(name: str) -> HeadCalibration:
    """A sound state but for one thing."""
    head = calibrated.state_of(1)
    head = HeadCalibration.from_bytes(head.to_bytes(), head.plan)
    table: CohortTable = head.evidence.table
    if name == "sums near 2^62":
        table._sums = table.sums() + 2**61
    elif name == "negative sums":
        table._sums = -table.sums()
    elif name == "cohorts of no time":
        table._start = table.starts() + 2**61
    elif name == "clock of no time":
        table.now_ms = -(2**62)
    elif name == "law of no counts":
        head.law._num = head.law._num - 5
    elif name == "events of no time":
        head._first_ms = 2**61
    else:
        head.gains = CohortTable(3)
    return head


@pytest.mark.parametrize(
    "name",
    ["sums near 2^62", "negative sums", "cohorts of no time", "clock of no time", "law of no counts",
     "events of no time", "other columns"],
)  # fmt: skip
def test_a_state_that_no_calibrator_counts_is_refused_and_the_map_stays(name: str) -> None:
    """Its checksums are right, its numbers are not."""
    hot = HotCalibrator(refit_interval_s=0)
    hot.offer(calibrated.record(0, 1, calibrated.state_of(1)))
    before, figures = hot.map, hot.figures()
    with pytest.raises(ValueError, match=r"(?i)drop"):
        hot.offer(calibrated.record(1, 1, hostile_state(name)))
    assert hot.map is before
    assert hot.figures() == figures
    assert hot.offer(calibrated.record(1, 1, calibrated.state_of(2)))


async def test_no_record_ends_a_follower(start: Start) -> None:
    """Garbage, tombstones, flipped bits, impossible values: counted, and what is true after them is served."""
    running = await start()
    (part,) = running.trainer.step()
    state = calibrated.record(0, 3, calibrated.state_of(1, SMALL.slice_plan), watermark_ms=NOW_MS)
    invalid = bytearray(encoded(part))
    invalid[invalid.index(part.spec_hash.encode())] = 0xFF
    cut = msgspec.structs.replace(state, state=state.state[:3])
    weights = [
        b"\xc1", b"\x91" * 900, bytes(invalid), encoded(msgspec.structs.replace(part, version=2**63)),
        *map(encoded, no_weights(part).values()), sealed(part)[:-3] + b"abc",
        encoded(msgspec.structs.replace(part, version=part.version + 9_000, parent=part.parent + 9_000)),
    ]  # fmt: skip
    states = [
        b"\xc1", encoded(cut), encoded(msgspec.structs.replace(state, partition=999)),
        encoded(msgspec.structs.replace(state, version=2**63)), sealed(state)[:-3] + b"abc",
        encoded(calibrated.record(0, 9, hostile_state("sums near 2^62"))),
    ]  # fmt: skip
    for topic, values in ((WEIGHTS, weights), (CALIBRATION, states)):
        for value in values:
            await running.producer.send(running.topics.name(topic), value, key=b"0", partition=0)
        await running.producer.send(running.topics.name(topic), None, key=b"0", partition=0)
    await running.publish(WEIGHTS, sealed(part))
    await running.publish(CALIBRATION, sealed(state))
    await running.until(lambda: running.server.model.version == part.version)
    await running.until(lambda: running.server.calibrator.map.version == 3)
    assert running.server.unready() == []
    rejected = running.server.metrics.registry.get_sample_value
    # After the stray it reads again; of states that came together the newest alone is decoded.
    for topic, least in ((WEIGHTS, len(weights)), (CALIBRATION, len(states) - 2)):
        labels = [{"topic": topic, "reason": reason} for reason in ("malformed", "schema", "gap")]
        found = [rejected("millstream_serving_rejected_records_total", one) or 0 for one in labels]
        assert sum(found) > least, found
    status, answer = await running.post("/v1/score", {"requests": [wire(request(5, range(1, 9)))]})
    assert status == 200
    expected = running.server.model.predict(rows_of([request(5, range(1, 9))])).click
    np.testing.assert_array_equal(np.array(answer["results"][0]["logit"], np.float32), expected)


async def test_a_failure_of_the_program_itself_is_counted_and_the_following_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever one record brings about: the next one is taken."""
    running = await start()
    works = running.server.model.offer

    def broken(part: DeltaPart) -> OfferResult:
        monkeypatch.setattr(running.server.model, "offer", works)
        raise LookupError("a fault of the program")

    (part,) = running.trainer.step()
    monkeypatch.setattr(running.server.model, "offer", broken)
    await running.publish(WEIGHTS, sealed(part))
    await running.publish(WEIGHTS, sealed(part))
    await running.until(lambda: running.server.model.version == part.version)
    labels = {"topic": WEIGHTS, "reason": "error"}
    assert running.server.metrics.registry.get_sample_value("millstream_serving_rejected_records_total", labels) == 1
    assert not running.server.weights.ended


async def test_answers_that_are_no_numbers_bring_the_last_good_version_back(start: Start) -> None:
    """503 once, then the newest snapshot that scores the same rows as numbers; ready again with a newer sound one."""
    running = await start()
    body = {"requests": [wire(request(5, range(1, 9)))]}
    assert (await running.post("/v1/score", body))[0] == 200
    good = running.server.model.version
    (part,) = running.trainer.step()
    huge = {n: np.full_like(a, 3e38) for n, a in load(part.payload).items() if n.startswith("dense.")}
    await running.publish(WEIGHTS, encoded(altered(part, **huge)))  # finite, and too large for any sum
    await running.until(lambda: running.server.model.version == part.version)
    status, answer = await running.post("/v1/score", body)
    assert status == 503
    assert "not finite" in answer["error"]
    await running.until(lambda: running.server.model.version == good)
    assert (await running.post("/v1/score", body))[0] == 200
    status, answer = await running.get("/readyz")
    assert status == 503
    assert f"model version {part.version} gave" in " ".join(answer["reasons"])
    running.trainer.step()
    running.trainer.snapshot(running.snapshots)
    await running.until(lambda: not running.server.unready())
    assert running.server.model.version == running.trainer.version
    assert (await running.post("/v1/score", body))[0] == 200
