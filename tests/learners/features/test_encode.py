"""The encoder against a slow reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.features.encode import Encoded, Encoder, Request
from learners.features.hashing import FeatureError
from learners.features.session_state import COUNTER, USER, SessionView
from learners.features.spec import load_spec
from tests.learners.encode_oracle import counter_columns, raw_id, session_columns
from tests.learners.small_spec import SMALL
from tests.learners.states import NOW_MS, counters_of, users_of

VALUES = st.one_of(st.none(), st.text(max_size=3), st.integers(-3, 60), st.floats(), st.booleans())
NUMBERS = st.one_of(st.none(), st.integers(-20, 20), st.floats(), st.just("7"))


def features(**kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of the keys, beside one that no spec names."""
    return st.fixed_dictionaries({"unknown": st.just([1])}, optional=kinds)


REQUESTS = st.lists(
    st.builds(
        Request,
        request_id=st.integers(0, 2**64 - 1),
        ts_ms=st.integers(NOW_MS - 86_400_000, NOW_MS),
        user=features(user_id=VALUES, age=NUMBERS),
        context=features(tab=VALUES),
        ads=st.lists(features(ad_id=VALUES, author_id=VALUES, duration_ms=NUMBERS), max_size=3),
    ),
    max_size=4,
)


def view_of(draw: st.DrawFn, requests: list[Request], *, damaged: bool) -> SessionView:
    """Random states for every request and ad."""
    r, b = len(requests), sum(len(request.ads) for request in requests)
    c_r, c_a = len(SMALL.request_counters), len(SMALL.ad_counters)

    def counters(rows: int, width: int) -> NDArray[Any]:
        strategy = st.lists(counters_of(damaged=damaged), min_size=rows * width, max_size=rows * width)
        return np.array(draw(strategy), COUNTER).reshape(rows, width)

    users = np.array(draw(st.lists(users_of(), min_size=r, max_size=r)), USER)
    return SessionView(users, counters(r, c_r), counters(b, c_a))


@st.composite
def cases(draw: st.DrawFn, damaged: bool = False) -> tuple[list[Request], SessionView]:
    """Requests and the states they read."""
    requests = draw(REQUESTS)
    return requests, view_of(draw, requests, damaged=damaged)


def expected_row(request: Request, ad: int, row: int, r: int, view: SessionView) -> tuple[list[int], list[float]]:
    """One whole row by the slow reference."""
    session = session_columns(SMALL, view.users[r], request.ts_ms)
    of_request = [
        counter_columns(SMALL, counter, view.request_counters[r, at], request.ts_ms)
        for at, counter in enumerate(SMALL.request_counters)
    ]
    of_ad = [
        counter_columns(SMALL, counter, view.ad_counters[row, at], request.ts_ms)
        for at, counter in enumerate(SMALL.ad_counters)
    ]
    ids = [raw_id(SMALL, field.name, request, request.ads[ad]) for field in SMALL.raw_request_fields]
    ids += session[0] + [column for ids_, _ in of_request for column in ids_]
    ids += [raw_id(SMALL, field.name, request, request.ads[ad]) for field in SMALL.raw_ad_fields]
    ids += [column for ids_, _ in of_ad for column in ids_]
    dense = session[1] + [number for _, numbers in of_request + of_ad for number in numbers]
    return ids, dense


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_batch_is_what_the_slow_reference_makes_row_by_row(case: tuple[list[Request], SessionView]) -> None:
    """Raw, crossed and derived columns of random requests over random states; unknown keys are ignored."""
    requests, view = case
    encoder = Encoder(SMALL)
    ids = encoder.ids(requests)
    rows = encoder.encode(ids, view).rows()
    at = 0
    for r, request in enumerate(requests):
        for ad in range(len(request.ads)):
            assert ids.row_request[at] == r
            expected_ids, expected_dense = expected_row(request, ad, at, r, view)
            assert rows.ids[at].tolist() == expected_ids
            np.testing.assert_allclose(rows.dense[at], expected_dense, rtol=1e-5, atol=1e-6)
            at += 1
    assert rows.ids.shape == (at, SMALL.id_columns)
    assert rows.dense.shape == (at, SMALL.dense_inputs)


@settings(max_examples=60, deadline=None)
@given(cases(damaged=True))
def test_damaged_states_make_finite_inputs(case: tuple[list[Request], SessionView]) -> None:
    """NaN, infinite, negative and huge sums in a store never reach the model."""
    requests, view = case
    encoder = Encoder(SMALL)
    encoded = encoder.encode(encoder.ids(requests), view)
    assert np.isfinite(encoded.request_dense).all()
    assert np.isfinite(encoded.ad_dense).all()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_request_is_encoded_alike_alone_and_in_a_batch(case: tuple[list[Request], SessionView]) -> None:
    """Bit for bit: what else is scored at the same time does not matter."""
    requests, view = case
    encoder = Encoder(SMALL)
    together = encoder.encode(encoder.ids(requests), view)
    at = 0
    for r, request in enumerate(requests):
        b = len(request.ads)
        part = SessionView(view.users[r : r + 1], view.request_counters[r : r + 1], view.ad_counters[at : at + b])
        alone = encoder.encode(encoder.ids([request]), part)
        _same(alone.request_ids, together.request_ids[r : r + 1])
        _same(alone.request_dense, together.request_dense[r : r + 1])
        _same(alone.ad_ids, together.ad_ids[at : at + b])
        _same(alone.ad_dense, together.ad_dense[at : at + b])
        at += b


