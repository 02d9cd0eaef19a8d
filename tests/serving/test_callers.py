"""Who may call."""

from __future__ import annotations

import pytest

from serving.callers import Callers
from serving.refusals import Refusal, RefusedError

JSON = {"Content-Type": "application/json", "Host": "localhost:8080"}


def refusal(callers: Callers, headers: dict[str, str]) -> Refusal | None:
    """Why a call with these headers is refused."""
    try:
        callers.check_host(headers)
        callers.check_call(headers)
    except RefusedError as error:
        return error.refusal
    return None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"Content-Type": "application/json; charset=utf-8"}, None),
        ({"Content-Type": "application/vnd.ads+json"}, None),
        ({"Content-Type": "text/plain"}, Refusal.CONTENT_TYPE),
        ({"Content-Type": "text/plain; application/json"}, Refusal.CONTENT_TYPE),
        ({"Content-Type": ""}, Refusal.CONTENT_TYPE),
        ({"Origin": "http://localhost:8080"}, None),
        ({"Origin": "http://localhost:3000"}, Refusal.ORIGIN),
        ({"Origin": "http://evil.example"}, Refusal.ORIGIN),
        ({"Origin": "http://localhost:8080.evil.example"}, Refusal.ORIGIN),
        ({"Origin": "null"}, Refusal.ORIGIN),
        ({"Origin": "http://[broken"}, Refusal.ORIGIN),
        ({"Host": "LOCALHOST:1"}, None),
        ({"Host": "10.1.2.3:8080"}, None),
        ({"Host": "[::1]:8080"}, None),
        ({"Host": "evil.example"}, Refusal.HOST),
        ({"Host": "localhost.evil.example"}, Refusal.HOST),
        ({"Host": "[broken"}, Refusal.HOST),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, Refusal.HOST),
    ],
)
def test_on_loopback_only_its_own_names_and_pages_may_call(changed: dict[str, str], expected: Refusal | None) -> None:
    """A browser would send what any page tells it to, under a name that the page has pointed here."""
    assert refusal(Callers.of(None, "127.0.0.1", None), JSON | changed) is expected


def test_beyond_loopback_any_name_may_be_called_unless_they_are_listed() -> None:
    """A service is called by the names of its cluster; a list bounds them, and lets their pages call."""
    cluster = JSON | {"Host": "serving.ads:8080"}
    assert refusal(Callers.of(None, "0.0.0.0", None), cluster) is None  # noqa: S104
    listed = Callers.of("serving.ads, ads.example", "0.0.0.0", None)  # noqa: S104
    assert refusal(listed, cluster) is None
    assert refusal(listed, cluster | {"Origin": "https://ads.example"}) is None
    assert refusal(listed, JSON | {"Host": "other:8080"}) is Refusal.HOST


def test_a_token_must_be_the_one_that_is_set() -> None:
    """Compared in constant time; whatever is sent instead is no error of ours."""
    callers = Callers.of(None, "127.0.0.1", "s3cret")
    given = {"right": "Bearer s3cret", "spelt": "bearer  s3cret", "wrong": "Bearer no", "basic": "Basic s3cret"}
    found = {name: refusal(callers, JSON | {"Authorization": value}) for name, value in given.items()}
    assert found == {"right": None, "spelt": None, "wrong": Refusal.TOKEN, "basic": Refusal.TOKEN}
    assert refusal(callers, JSON) is Refusal.TOKEN
    assert refusal(callers, JSON | {"Authorization": "Bearer \udcff"}) is Refusal.TOKEN
