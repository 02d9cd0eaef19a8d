"""`python -m replay truth`: what it prints, and how it ends."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner

from replay.__main__ import app
from replay.truth_jobs import chosen, expected_displays
from replay.truth_report import Result, course, misses, truth_json, truth_table
from replay.truth_scenarios import RATES, SCENARIOS
from replay.truth_trace import Job
from tests.replay.truth_traces import made_up


def result(name: str = "steady", **made: float) -> Result:
    """A judged job with a made-up trace, p so many times the truth."""
    of = Job(SCENARIOS[name], RATES[0], 2)
    return Result.of(of, made_up(of, **{which: lambda minute, v=value: v for which, value in made.items()}), 1.0)


def test_the_table_has_a_line_for_each_job_and_counts_what_is_missed() -> None:
    """Scenario, rate, seed, the range of O/E calibrated and raw, and the number of misses."""
    console = Console(width=180, record=True, file=StringIO())
    console.print(truth_table([result(), result("launch_large", expected=1.25)]))
    text = console.export_text()
    assert "steady" in text
    assert "1.000-1.000 | 1.000-1.000" in text
    assert "0.800-0.800 | 1.000-1.000" in text
    assert text.count("1,000") == 2


def test_a_miss_names_scenario_rate_seed_span_value_and_bound() -> None:
    """The line says where to look."""
    lines = misses([result(), result(expected=1.25)])
    assert lines[0] == (
        "steady, 1,000/s at 1.0%, seed 2: a minute, calibrated, minutes 2 to 3: 0.8 is not within 0.9 to 1.1"
    )


def test_json_holds_minutes_checks_and_misses() -> None:
    """O/E by minute and ten minutes, also of launched ads; everything fits JSON."""
    document = orjson.loads(orjson.dumps(truth_json([result("launch_large", expected=1.25, launched=0.5)])))
    run = document["runs"][0]
    assert (run["scenario"], run["seed"], run["displays_per_s"]) == ("launch_large", 2, 1000.0)
    assert run["minutes"][3]["calibrated"] == pytest.approx(0.8)
    assert "launched_calibrated" not in run["minutes"][3]
    assert run["minutes"][4]["launched_calibrated"] == pytest.approx(2.0)
    assert [span["minute"] for span in run["ten_minutes"]] == [0, 10]
    assert len(document["misses"]) == sum(not check["holds"] for check in run["checks"]) > 0


def test_days_are_told_by_hour_and_day() -> None:
    """A scenario of days has conversions by the hour and by the day."""
    of = result("conversions")
    assert len(course(of.job, of.trace, 60.0)) == 72
    assert course(of.job, of.trace, 24 * 60.0)[1]["launched_conversion_calibrated"] == pytest.approx(1.0)


def test_quick_is_one_seed_of_shortened_scenarios() -> None:
    """Quick leaves scenarios out and shortens the rest; one that is asked for by name runs anyway."""
    quick, whole = chosen(None, quick=True, seeds=(1, 2, 3)), chosen(None, quick=False, seeds=(1, 2, 3))
    assert {job.seed for job in quick} == {1}
    assert sum(map(expected_displays, quick)) < sum(map(expected_displays, whole)) / 4
    assert [job.scenario.name for job in chosen(["day_ramp"], quick=True, seeds=(1,))] == ["day_ramp"] * 2


def test_an_unknown_scenario_is_bad_usage() -> None:
    """Exit 2, and the message lists what there is."""
    ended = CliRunner().invoke(app, ["truth", "--scenario", "apocalypse"])
    assert ended.exit_code == 2
    assert "first_deployment" in ended.stderr


@pytest.mark.parametrize("command", [["truth"], ["base", "--dataset", "marketplace"]])
def test_an_out_that_can_be_no_folder_is_bad_usage(command: list[str], tmp_path: Path) -> None:
    """Exit 2 before anything is run, with the path, the reason and the remedy."""
    pytest.importorskip("matplotlib")
    (tmp_path / "afile").touch()
    for out, reason in ((tmp_path / "afile", "File exists"), (Path("/proc/nope"), "No such file")):
        ended = CliRunner().invoke(app, [*command, "--out", str(out)])
        assert ended.exit_code == 2
        assert f"--out {out} can be no folder ({reason}" in ended.stderr
        assert "Give a folder" in ended.stderr


def test_a_picture_shows_every_scenario_and_rate(tmp_path: Path) -> None:
    """A PNG of some size is written."""
    pytest.importorskip("matplotlib")
    from replay.truth_picture import draw

    slow = Job(replace(SCENARIOS["conversions"]), RATES[1], 1)
    draw([result("launch_large"), Result.of(slow, made_up(slow), 1.0)], tmp_path / "truth.png")
    assert (tmp_path / "truth.png").stat().st_size > 10_000
