"""Examples by their offset in the log: those written lately from memory, older ones read back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from stream.kafka.broker import Broker
from stream.kafka.log_reader import LogReader
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows
from stream.records.examples_codec import SpecShape, decode_examples, refuse_settled
from stream.records.topics import EXAMPLES

_NEAR_RECORDS = 8  # between two wanted ones: to read them costs less than to ask again


class ExamplesCache:
    """The rows of single records of the examples topic.

    Parameters
    ----------
    cache_bytes : of the newest records; most clicks come soon after the display.
    """

    def __init__(self, broker: Broker, spec: SpecShape, cache_bytes: int) -> None:
        self._broker = broker
        self._spec = spec
        self._most_bytes = cache_bytes
        self._bytes = 0
        self._newest: OrderedDict[tuple[int, int], ExampleRows] = OrderedDict()

    def remember(self, partition: int, offset: int, rows: ExampleRows) -> None:
        """Keep a record that was just written, in place of the oldest ones."""
        self._newest[partition, offset] = rows
        self._bytes += rows.nbytes
        while self._bytes > self._most_bytes:
            self._bytes -= self._newest.popitem(last=False)[1].nbytes

    async def find(self, partition: int, offsets: Sequence[int]) -> dict[int, ExampleRows]:
        """The rows at these offsets, ascending; what the log no longer holds, or another spec wrote, is left out."""
        found = {offset: rows for offset in offsets if (rows := self._newest.get((partition, offset))) is not None}
        missing = [offset for offset in offsets if offset not in found]
        if missing:
            async with LogReader(self._broker) as log:
                for run in _runs(missing):
                    found |= await self._read(log, partition, run)
        return found

    async def _read(self, log: LogReader, partition: int, offsets: Sequence[int]) -> dict[int, ExampleRows]:
        found, wanted = {}, set(offsets)
        async for record in log.read(EXAMPLES, partition, offsets[0], written_to=offsets[-1] + 1):
            if record.offset not in wanted:
                continue
            try:
                found[record.offset] = decode_examples(record.value, self._spec)[0]
            except RecordError as error:
                if error.reason == "settled":
                    refuse_settled(EXAMPLES, partition, record.offset)
        return found


def _runs(offsets: Sequence[int]) -> list[list[int]]:
    """Ascending offsets, cut where the next is not near."""
    runs = [[offsets[0]]]
    for offset in offsets[1:]:
        if offset - runs[-1][-1] > _NEAR_RECORDS:
            runs.append([])
        runs[-1].append(offset)
    return runs
