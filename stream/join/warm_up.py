"""Loads the join's kernels before the first record comes, in a thread, while the group is joined.

Without it the first step takes 4.9 s longer where no machine code is on the disk yet, as in a new container, and 0.6 s
where it is (one core): the event loop stands still meanwhile, and an embedded broker ends a session after 2 s.
"""

from __future__ import annotations

import numpy as np

from stream.join.config import JoinConfig
from stream.join.core import JoinCore
from stream.join.late import with_late_clicks
from stream.join.output import JoinOutput, Records
from stream.records.events import EventRows
from stream.records.examples import ExampleRows
from stream.records.served import ServedRows
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED

_AT_MS = 1_600_000_000_000
_CONFIG = JoinConfig(display_horizon_s=1, click_horizon_s=10)


def load_join_kernels() -> None:
    """Join a few rows that go every way: clicked at once, late or never, never displayed, unknown, restored."""
    core = JoinCore(_CONFIG, 0)
    core.clicks(_events([1, 9], 100), Records.one(0, 2))
    core.served(_served(5), Records.one(0, 5))
    core.impressions(_events([1, 2, 3, 3], 50), Records.one(0, 4))
    rows = _pass_time(core, 2_000).examples or ExampleRows.empty(1, 1)
    core.clicks(_events([2, 3], 1_200), Records.one(1, 2))
    with_late_clicks(core.poll(), {0: rows}, 0)
    core.shed_memory(1 << 40)
    core.served(_served(6), Records.one(1, 6))
    core.shed_memory(1 << 40)
    _pass_time(core, 60_000)
    again = JoinCore(_CONFIG, 0)
    again.restore(rows, 0)
    again.served(_served(3_000), Records.one(0, 3_000))  # the index grows


def _pass_time(core: JoinCore, to_ms: int) -> JoinOutput:
    for topic in (SERVED, IMPRESSIONS, CLICKS):
        core.watermark(topic, _AT_MS + to_ms)
    output = core.poll()
    core.stored([0], [0])
    return output


def _served(count: int) -> ServedRows:
    key, one = np.arange(1, count + 1, dtype=np.uint64), np.ones(count, np.float32)
    return ServedRows(
        impression_id=key,
        row_request=np.zeros(count, np.uint32),
        logit=one,
        p=one,
        conversion_logit=one,
        conversion_p=one,
        propensity=one,
        ad_ids=key[:, None],
        ad_dense=one[:, None],
        ts_ms=np.array([_AT_MS]),
        user_key=key[:1],
        model_version=np.zeros(1, np.int64),
        request_ids=key[:1, None],
        request_dense=one[:1, None],
    )


def _events(keys: list[int], after_ms: int) -> EventRows:
    key = np.array(keys, np.uint64)
    return EventRows(
        impression_id=key,
        ts_ms=np.full(len(key), _AT_MS + after_ms),
        user_key=np.ones(len(key), np.uint64),
        position=np.zeros(len(key), np.int32),
        value=np.zeros(len(key), np.float32),
    )
