"""A join without servers: its examples and settled clicks are kept in this process. For the backtest and for tests."""

from __future__ import annotations

from collections import Counter

from stream.examples import Displays, ExampleRows, concat, concat_displays
from stream.join import JoinCore
from stream.join_output import JoinOutput
from stream.settled_clicks import MemoryClickStore


class MemoryJoin:
    """Steps a core as the worker does; an examples record is an output, its offset the number of those before it."""

    def __init__(self, core: JoinCore, n_fields: int, n_dense: int) -> None:
        self.core = core
        self.clicks = MemoryClickStore(n_fields, n_dense)
        self.examples: dict[int, ExampleRows] = {}  # by offset; only those that a late click may still correct
        self._next_offset = 0

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """Everything that is known now, also what conversions of clicks yield that settled only now."""
        outputs = [self._step(now_ms)]
        while len(wanted := self.core.wanted_clicks()) and self.core.clicks_found(self.clicks.find(wanted)):
            outputs.append(self._step(now_ms))
        return merged(outputs)

    def _step(self, now_ms: int | None) -> JoinOutput:
        offsets = self.core.wanted_examples().tolist()
        self.core.examples_found({offset: self.examples[offset] for offset in offsets if offset in self.examples})
        output = self.core.poll(now_ms)
        if output.examples is None:
            self.core.stored([], [])
            return output
        self.core.stored([self._next_offset], [0])
        self.examples[self._next_offset] = output.examples
        self._next_offset += 1
        self.clicks.put(output.examples)
        while self.examples and (oldest := next(iter(self.examples))) < output.resume.settled:
            del self.examples[oldest]
        return output


def merged(outputs: list[JoinOutput]) -> JoinOutput:
    """Several outputs, in order, as one."""
    if len(outputs) == 1:
        return outputs[0]
    examples: list[ExampleRows] = [one.examples for one in outputs if one.examples is not None]
    displays: list[Displays] = [one.displays for one in outputs if one.displays is not None]
    counts: Counter[str] = Counter()
    for one in outputs:
        counts.update(one.counts)
    return JoinOutput(
        examples=concat(examples) if examples else None,
        displays=concat_displays(displays) if displays else None,
        rejects=[reject for one in outputs for reject in one.rejects],
        counts=dict(counts),
        watermark_ms=outputs[-1].watermark_ms,
        low_water=outputs[-1].low_water,
        resume=outputs[-1].resume,
    )
