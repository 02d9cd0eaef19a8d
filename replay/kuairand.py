"""Reader of KuaiRand-Pure: a real feed log (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624).

Every row of the standard logs is one impression of one video. ``is_click`` is a valid play (more than 7 s) in the
single-column tabs and a tap in the others; ``long_view`` stands for the delayed conversion. Local time is UTC+8, and
days follow ``time_ms``: the file's own ``date`` and ``hourmin`` are off by an hour in 17 % of the rows.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from learners.examples.terms import CLICK_HEAD
from learners.features.encode import Request
from replay.errors import DataError
from replay.scenario import Days, Display, calendar

UTC_OFFSET_H = 8.0
TAP_TABS = (0, 3, 8, 12)
VALID_PLAY_MS = 7_000
SANE_MS = (946_684_800_000, 4_102_444_800_000)  # 2000-01-01 to 2100-01-01

LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"

LOG_COLUMNS = {
    "user_id": pa.int64(),
    "video_id": pa.int64(),
    "time_ms": pa.int64(),
    "is_click": pa.int8(),
    "long_view": pa.int8(),
    "play_time_ms": pa.int64(),
    "duration_ms": pa.int64(),
    "tab": pa.int16(),
}
USER_TEXT = (
    "user_active_degree", "follow_user_num_range", "fans_user_num_range", "friend_user_num_range",
    "register_days_range", *(f"onehot_feat{i}" for i in range(18)),
)  # fmt: skip
USER_FLAGS = ("is_lowactive_period", "is_live_streamer", "is_video_author")
VIDEO_COLUMNS = ("author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type", "tag")


class KuaiRand:
    """The standard logs under ``folder`` (or ``folder/data``), plain or gzipped, in time order."""

    name = "kuairand"
    spec_name = "kuairand"
    utc_offset_h = UTC_OFFSET_H
    head_names: tuple[str, ...] = (CLICK_HEAD,)  # a long view is no purchase: nobody bids for it
    click_window_s = 60.0  # the log's clicks come 7 s after display; every outcome is known long before a minute
    top_k: int | None = None

    def __init__(self, folder: Path) -> None:
        logs = [path for name in LOGS if (path := _locate(folder, name)) is not None]
        if not logs:
            raise DataError(
                f"{folder} holds none of {', '.join(LOGS)} (plain or .gz, here or in data/): there is nothing to "
                "replay. Unpack KuaiRand-Pure (Zenodo record 10439422) there, or pass the folder that holds it."
            )
        tables = [_read_log(path) for path in logs]
        self._log = {
            name: np.concatenate([table[name] for table in tables]) if len(tables) > 1 else tables[0][name]
            for name in LOG_COLUMNS
        }
        order = np.argsort(self._log["time_ms"], kind="stable")
        self._log = {name: column[order] for name, column in self._log.items()}
        self._users = _features(_require(folder, USERS), "user_id", USER_TEXT + USER_FLAGS)
        self._videos = _features(_require(folder, VIDEOS), "video_id", VIDEO_COLUMNS)

    def days(self) -> Days:
        """The local days (UTC+8) that the logs hold."""
        times = self._log["time_ms"]
        return calendar(int(times[0]), int(times[-1]), UTC_OFFSET_H)

    def count(self, start_ms: int, end_ms: int) -> int:
        """Rows in the span."""
        first, last = np.searchsorted(self._log["time_ms"], [start_ms, end_ms])
        return int(last - first)

    def requests(self, start_ms: int, end_ms: int) -> Iterator[Request]:
        """One request of one candidate a row; the request id is the row's number in time order, from 1."""
        first, last = np.searchsorted(self._log["time_ms"], [start_ms, end_ms])
        log = self._log
        for row in range(int(first), int(last)):
            user_id, video_id = int(log["user_id"][row]), int(log["video_id"][row])
            time_ms = int(log["time_ms"][row])
            yield Request(
                request_id=row + 1,
                ts_ms=time_ms,
                user={"user_id": user_id, **self._users.get(user_id, {})},
                context={"tab": int(log["tab"][row])},
                ads=[
                    {
                        "video_id": video_id,
                        "duration_ms": int(log["duration_ms"][row]),
                        **self._videos.get(video_id, {}),
                    }
                ],
            )

    def displays(self, request: Request, order: Sequence[int]) -> list[Display]:
        """The logged outcome of the row."""
        row = request.request_id - 1
        log = self._log
        at = int(log["time_ms"][row])
        click_ms = at + _click_delay_ms(int(log["tab"][row]), row) if log["is_click"][row] else None
        conversion_ms = at + int(log["play_time_ms"][row]) if click_ms is not None and log["long_view"][row] else None
        return [Display(0, 0, at, click_ms, conversion_ms, float(conversion_ms is not None))]


def _click_delay_ms(tab: int, row: int) -> int:
    """A valid play is known after 7 s; a tap comes 1 to 3 s after the display, by a fixed hash of the row."""
    if tab in TAP_TABS:
        return 1_000 + (row * 2_654_435_761 & 0xFFFFFFFF) % 2_001
    return VALID_PLAY_MS


def _locate(folder: Path, name: str) -> Path | None:
    candidates = (base / (name + suffix) for base in (folder, folder / "data") for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _locate(folder, name)
    if path is None:
        raise DataError(
            f"{folder} holds no {name} (plain or .gz, here or in data/): without it the features would differ from "
            "the ones the model is meant to learn. Copy the file of KuaiRand-Pure there."
        )
    return path


def _read_csv(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """The named columns of a CSV; a damaged file is named with the row at which it breaks."""
    convert = pacsv.ConvertOptions(column_types=dict(columns), include_columns=list(columns))
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as damage:
        raise DataError(f"{path} is truncated or damaged ({damage}): copy the file again.") from damage
    if not data.strip():
        raise DataError(f"{path} is empty: copy the file again.")
    if not data.endswith(b"\n"):
        row = data.count(b"\n") + 1
        raise DataError(f"{path} ends in the middle of row {row} (no line end): it is truncated. Copy it again.")
    try:
        return pacsv.read_csv(
            io.BytesIO(data), read_options=pacsv.ReadOptions(use_threads=False), convert_options=convert
        )
    except (pa.ArrowException, KeyError, ValueError) as damage:
        raise DataError(f"{path}: {damage}. Every row must match the header; copy the file again.") from damage


def _read_log(path: Path) -> dict[str, NDArray[Any]]:
    table = _read_csv(path, LOG_COLUMNS)
    log: dict[str, NDArray[Any]] = {}
    for name in LOG_COLUMNS:
        column = table.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{path}, row {row + 2}: {name} is empty. Copy the file again.")
        log[name] = column.to_numpy()
    for name, low, high in (("is_click", 0, 1), ("long_view", 0, 1), ("time_ms", *SANE_MS), ("play_time_ms", 0, 2**40)):
        wrong = np.flatnonzero((log[name] < low) | (log[name] > high))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{path}, row {row + 2}: {name}={log[name][row]} lies outside {low}..{high}. Copy the file again."
            )
    return log


def _features(path: Path, key: str, names: Sequence[str]) -> dict[int, dict[str, str]]:
    """Attributes by id, as text exactly as the file has it; missing values are left out."""
    table = _read_csv(path, {key: pa.int64(), **dict.fromkeys(names, pa.string())})
    ids = table.column(key).to_pylist()
    columns = [table.column(name).to_pylist() for name in names]
    return {
        identity: {name: value for name, value in zip(names, values, strict=True) if value not in (None, "")}
        for identity, *values in zip(ids, *columns, strict=True)
    }
