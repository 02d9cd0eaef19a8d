"""One run of base training: read the archive, train, report, write the snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from learners.deepfm.autograd_network import chosen_device
from learners.deepfm.model import DeepFMConfig
from learners.examples.archive import log_reach, read_examples, spec_name_of
from learners.examples.examples import Examples
from learners.examples.split import day_span_ms
from learners.features.shape import ModelShape
from learners.features.spec import FeatureSpec, load_spec
from learners.snapshots.next_base import write_base
from learners.snapshots.snapshot import Written, versions
from learners.snapshots.store import store_of
from learners.training.base import Base, BaseConfig, Progress, known_users, train_base
from learners.training.checkpoints import Checkpoints
from learners.training.distributed import ProcessGroup
from learners.training.report import QUALITY_HEADING, OfflineReport, offline_report, plain_quality, quality_line
from learners.training.segments import SegmentRows, check_wanted, segments

_EVER = 2**62


class ReplicaError(RuntimeError):
    """The processes' models differ: one of them computes other bits, so none can be trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseJob:
    """What to train on, how, and where to put it.

    ``since`` and ``until`` are local days of the feature spec, both included, of the events' times.
    ``spec``, ``checkpoints`` and both days may be empty: the archive's spec, no checkpoints, no bound.
    ``segments`` and ``values`` are those of `learners.training.segments.segments`. ``new_log``: the stream to start
    with it will write another log than the one that was archived.
    """

    examples: str
    out: str
    spec: str = ""
    since: str = ""
    until: str = ""
    config: BaseConfig = field(default_factory=BaseConfig)
    model_config: DeepFMConfig = field(default_factory=DeepFMConfig)
    checkpoints: str = ""
    resume: bool = False
    device: str = "auto"
    segments: Sequence[str] = ()
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    new_log: bool = False

    def __post_init__(self) -> None:
        if self.resume and not self.checkpoints:
            raise ValueError("--resume needs --checkpoints: there is nothing to go on from. Name their folder.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """What came out."""

    base: Base
    report: OfflineReport
    written: Written
    replicas: list[str]  # SHA-256 of each process's weights, all equal
    waits: bool = False  # until the learner of the store, which is in use, starts again

    def lines(self) -> Iterator[str]:
        """For people: the report, the way there, the snapshot."""
        yield from self.report.lines()
        yield ""
        ways = [(f"validation, after epoch {at}", of) for at, of in enumerate(self.base.epochs, 1)]
        ways += [("holdout, by all before it", self.base.holdout)]
        ways += zip(("validation, progressive", "holdout, progressive"), self.base.replayed, strict=True)
        yield QUALITY_HEADING
        yield from (quality_line(name, of) for name, of in ways)
        group = f" by {len(self.replicas)} processes, replicas equal" if len(self.replicas) > 1 else ""
        yield f"{self.base.rows} rows learned{group}; snapshot {self.written.url}"
        if self.waits:
            yield "the learner goes over to it at its next start: restart the worker"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        base = self.base
        return {
            "url": self.written.url,
            "waits": self.waits,
            "sha256": self.written.sha256,
            "weights_sha256": self.replicas,
            "rows": base.rows,
            "train_rows": len(base.split.train),
            "validation_from_ms": base.split.validation_from_ms,
            "holdout_from_ms": base.split.holdout_from_ms,
            "watermark_ms": base.watermark_ms,
            "epochs": [plain_quality(epoch) for epoch in base.epochs],
            "holdout": plain_quality(base.holdout),
            "replayed": {
                name: plain_quality(of) for name, of in zip(("validation", "holdout"), base.replayed, strict=True)
            },
            "report": self.report.plain(),
        }


def run(job: BaseJob, group: ProcessGroup, progress: Progress) -> Trained | None:
    """Train as one of the processes; the first one reports and writes, the others get None.

    Raises
    ------
    ValueError
        An archive, spec, day, segment or checkpoint that cannot be used; its message is for the user.
    DivergenceError
        The rates are too high for these examples.
    ReplicaError
        The processes ended with different weights.
    """
    for folder in filter(None, (job.out, job.checkpoints)):
        store_of(folder).check_writable()
    spec = load_spec(job.spec or spec_name_of(job.examples))
    check_wanted(spec, job.segments)
    span = day_span_ms(job.since, job.until, spec.utc_offset_s) or (-_EVER, _EVER)
    reach = log_reach(job.examples, until_ms=span[1])  # before the rows: an archiver may add to them meanwhile
    offsets = _offsets(job, reach)
    examples = read_examples(job.examples, spec_hash=spec.hash, known_ms=span).before(reach)
    trained = train_base(
        examples,
        ModelShape.of(spec),
        model_config=job.model_config,
        config=job.config,
        group=group,
        checkpoints=Checkpoints(job.checkpoints) if job.checkpoints else None,
        resume=job.resume,
        goes_on=bool(offsets),
        device=chosen_device(job.device, group.rank),
        progress=progress,
    )
    replicas: list[str] = group.all_gather(trained.model.weights_sha256())
    if len(set(replicas)) > 1:
        raise ReplicaError(
            f"processes ended with weights {replicas}, which must be equal: their machines or builds compute other "
            "bits. Nothing was written; run all processes on machines of one kind."
        )
    if group.rank:
        return None
    report = _report(job, spec, examples, trained)
    in_use = bool(versions(job.out))
    written = write_base(job.out, trained.snapshot(offsets))
    return Trained(base=trained, report=report, written=written, replicas=replicas, waits=in_use)


def _offsets(job: BaseJob, reach: dict[int, int]) -> dict[int, int]:
    """Where a stream goes on that starts with this base."""
    offsets = {} if job.new_log else reach
    if not offsets and (published := versions(job.out)):
        why = "it is to begin a new log" if job.new_log else f"{job.examples} does not say where in its log they stand"
        raise ValueError(
            f"{job.out} has version {published[0]} of a stream, and this base none of its offsets, since {why}: the "
            "learner would learn examples twice. Train on the stream's own archive, or give an empty directory."
        )
    return offsets


def _report(job: BaseJob, spec: FeatureSpec, examples: Examples, trained: Base) -> OfflineReport:
    index = trained.split.holdout
    columns = examples.columns
    rows = SegmentRows(examples.rows.ids[index], columns["ts_ms"][index], columns["user_key"][index])
    cut = segments(spec, rows, known_users(examples, trained.split), wanted=job.segments, values=job.values)
    return offline_report(trained.holdout_logits, examples.clicked(index), cut)