def _same(left: NDArray[Any], right: NDArray[Any]) -> None:
    assert left.tobytes() == right.tobytes()


def fresh(encoder: Encoder, requests: list[Request]) -> Encoded:
    """Requests encoded with nothing remembered."""
    spec, ids = encoder.spec, encoder.ids(requests)
    r, b = len(requests), len(ids.ad_ids)
    request = np.zeros((r, len(spec.request_counters)), COUNTER)
    return encoder.encode(ids, SessionView(np.zeros(r, USER), request, np.zeros((b, len(spec.ad_counters)), COUNTER)))


@pytest.mark.parametrize("name", ["kuairand", "marketplace"])
def test_built_in_specs_encode_an_empty_request(name: str) -> None:
    """With every feature missing, only the time and what is derived but recent ads have ids; inputs are finite."""
    spec = load_spec(name)
    rows = fresh(Encoder(spec), [Request(1, NOW_MS, {}, {}, [{}, {}])]).rows()
    for at, column in enumerate(spec.columns):
        absent = ("." not in column and column != "hour") or column in spec.history_fields
        assert (rows.ids[:, at] == 0).all() == absent, column
    assert np.isfinite(rows.dense).all()


def test_recent_ads_are_ids_of_the_ad_column() -> None:
    """What was settled last stands first, with the id that the ad's own column has; 0 where there are fewer."""
    encoder = Encoder(SMALL)
    ids = encoder.ids([Request(1, NOW_MS, {"user_id": 5}, {}, [{"ad_id": 7}])])
    users = np.zeros(1, USER)
    users["seen_ms"], users["outcome_count"] = NOW_MS - 1, 1
    users["recent_ads"][0, :2] = ids.ad_ids[0, SMALL.ad_field - len(SMALL.request_fields)], 99
    counters = np.zeros((1, len(SMALL.request_counters)), COUNTER), np.zeros((1, len(SMALL.ad_counters)), COUNTER)
    row = encoder.encode(ids, SessionView(users, *counters)).rows().ids[0]
    assert row[list(SMALL.history_columns)].tolist() == [row[SMALL.ad_field], 0]


def test_the_user_key_is_the_id_of_the_user_field() -> None:
    """The key in every topic is the column that the spec names; nobody is 0."""
    encoder = Encoder(SMALL)
    ids = encoder.ids([Request(1, NOW_MS, {"user_id": 5}, {}, []), Request(2, NOW_MS, {}, {}, [])])
    assert ids.user_key.tolist() == [encoder.user_key({"user_id": "5"}), 0]
    assert ids.request_ids[0, SMALL.user_field] == ids.user_key[0] != 0


def test_counter_keys_are_the_columns_of_their_fields() -> None:
    """Request-scoped and ad-scoped counters in the spec's order."""
    encoder = Encoder(SMALL)
    ids = encoder.ids([Request(1, NOW_MS, {"user_id": 5}, {"tab": 1}, [{"ad_id": 7, "author_id": 3}])])
    request, ad = encoder.counter_keys(ids)
    rows = fresh(encoder, [Request(1, NOW_MS, {"user_id": 5}, {"tab": 1}, [{"ad_id": 7, "author_id": 3}])]).rows().ids
    assert request.tolist() == rows[:, [SMALL.field_index(name) for name in ("user", "tab", "user_tab")]].tolist()
    assert ad.tolist() == rows[:, [SMALL.field_index(name) for name in ("ad", "user_author")]].tolist()


@pytest.mark.parametrize(
    ("user", "ad", "message"),
    [
        ({"user_id": [1, 2]}, {}, r"user\.user_id = \[1, 2\] is a list"),
        ({}, {"duration_ms": {"s": 3}}, r"ad\.duration_ms = \{'s': 3\} is a dict"),
        ({"age": "old"}, {}, r"user\.age = 'old' is a str, it must be a number"),
    ],
)
def test_a_wrong_type_is_a_clear_error(user: dict[str, Any], ad: dict[str, Any], message: str) -> None:
    """A request that no feature can be made of is refused with the place, the value and the remedy."""
    with pytest.raises(FeatureError, match=message):
        Encoder(SMALL).ids([Request(1, NOW_MS, user, {}, [ad])])


@pytest.mark.parametrize("ts_ms", [-1, 2**53])
def test_a_time_that_is_none_is_refused(ts_ms: int) -> None:
    """Event time is Unix milliseconds."""
    with pytest.raises(FeatureError, match=f"ts_ms = {ts_ms} of request 9"):
        Encoder(SMALL).ids([Request(9, ts_ms, {}, {}, [])])
