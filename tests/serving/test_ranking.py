"""Scoring, ranking, and the served rows made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.curve import CalibrationMap
from calibration.slice_map import SliceMap
from learners.features.encode import Encoder
from serving.calibrator import HotCalibrator
from serving.impression_ids import ImpressionIds
from serving.model import HotModel
from serving.ranking import Prices, Ranker, Scored, expected_value, ranked
from serving.served_rows import heartbeat_record, served_records
from stream.records.partition import partition_of
from stream.records.served import decode_served
from tests.learners.small_spec import SMALL
from tests.serving.test_calibrator import record, state_of
from tests.serving.test_model import hot_model
from tests.serving.trainer import FIRST_VERSION, NOW_MS, TWO_HEADS, Trainer, no_sessions, request, rows_of

MODEL = hot_model()


def scored(
    users_ads: list[tuple[int, int]], calibrator: HotCalibrator | None = None, model: HotModel = MODEL
) -> Scored:
    """Requests of (user, number of ads), scored."""
    encoder = Encoder(SMALL)
    requests = [request(user, range(1, 1 + ads), request_id=i + 1) for i, (user, ads) in enumerate(users_ads)]
    ranker = Ranker(encoder, model, calibrator or HotCalibrator(), ImpressionIds(1, 2))
    return ranker.score(encoder.ids(requests), no_sessions(encoder, requests))


def test_scores_are_the_models_logits_and_the_maps_probabilities() -> None:
    """Versions of both stand beside them, and applied time is the lesser of the two."""
    calibrator = HotCalibrator()
    calibrator.offer(record(0, 4, state_of(1), watermark_ms=123))
    found = scored([(1, 3), (2, 2)], calibrator)
    expected = MODEL.predict(rows_of([request(1, range(1, 4)), request(2, range(1, 3))])).click
    np.testing.assert_array_equal(found.logit, expected)
    np.testing.assert_array_equal(found.p, calibrator.map.apply(expected))
    assert (found.model_version, found.map_version, found.applied_ms) == (FIRST_VERSION, 4, 123)
    assert len(set(found.impression_id.tolist())) == 5


def test_without_a_conversion_head_there_is_no_probability_of_one() -> None:
    """NaN, not a number that could be taken for one; the served rows say so too."""
    found = scored([(1, 3)])
    assert np.isnan(found.conversion_logit).all()
    assert np.isnan(found.p_conversion).all()
    ((_, record),) = served_records(found, SMALL, 1)
    decoded = decode_served(record.encode(), SMALL)
    assert np.isnan(decoded.conversion_p).all()
    assert np.isnan(decoded.conversion_logit).all()


def test_the_conversion_head_has_a_map_of_its_own() -> None:
    """The map of clicks does not touch it; logged is what was answered."""
    calibrator = HotCalibrator()
    calibrator.offer(record(0, 4, state_of(1), watermark_ms=123))
    calibrator.conversion_map = SliceMap(curve=CalibrationMap(logits=np.zeros(1), log_odds=np.full(1, -2.0)))
    model = hot_model(Trainer(config=TWO_HEADS))
    found = scored([(1, 3), (2, 2)], calibrator, model)
    conversion = model.predict(found.encoded.rows()).conversion
    assert conversion is not None
    np.testing.assert_array_equal(found.conversion_logit, conversion)
    np.testing.assert_allclose(found.p_conversion, 1 / (1 + np.exp(2.0 - conversion.astype(np.float64))), rtol=1e-6)
    ((_, served),) = served_records(found, SMALL, 1)
    np.testing.assert_array_equal(decode_served(served.encode(), SMALL).conversion_p, found.p_conversion)
    some = found.take(np.array([1, 4]))
    np.testing.assert_array_equal(some.p_conversion, found.p_conversion[[1, 4]])


PROBABILITIES, LOGITS = st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([-1.0, 0.0, 3.0])
PRICES = st.one_of(st.just(0.0), st.floats(0, 5))


@given(st.lists(st.tuples(PROBABILITIES, PROBABILITIES, LOGITS, PRICES, PRICES), max_size=20), st.integers(1, 25))
def test_ranking_is_a_stable_sort_by_expected_value_then_logit(
    ads: list[tuple[float, float, float, float, float]], top_k: int
) -> None:
    """Against Python's sort of p x (bid + value x p_conversion)."""
    columns = [np.array([ad[i] for ad in ads], np.float32) for i in range(3)]
    prices = Prices(np.array([ad[3] for ad in ads]), np.array([ad[4] for ad in ads]))
    value = expected_value(columns[0], columns[1], prices)
    p, p_conversion, logit = (column.tolist() for column in columns)
    pays = [p[i] * (ads[i][3] + ads[i][4] * p_conversion[i]) for i in range(len(ads))]
    assert value.tolist() == pays
    slow = sorted(range(len(ads)), key=lambda i: (-pays[i], -logit[i], i))[:top_k]
    assert ranked(value, columns[2], top_k).tolist() == slow


def test_an_ad_that_pays_for_clicks_alone_needs_no_conversion_head() -> None:
    """NaN of a missing head reaches no value."""
    nothing = np.full(2, np.nan, np.float32)
    p = np.array([0.5, 0.25], np.float32)
    assert expected_value(p, nothing, Prices(np.array([2.0, 8.0]), np.zeros(2))).tolist() == [1.0, 2.0]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 7)), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 15),
)
def test_served_records_hold_every_row_once_on_its_users_partition(
    users_ads: list[tuple[int, int]], partitions: int, most_rows: int
) -> None:
    """Decoded by the join's own reader, the records give back ids, dense inputs and scores of every row."""
    found = scored(users_ads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.served_rows.MAX_RECORD_ROWS", most_rows)
        records = list(served_records(found, SMALL, partitions, watermark_ms=NOW_MS))
    rows = found.encoded.rows()
    at = {impression: i for i, impression in enumerate(found.impression_id.tolist())}
    for partition, served in records:
        decoded = decode_served(served.encode(), SMALL)
        of = decoded.row_request
        assert (partition_of(decoded.user_key, partitions) == partition).all()
        where = [at.pop(impression) for impression in decoded.impression_id.tolist()]
        np.testing.assert_array_equal(
            np.concatenate((decoded.request_ids[of], decoded.ad_ids), axis=1), rows.ids[where]
        )
        dense = np.concatenate((decoded.request_dense[of], decoded.ad_dense), axis=1)
        np.testing.assert_array_equal(dense, rows.dense[where])
        np.testing.assert_array_equal(decoded.logit, found.logit[where])
        np.testing.assert_array_equal(decoded.served_ms, found.ids.ts_ms[found.encoded.row_request[where]])
    assert not at
    last = {partition: served.watermark_ms for partition, served in records}
    assert set(last.values()) == {NOW_MS}
    assert sum(served.watermark_ms > 0 for _, served in records) == len(last)


def test_a_heartbeat_has_no_rows_and_is_read_as_time_alone() -> None:
    """The join reads its watermark."""
    decoded = decode_served(heartbeat_record(SMALL, 1_700_000_000_000).encode(), SMALL)
    assert (len(decoded), decoded.watermark_ms) == (0, 1_700_000_000_000)
