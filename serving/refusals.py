"""Why a call is refused before it is scored: the one list of reasons, with their statuses."""

from __future__ import annotations

from enum import Enum


class Refusal(Enum):
    """A reason, as metrics name it, and the status of its answer."""

    HOST = ("host", 421)
    ORIGIN = ("origin", 403)
    TOKEN = ("token", 401)
    CONTENT_TYPE = ("content_type", 415)
    ENCODING = ("encoding", 415)
    TOO_LARGE = ("too_large", 413)
    SLOW_BODY = ("slow_body", 408)
    BODY = ("body", 400)  # not what the API asks for
    OVERLOAD = ("overload", 503)
    HTTP = ("http", 400)  # not HTTP at all, or beyond its bounds
    GONE = ("gone", 499)  # the peer left before its body had come: nobody is answered

    def __init__(self, label: str, status: int) -> None:
        self.label = label
        self.status = status


REASONS = tuple(refusal.label for refusal in Refusal)
_CLOSING = (Refusal.TOO_LARGE, Refusal.SLOW_BODY)  # what is left of the body is not waited for


class RefusedError(ValueError):
    """A call is not scored; the message is for the caller."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal

    @property
    def closes(self) -> bool:
        """Whether the connection ends with the answer."""
        return self.refusal in _CLOSING
