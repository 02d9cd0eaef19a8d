"""What was served, as records of the served topic: one a partition touched."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from learners.features.spec import FeatureSpec
from serving.metrics import VARIANT
from serving.ranking import Scored
from stream.records.partition import partition_of
from stream.records.wire import ServedRecord

MAX_RECORD_ROWS = 4096  # about: some hundred bytes a row keep it far below the topic's limit


def served_records(
    scored: Scored, spec: FeatureSpec, partitions: int, watermark_ms: int = 0
) -> Iterator[tuple[int, ServedRecord]]:
    """The rows of ``scored`` by the partition of their user: (partition, record).

    A request's rows stay in one record. ``watermark_ms`` stands in the last record of each partition touched.
    """
    where = partition_of(scored.ids.user_key, partitions)
    starts = scored.starts()
    for partition in np.unique(where).tolist():
        chunks = list(_chunks(np.flatnonzero(where == partition), starts))
        for chunk in chunks:
            yield partition, _record(scored, spec, chunk, starts, watermark_ms if chunk is chunks[-1] else 0)


def heartbeat_record(spec: FeatureSpec, watermark_ms: int) -> ServedRecord:
    """A record without rows: no served row earlier than ``watermark_ms`` will follow on its partition."""
    none = np.zeros(0)
    return ServedRecord.of(
        spec_hash=spec.hash,
        model_version=0,
        map_version=0,
        variant=VARIANT,
        requests=0,
        rows=0,
        request_fields=len(spec.request_fields),
        ad_fields=len(spec.ad_fields),
        request_dense_inputs=len(spec.request_dense),
        ad_dense_inputs=len(spec.ad_dense),
        watermark_ms=watermark_ms,
        **dict.fromkeys(ServedRecord.LAYOUT, none),
    )


def _chunks(requests: NDArray[np.intp], starts: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Cut requests into runs of MAX_RECORD_ROWS rows, more only by the rest of a run's last request."""
    sizes = starts[requests + 1] - starts[requests]
    if sizes.sum() <= MAX_RECORD_ROWS:
        yield requests
        return
    group = (np.cumsum(sizes) - sizes) // MAX_RECORD_ROWS
    for value in np.unique(group):
        yield requests[group == value]


def _record(
    scored: Scored, spec: FeatureSpec, requests: NDArray[np.intp], starts: NDArray[np.intp], watermark_ms: int
) -> ServedRecord:
    sizes = starts[requests + 1] - starts[requests]
    rows = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in requests.tolist()])
    ids, encoded = scored.ids, scored.encoded
    return ServedRecord.of(
        spec_hash=spec.hash,
        model_version=scored.model_version,
        map_version=scored.map_version,
        variant=VARIANT,
        requests=len(requests),
        rows=len(rows),
        request_fields=encoded.request_ids.shape[1],
        ad_fields=encoded.ad_ids.shape[1],
        request_dense_inputs=encoded.request_dense.shape[1],
        ad_dense_inputs=encoded.ad_dense.shape[1],
        request_id=ids.request_id[requests],
        ts_ms=ids.ts_ms[requests],
        user_key=ids.user_key[requests],
        request_ids=encoded.request_ids[requests],
        request_dense=encoded.request_dense[requests],
        row_request=np.repeat(np.arange(len(requests)), sizes),
        impression_id=scored.impression_id[rows],
        ad_ids=encoded.ad_ids[rows],
        ad_dense=encoded.ad_dense[rows],
        logit=scored.logit[rows],
        p=scored.p[rows],
        conversion_logit=scored.conversion_logit[rows],
        conversion_p=scored.p_conversion[rows],
        propensity=np.ones(len(rows)),  # the order is a function of the scores: nothing is drawn
        watermark_ms=watermark_ms,
    )
