"""How much is in flight, and whose turn it is."""

from __future__ import annotations

import asyncio
import time

import pytest

from serving.admission import Admission, OverloadedError, Turn


def test_calls_and_their_rows_are_bounded_and_given_back() -> None:
    """A call alone is always taken, however large; what fails is no longer in flight."""
    admission = Admission(most_calls=2, most_rows=100)
    with admission.call(1_000), pytest.raises(OverloadedError, match="1000 ads are in flight, 2 and 100 may be"):
        admission.call(0).__enter__()
    with admission.call(60), admission.call(40), pytest.raises(OverloadedError):
        admission.call(0).__enter__()
    with pytest.raises(KeyError), admission.call(60):
        raise KeyError
    assert (admission.calls, admission.rows) == (0, 0)


def test_bodies_of_all_calls_are_bounded_together() -> None:
    """Many bodies that are each within the bound."""
    admission = Admission(most_calls=100, most_rows=100)
    for _ in range(6):
        admission.take_bytes(16 << 20)
    with pytest.raises(OverloadedError, match="bytes"):
        admission.take_bytes(1)
    admission.give_bytes(16 << 20)
    admission.take_bytes(16 << 20)


def test_nothing_is_taken_while_something_else_stands_in_the_way() -> None:
    """Its words are the caller's."""
    admission = Admission(most_calls=2, most_rows=100, blocked=lambda: "records wait")
    with pytest.raises(OverloadedError, match="records wait: the call was not scored"):
        admission.call(1).__enter__()


async def test_between_long_pieces_the_loop_goes_round() -> None:
    """Thirty calls that become ready at once do not hold up what else is due until all of them are done."""
    turn, order = Turn(), []

    async def piece(number: int) -> None:
        async with turn:
            until = time.monotonic() + 2 * Turn.AT_ONCE_S
            while time.monotonic() < until:
                pass
            order.append(f"piece {number}")

    async def probe() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        order.append("probe")

    await asyncio.gather(*(piece(number) for number in range(10)), probe())
    assert [one for one in order if one != "probe"] == [f"piece {number}" for number in range(10)]
    assert order.index("probe") <= 3
