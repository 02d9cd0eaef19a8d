"""A join without servers: its examples and clicks are kept in this process. For the backtest and for tests."""

from __future__ import annotations

from collections import Counter

from stream.clicks.stored_clicks import MemoryClickStore
from stream.join.core import JoinCore
from stream.join.late import with_late_clicks
from stream.join.output import JoinOutput
from stream.records.examples import ExampleRows, concat


class MemoryJoin:
    """Steps a core as the worker does; an examples record is an output, its offset the number of those before it."""

    def __init__(self, core: JoinCore, n_fields: int, n_dense: int) -> None:
        self.core = core
        self.clicks = MemoryClickStore(n_fields, n_dense)
        self.examples: dict[int, ExampleRows] = {}  # offset → rows; only those whose clicks still count
        self.next_offset = 0

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """Everything that is known now, also the conversions of clicks that are known only now."""
        outputs = [self._step(now_ms)]
        while len(wanted := self.core.wanted_clicks()) and self.core.clicks_found(self.clicks.find(wanted)):
            outputs.append(self._step(now_ms))
        return merged(outputs)

    def _step(self, now_ms: int | None) -> JoinOutput:
        output = with_late_clicks(self.core.poll(now_ms), self.examples, self.core.partition)
        if output.examples is None:
            self.core.stored([], [])
            return output
        self.core.stored([self.next_offset], [0])
        self.examples[self.next_offset] = output.examples
        self.next_offset += 1
        self.clicks.put(output.examples)
        while self.examples and (oldest := next(iter(self.examples))) < output.resume.examples:
            del self.examples[oldest]
        return output


def merged(outputs: list[JoinOutput]) -> JoinOutput:
    """Several outputs, in order, as one."""
    if len(outputs) == 1:
        return outputs[0]
    examples: list[ExampleRows] = [one.examples for one in outputs if one.examples is not None]
    counts: Counter[str] = Counter()
    for one in outputs:
        counts.update(one.counts)
    return JoinOutput(
        examples=concat(examples) if examples else None,
        rejects=[reject for one in outputs for reject in one.rejects],
        counts=dict(counts),
        watermark_ms=outputs[-1].watermark_ms,
        offsets=outputs[-1].offsets,
        resume=outputs[-1].resume,
    )
