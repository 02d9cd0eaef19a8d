"""Names that are almost those of fields."""

from __future__ import annotations

from dataclasses import replace

import pytest

from learners.features.encode import Encoder, Request
from serving.field_names import FieldNames, nearest
from tests.learners.small_spec import SMALL
from tests.serving.trainer import request

NAMES = FieldNames(SMALL)


def misspelt(*requests: Request) -> dict[str, str]:
    """What is found in requests."""
    return NAMES.misspelt(requests, Encoder(SMALL).ids(requests))


def test_a_name_that_is_almost_there_is_named_with_its_field() -> None:
    """In the user, the context and an ad, whichever of the requests it is."""
    good = request(1, [1, 2])
    assert misspelt(good) == {}
    wrong = replace(
        good, user={"userId": 1, "age": 3}, context={"tabs": 1}, ads=[*good.ads, {"adid": 1, "Author-ID": 2, "bid": 1}]
    )
    assert misspelt(good, wrong) == {
        "user.userId": "user.user_id",
        "context.tabs": "context.tab",
        "ad.adid": "ad.ad_id",
        "ad.Author-ID": "ad.author_id",
    }


def test_what_is_like_no_field_or_beside_it_says_nothing() -> None:
    """Clients send names of their own; and a field that is there is not meant by another name."""
    good = request(1, [1])
    assert misspelt(replace(good, user={"loyalty": 3, "age": 20, "x" * 1000: 1})) == {}
    assert misspelt(replace(good, user={"userid": 1, "user_id": 1})) == {}
    assert misspelt() == {}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("USER_ID", "user_id"),
        ("user-id", "user_id"),
        ("usr_id", "user_id"),
        ("user", "user_id"),
        ("usage", None),
        ("", None),
        ("__", None),
    ],
)
def test_nearest(name: str, meant: str | None) -> None:
    """Case and punctuation do not matter, a letter or two may be wrong."""
    assert nearest(name, frozenset({"user_id", "age", "ad_id"})) == meant
