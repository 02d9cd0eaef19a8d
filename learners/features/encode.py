"""Requests to ids and dense inputs: what serving scores, logs, and the learner later trains on.

Two steps, because session state is looked up by ids: `Encoder.ids` hashes the raw fields; the caller fetches the states
of these ids (a `SessionView`); `Encoder.encode` adds what the states tell.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.features.derived import DerivedInputs
from learners.features.hashing import FeatureError, FieldHasher, cross_ids, salt_of
from learners.features.rows import Rows
from learners.features.session_state import SessionView
from learners.features.spec import FeatureSpec
from learners.features.spec_parts import Field

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
_LATEST_MS = 1 << 53


@dataclass(frozen=True, slots=True)
class Request:
    """One request for ads at an event time. Keys that the feature spec does not name are ignored."""

    request_id: int
    ts_ms: int
    user: Mapping[str, Any]
    context: Mapping[str, Any]
    ads: Sequence[Mapping[str, Any]]


class EncodedIds(NamedTuple):
    """The ids of R requests with B ads in all. Derived columns are still 0; `Encoder.encode` fills them in."""

    request_id: NDArray[np.uint64]  # (R,)
    ts_ms: NDArray[np.int64]  # (R,)
    user_key: NDArray[np.uint64]  # (R,) 0: no user named
    request_ids: NDArray[np.uint64]  # (R, spec.request_fields)
    ad_ids: NDArray[np.uint64]  # (B, spec.ad_fields)
    row_request: NDArray[np.intp]  # (B,) the request of each row, ascending


class Encoded(NamedTuple):
    """R requests and B rows ready to be scored and logged; request-scoped columns stand once a request."""

    request_ids: NDArray[np.uint64]  # (R, spec.request_fields)
    request_dense: NDArray[np.float32]  # (R, spec.request_dense)
    ad_ids: NDArray[np.uint64]  # (B, spec.ad_fields)
    ad_dense: NDArray[np.float32]  # (B, spec.ad_dense)
    row_request: NDArray[np.intp]  # (B,)
    row_count: int  # B

    def rows(self) -> Rows:
        """The full matrices: request-scoped columns repeated for each ad, then the ad's."""
        ids = np.concatenate((self.request_ids[self.row_request], self.ad_ids), axis=1)
        return Rows(ids, np.concatenate((self.request_dense[self.row_request], self.ad_dense), axis=1))


