"""`python -m replay` as a stranger uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from replay.__main__ import app
from tests.replay.kuairand_files import random_rows, write_folder

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of a made-up log in the official layout."""
    return write_folder(tmp_path_factory.mktemp("kuairand"), random_rows(2_400, days=3))


def replay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "replay", *arguments],
        capture_output=True, text=True, check=False, env=own_environment() | environment, timeout=200,
    )  # fmt: skip


def own_environment() -> dict[str, str]:
    """No servers given: the program starts its own."""
    given = ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL")
    return {name: value for name, value in os.environ.items() if name not in given} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """A backtest of the folder."""
    return backtest(folder)


def backtest(folder: Path, *more: str) -> dict[str, Any]:
    """The JSON of a backtest."""
    done = replay("backtest", "--dataset", "kuairand", "--data", str(folder), "--base-days", "2", "--json", *more)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_two_backtests_print_the_same_hashes(folder: Path, alone: dict[str, Any]) -> None:
    """Weights, calibration and sessions are functions of the log alone; the JSON holds what it promises."""
    one, two = alone, backtest(folder)
    assert one == two
    assert set(one["sha256"]) == {"weights", "calibration", "sessions"}
    (day,) = one["days"]
    assert day["date"] == "2022-04-27"
    assert day["rows"] == one["rows"] > 600
    for model in ("online", "frozen"):
        assert {"auc", "log_loss", "ne", "observed_over_expected"} <= set(one[model])
        assert one[model] == day[model]
        assert 0.5 < one[model]["auc"] < 1


def test_a_learn_step_a_second_is_an_option(folder: Path, alone: dict[str, Any]) -> None:
    """More and smaller steps of the same rows, and no worse."""
    often = backtest(folder, "--learn-interval-s", "1")
    assert often["versions"] > 2 * alone["versions"]
    assert often["online"]["log_loss"] < alone["online"]["log_loss"] + 0.005


def test_another_tick_changes_the_hashes(folder: Path, alone: dict[str, Any]) -> None:
    """The hashes can differ: they hang on what was learned."""
    assert backtest(folder, "--tick-s", "600")["sha256"] != alone["sha256"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backtest", "--dataset", "criteo"], "unknown dataset 'criteo': choose one of kuairand, marketplace"),
        (["backtest", "--dataset", "kuairand"], "--data DIR"),
        (["backtest", "--dataset", "kuairand", "--data", "/nowhere"], "/nowhere is not a folder"),
        (["backtest", "--dataset", "marketplace", "--learn-interval-s", "0"], "learn_interval_s=0.0 must be positive"),
        (["demo", "--dataset", "marketplace", "--base-days", "9"], "--base-days 9 must lie between 1 and 3"),
        (["demo", "--dataset", "marketplace", "--tick-s", "400"], "max_lag_s=300.0 must be at least twice"),
        (["run", "--dataset", "marketplace", "--snapshots", "/nowhere"], "/nowhere holds no snapshot"),
    ],
)
def test_bad_usage_says_what_is_wrong_and_exits_with_2(arguments: list[str], message: str) -> None:
    """The value, the bound and the remedy, no traceback."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.e2e
def test_the_demo_replays_a_log_through_everything_and_agrees_with_the_backtest(
    folder: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    """Every impression of the online day is displayed once, learned and reported; the live AUC is the backtest's."""
    done = replay(
        "demo", "--dataset", "kuairand", "--data", str(folder), "--base-days", "2", "--json",
        "--work-dir", str(tmp_path / "work"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    live = json.loads(done.stdout)
    assert live["rows"] == alone["rows"] == live["requests"]
    assert live["dead_letters"] == 0
    assert live["versions_swapped"] >= 3
    assert live["freshness_s"]["count"] > 100
    assert abs(live["online"]["auc"] - alone["online"]["auc"]) < 0.03  # 800 rows: an AUC's standard error is 0.02
    assert "live page: http://127.0.0.1:" in done.stderr
    assert not left_over(str(tmp_path / "work"))


@pytest.mark.e2e
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_nothing_running(folder: Path, tmp_path: Path, stop: signal.Signals) -> None:
    """Ctrl-C or SIGTERM in the middle of the replay: worker, serving, broker and Redis are stopped, status 130."""
    work, said = tmp_path / "work", tmp_path / "stderr"
    arguments = ["--dataset", "kuairand", "--data", str(folder), "--base-days", "2", "--work-dir", str(work)]
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "replay", "demo", *arguments], stderr=stderr, env=own_environment()
        )
    try:
        deadline = time.monotonic() + 120
        while "live page" not in said.read_text() and time.monotonic() < deadline:
            assert process.poll() is None, said.read_text()
            time.sleep(0.1)
        children = descendants(process.pid)
        assert len(children) >= 4  # broker, Redis, worker, serving
        process.send_signal(stop)
        assert process.wait(timeout=60) == 130, said.read_text()
    finally:
        process.kill()
        process.wait()
    assert not [pid for pid in children if alive(pid)]


def left_over(mark: str) -> list[int]:
    """Processes whose command line names ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in command and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
