"""Events of the join that yield nothing, and why."""

from __future__ import annotations

from dataclasses import dataclass

from stream.inputs import event_json
from stream.waiting_events import Events


@dataclass(frozen=True, slots=True)
class Reject:
    """One event that yields nothing; `payload` is its JSON, so that it can be looked at and sent again."""

    topic: str
    offset: int
    reason: str
    detail: str
    payload: bytes


def event_payload(topic: str, events: Events, at: int) -> bytes:
    """One of the events as a client would send it."""
    columns = (events.impression_id, events.ts_ms, events.user_key, events.position, events.value)
    return event_json(topic, *(column[at].item() for column in columns))


def forgotten_display(ts_ms: int, forgotten_ms: int) -> str:
    """Why a display may not count: it could have counted before."""
    return (
        f"displayed at {ts_ms}: rows displayed up to {forgotten_ms} are no longer known, it may have been joined before"
    )


def beyond_horizon(topic_is_impressions: bool, after_ms: int) -> str:
    """Why a display or a click no longer counts."""
    since = "was served" if topic_is_impressions else "was displayed"
    return f"{'displayed' if topic_is_impressions else 'clicked'} {after_ms} ms after it {since}"


def waited_in_vain(is_known: bool, is_displayed: bool, horizon_s: float) -> tuple[str, str]:
    """Reason and detail for an event that came before what it belongs to, which then did not come."""
    waited = f"within {horizon_s:g} s of event time"
    if is_displayed:
        return "no_click", f"displayed, but no click came {waited}"
    missing = "served, but no display" if is_known else "no served row"
    return "unknown_impression", f"{missing} came {waited}"
