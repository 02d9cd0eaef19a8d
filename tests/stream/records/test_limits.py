"""What is refused before it is decoded."""

from __future__ import annotations

import pytest

from stream.records.columns import RecordError
from stream.records.events import decode_events
from stream.records.limits import MAX_JSON_BYTES, MAX_RECORD_BYTES, MAX_RECORD_ROWS, check_rows, check_size, unreadable
from stream.records.topics import CLICKS


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"{".ljust(MAX_JSON_BYTES), b"\x80", b"\x86".ljust(MAX_RECORD_BYTES)], ids=len
)
def test_up_to_the_bound_nothing_is_refused(value: bytes) -> None:
    """An empty record is the decoder's to name; the greatest record of the table fits."""
    check_size(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"{".ljust(MAX_JSON_BYTES + 1), rf"65537 bytes, larger than the {MAX_JSON_BYTES} that JSON.*one event"),
        (
            b"\x86".ljust(MAX_RECORD_BYTES + 1),
            rf"the {MAX_RECORD_BYTES} that a batch .*at most 65536 rows",
        ),
    ],
    ids=["JSON", "batch"],
)
def test_beyond_the_bound_the_error_says_both_sizes(value: bytes, said: str) -> None:
    """The size, the bound, and what to send instead; the reason is one of the closed set."""
    with pytest.raises(RecordError, match=said) as caught:
        check_size(value)
    assert caught.value.reason == "malformed"


def test_rows_are_bounded() -> None:
    """A record may hold the bound and no more."""
    check_rows(MAX_RECORD_ROWS)
    with pytest.raises(RecordError, match=rf"{MAX_RECORD_ROWS + 1} rows, larger than the {MAX_RECORD_ROWS}") as caught:
        check_rows(MAX_RECORD_ROWS + 1)
    assert caught.value.reason == "schema"


def test_what_stands_for_an_unreadable_batch_is_refused_with_its_reason() -> None:
    """By this check with the reason alone, and by any decoder because no format begins so."""
    with pytest.raises(RecordError, match=r"^malformed: offsets 3 to 5 are lost$"):
        check_size(unreadable("offsets 3 to 5 are lost"))
    with pytest.raises(RecordError, match=r"^malformed"):
        decode_events(CLICKS, unreadable("offsets 3 to 5 are lost"))
