"""Large calls in slices."""

from __future__ import annotations

import numpy as np

from learners.features.encode import Encoder
from serving.slices import SLICE_ROWS, joined, joined_ids, slices
from tests.learners.small_spec import SMALL
from tests.serving.trainer import no_sessions, request


def test_slices_joined_are_the_whole() -> None:
    """Bit for bit, with requests of no ads among them; no slice is larger than one request or the bound."""
    sizes = [3, 0, SLICE_ROWS, 5, SLICE_ROWS - 1, 2, 0]
    requests = [request(user, range(1, size + 1), request_id=user) for user, size in enumerate(sizes, 1)]
    parts = list(slices(requests))
    assert [one for part in parts for one in part] == requests
    assert len(parts) > 2
    assert all(sum(len(one.ads) for one in part) <= SLICE_ROWS for part in parts)

    encoder = Encoder(SMALL)
    ids = [encoder.ids(part) for part in parts]
    encoded = [encoder.encode(one, no_sessions(encoder, part)) for one, part in zip(ids, parts, strict=True)]
    whole = encoder.ids(requests)
    for found, expected in (
        (joined_ids(ids), whole),
        (joined(encoded), encoder.encode(whole, no_sessions(encoder, requests))),
    ):
        for name, column in expected._asdict().items():
            np.testing.assert_array_equal(getattr(found, name), column)


def test_a_usual_call_is_one_slice() -> None:
    """Which is not copied."""
    requests = [request(1, [1, 2]), request(2, [])]
    assert list(slices(requests)) == [requests]
    ids = Encoder(SMALL).ids(requests)
    assert joined_ids([ids]) is ids
