"""Names in a request that are almost those of fields: such a value is read as missing, and nobody would know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from learners.features.encode import EncodedIds, Request
from learners.features.spec import FeatureSpec

_ALIKE = 0.8  # of difflib's ratio: userid, usr_id and user are user_id, uid is not
_LOOKED_AT = 4  # requests and ads a call: a client that misspells does so in all of them
_LONGEST_NAME = 64


class FieldNames:
    """Finds misspelt names, at the price of a look at whether the fields are there.

    Names that are like none of the spec's are the client's own and say nothing.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self._known: dict[str, frozenset[str]] = {}
        for field in (*spec.raw_request_fields, *spec.raw_ad_fields):
            group, _, key = field.source.partition(".")
            if key and group != "time":
                self._known[group] = self._known.get(group, frozenset()) | {key}
        self._request_columns = [i for i, field in enumerate(spec.raw_request_fields) if _is_given(field.source)]
        self._ad_columns = [i for i, field in enumerate(spec.raw_ad_fields) if _is_given(field.source)]
        self._nearest = lru_cache(maxsize=1024)(self._look_up)

    def misspelt(self, requests: Sequence[Request], ids: EncodedIds) -> dict[str, str]:
        """By given name, such as ``user.userid``, the field that was meant, such as ``user.user_id``."""
        found: dict[str, str] = {}
        incomplete = (ids.request_ids[:, self._request_columns] == 0).any(axis=1)
        for at in np.flatnonzero(incomplete)[:_LOOKED_AT].tolist():
            self._look_at("user", requests[at].user, found)
            self._look_at("context", requests[at].context, found)
        incomplete = (ids.ad_ids[:, self._ad_columns] == 0).any(axis=1)
        rows = np.flatnonzero(incomplete)[:_LOOKED_AT]
        if len(rows):
            first = np.searchsorted(ids.row_request, ids.row_request[rows])  # the first row of each row's request
            for row, request, start in zip(rows.tolist(), ids.row_request[rows].tolist(), first.tolist(), strict=True):
                self._look_at("ad", requests[request].ads[row - start], found)
        return found

    def _look_at(self, group: str, given: Mapping[str, Any], found: dict[str, str]) -> None:
        known = self._known.get(group, frozenset())
        for name in given:
            if name in known or len(name) > _LONGEST_NAME:
                continue
            meant = self._nearest(group, name)
            if meant is not None and meant not in given:
                found[f"{group}.{name}"] = f"{group}.{meant}"

    def _look_up(self, group: str, name: str) -> str | None:
        return nearest(name, self._known.get(group, frozenset()))


def nearest(name: str, known: frozenset[str]) -> str | None:
    """The one of ``known`` that ``name`` may stand for; None when it is like none of them."""
    plain = {_plain(one): one for one in sorted(known)}
    if (same := plain.get(_plain(name))) is not None:
        return same
    alike = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_ALIKE)
    return plain[alike[0]] if alike else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _is_given(source: str) -> bool:
    return bool(source) and not source.startswith("time.")
