"""The reader of KuaiRand-Pure."""

from __future__ import annotations

import gzip
from datetime import date
from pathlib import Path

import pytest

from replay.errors import DataError
from replay.kuairand import KuaiRand
from tests.replay.kuairand_files import FIRST_MS, LOG, log_row, random_rows, write_folder

DAY_MS = 86_400_000


def test_rows_come_in_time_order_with_their_features(tmp_path: Path) -> None:
    """The log is sorted by time_ms whatever order the file has, and user and video columns ride along."""
    rows = random_rows(200, days=2)
    log = KuaiRand(write_folder(tmp_path, rows[::-1]))
    requests = list(log.requests(0, 2**62))
    assert [r.ts_ms for r in requests] == [row["time_ms"] for row in rows]
    assert [r.user["user_id"] for r in requests] == [row["user_id"] for row in rows]
    first = requests[0]
    assert first.ads[0]["author_id"] == str(int(first.ads[0]["video_id"]) % 7)
    assert first.user["register_days_range"] == "730+"


@pytest.mark.parametrize("gzipped", [True, False])
def test_plain_and_gzipped_files_read_alike(tmp_path: Path, gzipped: bool) -> None:
    """The official files are plain CSV; a compressed copy is as good."""
    log = KuaiRand(write_folder(tmp_path, random_rows(20, days=1), gzipped=gzipped))
    assert log.count(0, 2**62) == 20


def test_a_valid_play_is_known_after_seven_seconds_and_a_tap_after_one_to_three(tmp_path: Path) -> None:
    """The click's delay hangs on the tab; the conversion comes at the end of the play; no click, no conversion."""
    rows = [
        log_row(time_ms=FIRST_MS, is_click=1, long_view=1, play_time_ms=31_000, tab=1),
        log_row(time_ms=FIRST_MS + 1, is_click=1, tab=0),
        log_row(time_ms=FIRST_MS + 2, is_click=0, tab=1, play_time_ms=3_000),
    ]
    log = KuaiRand(write_folder(tmp_path, rows))
    play, tap, nothing = (log.displays(r, [0])[0] for r in log.requests(0, 2**62))
    assert (play.display_ms, play.click_ms, play.conversion_ms) == (FIRST_MS, FIRST_MS + 7_000, FIRST_MS + 31_000)
    assert tap.click_ms is not None
    assert 1_000 <= tap.click_ms - tap.display_ms <= 3_000
    assert tap.conversion_ms is None
    assert (nothing.click_ms, nothing.conversion_ms) == (None, None)


def test_days_are_local_and_a_late_evening_start_is_not_a_day(tmp_path: Path) -> None:
    """A log that opens 55 minutes before midnight (UTC+8) starts its first day at midnight and keeps the rows."""
    rows = [log_row(time_ms=FIRST_MS - 55 * 60_000), log_row(time_ms=FIRST_MS + 5), log_row(time_ms=FIRST_MS + DAY_MS)]
    log = KuaiRand(write_folder(tmp_path, rows))
    days = log.days()
    assert days.dates == [date(2022, 4, 25), date(2022, 4, 26)]
    assert log.count(*days.span_ms(0, 1)) == 2
    assert log.count(*days.span_ms(1, 1)) == 1


def test_a_folder_without_a_log_says_what_it_looked_for(tmp_path: Path) -> None:
    """The error names the folder, the files and where to get them."""
    with pytest.raises(DataError, match=r"log_standard_4_08.*Zenodo"):
        KuaiRand(tmp_path)


def test_a_missing_feature_file_is_named(tmp_path: Path) -> None:
    """Without the videos there is no model worth measuring."""
    folder = write_folder(tmp_path, random_rows(5, days=1))
    (folder / "data" / "video_features_basic_pure.csv.gz").unlink()
    with pytest.raises(DataError, match="holds no video_features_basic_pure"):
        KuaiRand(folder)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    """A gzip file that stops short is not read as if it were whole."""
    path = write_folder(tmp_path, random_rows(500, days=1)) / "data" / f"{LOG}.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{LOG}.gz is truncated or damaged"):
        KuaiRand(tmp_path)


def test_a_file_cut_within_a_row_names_the_row(tmp_path: Path) -> None:
    """The last row has no line end: the row is named."""
    path = write_folder(tmp_path, random_rows(10, days=1)) / "data" / f"{LOG}.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:-9]))
    with pytest.raises(DataError, match=r"row 11 .*truncated"):
        KuaiRand(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"), [("is_click", 2, "is_click=2"), ("time_ms", 1_650_816, "time_ms=1650816")]
)
def test_a_value_out_of_range_names_the_row(tmp_path: Path, column: str, value: int, message: str) -> None:
    """Seconds instead of milliseconds, or a label that is none, are refused with the row."""
    rows = random_rows(10, days=1)
    rows[4][column] = value
    with pytest.raises(DataError, match=rf"row 6: {message}"):
        KuaiRand(write_folder(tmp_path, rows))


def test_text_where_a_number_belongs_is_refused(tmp_path: Path) -> None:
    """The reader's own message says which column and value."""
    rows = random_rows(10, days=1)
    rows[3]["video_id"] = "abc"
    with pytest.raises(DataError, match="abc"):
        KuaiRand(write_folder(tmp_path, rows))