class Encoder:
    """Encodes requests under one feature spec. Holds caches of hashed values: one encoder per thread."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._request_fields = _plain(spec.raw_request_fields)
        self._ad_fields = _plain(spec.raw_ad_fields)
        self._user = next(field for field in self._request_fields if field.column == spec.user_field)
        self._request_crosses = _cross_steps(spec, spec.raw_request_fields, 0)
        self._ad_crosses = _cross_steps(spec, spec.raw_ad_fields, len(spec.request_fields))
        self._derived = DerivedInputs(spec)
        self._request_raw, self._ad_raw = len(spec.raw_request_fields), len(spec.raw_ad_fields)
        self._request_keys = [spec.field_index(counter.field) for counter in spec.request_counters]
        offset = len(spec.request_fields)
        self._ad_keys = [spec.field_index(counter.field) - offset for counter in spec.ad_counters]

    def user_key(self, user: Mapping[str, Any]) -> int:
        """The user's key in every topic; 0 when the request names no user. Raises FeatureError."""
        return self._user.hasher.id(user.get(self._user.key))

    def ids(self, requests: Sequence[Request]) -> EncodedIds:
        """The raw and crossed ids of requests. Raises FeatureError for a value of a wrong type."""
        times = [_checked_time(request) for request in requests]
        r = len(requests)
        ads = [ad for request in requests for ad in request.ads]
        request_ids = np.zeros((r, len(self.spec.request_fields)), np.uint64)
        ad_ids = np.zeros((len(ads), len(self.spec.ad_fields)), np.uint64)
        ts_ms = np.array(times, np.int64)
        if len(ads) == r == 1:
            row_request = np.zeros(1, np.intp)
        else:
            row_request = np.repeat(np.arange(r), [len(request.ads) for request in requests])
        sources: dict[str, Sequence[Mapping[str, Any]]] = {
            "user": [request.user for request in requests],
            "context": [request.context for request in requests],
            "time": [self._local(time) for time in times],
            "ad": ads,
        }
        _fill(request_ids, self._request_fields, sources)
        _fill(ad_ids, self._ad_fields, sources)
        for step in self._request_crosses:
            step.fill(request_ids, request_ids)
        if self._ad_crosses:
            both = np.concatenate((request_ids[row_request], ad_ids), axis=1)
            for step in self._ad_crosses:
                step.fill(ad_ids, both)
        request_id = np.array([request.request_id for request in requests], np.uint64)
        return EncodedIds(request_id, ts_ms, request_ids[:, self.spec.user_field], request_ids, ad_ids, row_request)

    def counter_keys(self, ids: EncodedIds) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The keys of the request-scoped counters (R, ·) and of the ad-scoped ones (B, ·), in the spec's order."""
        return ids.request_ids[:, self._request_keys], ids.ad_ids[:, self._ad_keys]

    def encode(self, ids: EncodedIds, view: SessionView) -> Encoded:
        """Ids and dense inputs, with what the session states in ``view`` tell at the requests' times."""
        derived = self._derived.of(ids.ts_ms, ids.row_request, view)
        request_ids, ad_ids = ids.request_ids.copy(), ids.ad_ids.copy()
        request_ids[:, self._request_raw :] = derived.request_ids
        ad_ids[:, self._ad_raw :] = derived.ad_ids
        b = len(ad_ids)
        return Encoded(request_ids, derived.request_dense, ad_ids, derived.ad_dense, ids.row_request, b)

    def _local(self, ts_ms: int) -> dict[str, int]:
        local_ms = ts_ms + self.spec.utc_offset_s * 1000
        return {"hour": local_ms // _HOUR_MS % 24, "weekday": (local_ms // _DAY_MS + _EPOCH_WEEKDAY) % 7}


class _PlainField(NamedTuple):
    column: int  # within its scope
    group: str
    key: str
    hasher: FieldHasher


def _plain(fields: Sequence[Field]) -> list[_PlainField]:
    """The fields of one scope that have a source, with their columns."""
    out = []
    for column, field in enumerate(fields):
        if field.source:
            group, _, key = field.source.partition(".")
            out.append(_PlainField(column, group, key, FieldHasher(field.name, field.source, field.edges)))
    return out


def _fill(
    ids: NDArray[np.uint64], fields: Iterable[_PlainField], sources: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Hash column by column; one conversion to an array for all of them."""
    flat = array("Q")
    columns = []
    for column, group, key, hasher in fields:
        flat.extend(hasher.ids([row.get(key) for row in sources[group]]))
        columns.append(column)
    if len(ids) and columns:
        ids[:, columns] = np.frombuffer(flat, np.uint64).reshape(len(columns), len(ids)).T


class _CrossStep:
    """Crosses whose parts are all known before this step, computed together."""

    def __init__(self, targets: list[int], parts: list[list[int]], names: list[str]) -> None:
        self._targets = targets
        self._salts = np.array([salt_of(name) for name in names], np.uint64)
        most = max(map(len, parts))
        which = [[i for i, part in enumerate(parts) if len(part) > at] for at in range(most)]
        self._parts = [(np.array(w, np.intp), [parts[i][at] for i in w]) for at, w in enumerate(which)]

    def fill(self, out: NDArray[np.uint64], ids: NDArray[np.uint64]) -> None:
        """Write the crosses' columns of ``out`` from the columns of ``ids``."""
        out[:, self._targets] = cross_ids(self._salts, [(which, ids[:, columns]) for which, columns in self._parts])


def _cross_steps(spec: FeatureSpec, fields: Sequence[Field], offset: int) -> list[_CrossStep]:
    """One step for all crosses of a scope: crosses of crosses are flattened to their plain parts."""
    crosses = [(column, field) for column, field in enumerate(fields) if field.cross]
    if not crosses:
        return []
    parts = [[spec.field_index(part) for part in spec.parts(field.name)] for _, field in crosses]
    return [_CrossStep([column for column, _ in crosses], parts, [field.name for _, field in crosses])]


def _checked_time(request: Request) -> int:
    if not 0 <= request.ts_ms < _LATEST_MS:
        raise FeatureError(
            f"ts_ms = {request.ts_ms} of request {request.request_id} must lie in 0..{_LATEST_MS}: it is no Unix time "
            "in milliseconds. Send the event time of the request."
        )
    return request.ts_ms
