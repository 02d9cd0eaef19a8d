"""How much of its partitions an aiokafka consumer has not handed out yet, without asking the broker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def unread_records(consumer: Any, places: Iterable[Any]) -> Mapping[Any, int]:
    """Offsets between what was handed out and the end, by the last fetch; nothing for a place not fetched from yet.

    What cannot be read (transaction markers, records that were rolled back) counts until the consumer has passed it.
    """
    assignment = consumer._subscription.subscription.assignment if consumer._subscription.subscription else None
    unread = {}
    for place in places:
        end = consumer.highwater(place)
        state = assignment.state_value(place) if assignment is not None else None
        if end is not None and state is not None and state.has_valid_position:
            unread[place] = max(0, end - state.position)
    return unread
