"""Examples by their place in the log: those written lately from memory, older ones read back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from stream.broker import Broker
from stream.examples import ExampleRows
from stream.examples_log import SpecShape, decode_examples
from stream.log_reader import LogReader
from stream.records import RecordError
from stream.topics import EXAMPLES


class ExamplesLookup:
    """The rows of single records of the examples topic.

    Parameters
    ----------
    remembered_bytes : of the newest records; clicks that correct mostly come soon after the window.
    """

    def __init__(self, broker: Broker, spec: SpecShape, remembered_bytes: int) -> None:
        self._broker = broker
        self._spec = spec
        self._most_bytes = remembered_bytes
        self._bytes = 0
        self._newest: OrderedDict[tuple[int, int], ExampleRows] = OrderedDict()

    def remember(self, partition: int, offset: int, rows: ExampleRows) -> None:
        """Keep a record that was just written, in place of the oldest ones."""
        self._newest[partition, offset] = rows
        self._bytes += rows.nbytes
        while self._bytes > self._most_bytes:
            self._bytes -= self._newest.popitem(last=False)[1].nbytes

    async def find(self, partition: int, offsets: Sequence[int]) -> dict[int, ExampleRows]:
        """The rows at these offsets; what the log no longer holds, or another feature spec wrote, is left out."""
        found = {offset: rows for offset in offsets if (rows := self._newest.get((partition, offset))) is not None}
        missing = [offset for offset in offsets if offset not in found]
        if missing:
            async with LogReader(self._broker) as log:
                for offset in missing:
                    if (rows := await self._read(log, partition, offset)) is not None:
                        found[offset] = rows
        return found

    async def _read(self, log: LogReader, partition: int, offset: int) -> ExampleRows | None:
        async for record in log.read(EXAMPLES, partition, offset, stop=offset + 1):
            try:
                return decode_examples(record.value, self._spec)[0]
            except RecordError:
                return None
        return None
