"""A small folder in KuaiRand-Pure's official layout, made up, for tests that need files and not their content."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np

LOG = "log_standard_4_22_to_5_08_pure.csv"
FIRST_MS = 1_650_816_000_000  # 2022-04-25 00:00 at UTC+8
LOG_HEADER = [
    "user_id",
    "video_id",
    "date",
    "hourmin",
    "time_ms",
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "play_time_ms",
    "duration_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
    "is_rand",
    "tab",
]
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
).split(",")
VIDEO_HEADER = [
    "video_id",
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "visible_status",
    "video_duration",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
]


def log_row(**values: Any) -> dict[str, Any]:
    """One row of the log; what is not given is 0."""
    return dict.fromkeys(LOG_HEADER, 0) | {"tab": 1, "duration_ms": 20_000, "time_ms": FIRST_MS} | values


def write_folder(folder: Path, rows: list[dict[str, Any]], *, gzipped: bool = True) -> Path:
    """Write the three files; users 0..49 and videos 0..29 have features."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    users: list[dict[str, Any]] = [
        dict.fromkeys(USER_HEADER, 0)
        | {"user_id": u, "user_active_degree": ("full_active", "high_active")[u % 2], "register_days_range": "730+"}
        for u in range(50)
    ]
    videos: list[dict[str, Any]] = [
        dict.fromkeys(VIDEO_HEADER, 0)
        | {"video_id": v, "author_id": v % 7, "video_type": "NORMAL", "upload_type": "Kmovie", "tag": v % 5}
        for v in range(30)
    ]
    for name, header, content in (
        (LOG, LOG_HEADER, rows),
        ("user_features_pure.csv", USER_HEADER, users),
        ("video_features_basic_pure.csv", VIDEO_HEADER, videos),
    ):
        path = data / (name + ".gz" * gzipped)
        with gzip.open(path, "wt", newline="") if gzipped else path.open("w", newline="") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(content)
    return folder


def random_rows(count: int, days: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows over ``days`` days whose clicks hang on user and video, in time order."""
    rng = np.random.default_rng(seed)
    liking, appeal = rng.normal(0, 1, 50), rng.normal(0, 1, 30)
    rows = []
    for time_ms in np.sort(rng.integers(FIRST_MS, FIRST_MS + days * 86_400_000, count)).tolist():
        user, video, tab = int(rng.integers(50)), int(rng.integers(30)), int(rng.choice([0, 1, 1, 1, 4]))
        click = int(rng.random() < 1 / (1 + np.exp(-(liking[user] + appeal[video]))))
        long_view = int(click and rng.random() < 0.6)
        rows.append(
            log_row(
                user_id=user,
                video_id=video,
                time_ms=time_ms,
                is_click=click,
                long_view=long_view,
                tab=tab,
                play_time_ms=int(rng.integers(8_000, 40_000)) if click else int(rng.integers(0, 6_000)),
            )
        )
    return rows
