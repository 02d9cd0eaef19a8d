"""The model in use: a snapshot and every delta since, swapped while requests are answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.config import DeepFMConfig
from learners.deepfm.delta import Delta, DeltaError
from learners.examples.terms import CONVERSION_HEAD
from learners.features.rows import Rows
from learners.nn.heads import Head
from serving.freshness import Freshness
from stream.records.deltas import DeltaAssembler, DeltaGapError
from stream.records.wire import DeltaPart

_ASKED_AGAIN = 256  # rows
_REMEMBERED_VERSIONS = 4096  # about an hour of deltas, one a second


class WeightsModel(Protocol):
    """What serving needs of a learner: scores, and weights that deltas can be written into."""

    @property
    def config(self) -> DeepFMConfig:
        """It names the heads."""
        ...

    def predict_heads(self, rows: Rows) -> NDArray[np.float32]:
        """(B, H) logits, one a head; the first is that of the click."""
        ...

    def apply(self, delta: Delta) -> None:
        """Write the changed weights; DeltaError, and nothing written, when they do not fit."""
        ...


class Logits(NamedTuple):
    """Raw outputs of B rows, by one version."""

    click: NDArray[np.float32]  # (B,)
    conversion: NDArray[np.float32] | None  # (B,) of P(conversion | click); None: the model has no such head


def conversion_head(heads: Sequence[Head]) -> int | None:
    """Where among ``heads`` P(conversion | click) stands; None when the model does not predict it.

    A head of that name that is given something else, or nothing, is another probability: it is not taken for this one.
    """
    return next(
        (at for at, head in enumerate(heads) if head.name == CONVERSION_HEAD and head.given == heads[0].name), None
    )


class OfferResult(Enum):
    """What became of a part."""

    SWAPPED = "swapped"  # it completed a version, which is live now
    HEARTBEAT = "heartbeat"  # the version stays; the learner has seen further
    PARTIAL = "partial"  # the other parts of the version must follow
    SKIPPED = "skipped"  # the model has that version already
    GAP = "gap"  # a version is missing, damaged or of another line: install a snapshot


class UnsoundVersion(NamedTuple):
    """A version that answered NaN or infinity."""

    version: int
    rows: Rows  # the first that it was asked so; a version that is to replace it must score them
    detail: str


class HotModel:
    """Weights that change between requests, never within one.

    Everything here runs synchronously on one event loop: scoring a request and applying a delta are both plain calls,
    so no request can see half a delta, and none waits for longer than one delta takes to be written.

    A version that does not follow from the model's own (a hole, a bad checksum, or a learner that went back to an older
    snapshot and came along another line) is never guessed at: `offer` answers GAP until the caller brings a snapshot
    with `install`; meanwhile requests are answered by the model's version, which is whole. A delta that is no model's
    (damaged, not finite, other shapes) is not taken, and says nothing of those after it: ``fault`` is why.
    A version that answered NaN or infinity is never gone on from: see `distrust`.

    Attributes
    ----------
    unsound : the version that did, and what it was asked, until a newer sound one is installed.
    """

    def __init__(
        self, model: WeightsModel, *, spec_hash: str, version: int, watermark_ms: int, freshness: Freshness
    ) -> None:
        self.spec_hash = spec_hash
        self.freshness = freshness
        self.swaps = 0
        self.gaps = 0
        self.fault: str | None = None  # of the part offered last
        self.unsound: UnsoundVersion | None = None
        self._take(model, version, watermark_ms)

    def _take(self, model: WeightsModel, version: int, watermark_ms: int) -> None:
        self.model = model
        self.head_names = tuple(head.name for head in model.config.heads)
        self._conversion = conversion_head(model.config.heads)
        self.version = version
        self.snapshot_version = version
        self.watermark_ms = watermark_ms
        self.lost = False
        self._assembler = DeltaAssembler(version=version, spec_hash=self.spec_hash)
        self._checksums: OrderedDict[int, int] = OrderedDict()

    def install(self, model: WeightsModel, *, version: int, watermark_ms: int) -> None:
        """Go on from a snapshot; the deltas after its version must then be offered from there on."""
        self._take(model, version, watermark_ms)
        if self.unsound is not None and version > self.unsound.version:
            self.unsound = None
        self.swaps += 1

    def distrust(self, rows: Rows, detail: str) -> None:
        """The version in use scored these rows as no number: the caller must bring one that does not."""
        if self.unsound is None or self.version > self.unsound.version:
            few = Rows(rows.ids[:_ASKED_AGAIN].copy(), rows.dense[:_ASKED_AGAIN].copy())
            self.unsound = UnsoundVersion(self.version, few, detail)

    def goes_on(self) -> None:
        """What was taken for a gap was none: the log leads on from the version in use."""
        self.lost = False

    def offer(self, part: DeltaPart) -> OfferResult:
        """Take one part of a delta, in the order of the topic.

        Raises DeltaSpecError for weights of another feature spec; the model stays as it is.
        """
        self.fault = None
        self._assembler.check_spec(part)
        if self.lost and part.version > self.version:
            return OfferResult.GAP
        try:
            delta = self._assembler.add(part)
            if delta is None:
                return OfferResult.PARTIAL if part.version > self.version else self._held_already(part)
            if delta.is_heartbeat:
                return self._heard(delta)
            self.model.apply(delta)
        except DeltaGapError:
            return self._lose()
        except DeltaError as error:
            self._assembler.version = self.version
            self.fault = str(error)
            return OfferResult.GAP
        self._swapped(delta, part.checksum)
        return OfferResult.SWAPPED

    @property
    def predicts_conversions(self) -> bool:
        """Whether the model has a head P(conversion | click)."""
        return self._conversion is not None

    def predict(self, rows: Rows) -> Logits:
        """The logits of B rows, all by `version`."""
        logits = self.model.predict_heads(rows)
        click = np.ascontiguousarray(logits[:, 0])
        return Logits(click, None if self._conversion is None else np.ascontiguousarray(logits[:, self._conversion]))

    def _held_already(self, part: DeltaPart) -> OfferResult:
        is_heartbeat = part.version == part.parent
        if is_heartbeat or part.version <= self.snapshot_version or self._checksums.get(part.version) == part.checksum:
            return OfferResult.SKIPPED
        return self._lose()  # the learner started again from an older snapshot and learned otherwise

    def _heard(self, heartbeat: Delta) -> OfferResult:
        if self.lost:
            return OfferResult.SKIPPED
        self.watermark_ms = max(self.watermark_ms, heartbeat.watermark_ms)
        return OfferResult.HEARTBEAT

    def _lose(self) -> OfferResult:
        self.gaps += not self.lost
        self.lost = True
        return OfferResult.GAP

    def _swapped(self, delta: Delta, checksum: int) -> None:
        self.version = delta.version
        self.watermark_ms = max(self.watermark_ms, delta.watermark_ms)
        self.swaps += 1
        self.freshness.swapped(delta.clicks_produced_ms)
        self._checksums[delta.version] = checksum
        if len(self._checksums) > _REMEMBERED_VERSIONS:
            self._checksums.popitem(last=False)
