"""Variables that are named like settings and are none."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from stream.__main__ import app
from stream.servers.known_settings import NAMES
from stream.servers.setting_names import unknown_settings
from tests.readme_tables import ROOT, SETTING_NAMES, setting_names


def test_the_names_are_those_of_the_settings() -> None:
    """When this fails: make docs."""
    assert (ROOT / SETTING_NAMES).read_text() == setting_names()


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("MILLSTREAM_LEARNBATCH", "MILLSTREAM_LEARN_BATCH_ROWS"),
        ("MILLSTREAM_LEARN_BATCH_ROW", "MILLSTREAM_LEARN_BATCH_ROWS"),
        ("MILLSTREAM_CLICK_WINDOW", "MILLSTREAM_CLICK_WINDOW_S"),
        ("millstream_partition", "MILLSTREAM_PARTITIONS"),
        ("MILLSTREAM_FRESH_WITHIN", "MILLSTREAM_FRESH_WITHIN_S"),
        ("KAFKA_BOOTSTRAP_SERVER", "KAFKA_BOOTSTRAP_SERVERS"),
        ("REDIS_PASWORD", "REDIS_PASSWORD"),
    ],
)
def test_one_that_is_nearly_a_setting_is_named_with_it(given: str, nearest: str) -> None:
    """It would be ignored, and the default used; a value may be a secret."""
    (said,) = unknown_settings({given: "secret", "PATH": "/bin"})
    assert said == f"{given} is no setting and is ignored: did you mean {nearest}?"


def test_one_that_is_near_to_none_is_named_too() -> None:
    """Under our own prefix; under others' it is theirs."""
    (said,) = unknown_settings({"MILLSTREAM_XYZZY": "1", "KAFKA_HOME": "/opt", "REDIS_MASTER_HOST": "a", "HOME": "/"})
    assert said.startswith("MILLSTREAM_XYZZY is no setting")


def test_settings_pass_in_whatever_case() -> None:
    """As they are read."""
    assert [*unknown_settings(dict.fromkeys([*NAMES, "millstream_partitions"], "1"))] == []


def test_a_program_says_it_on_stderr() -> None:
    """What it prints stays what it was."""
    run = CliRunner().invoke(app, ["topics", "--json"], env={"MILLSTREAM_LEARNBATCH": "12"})
    assert run.exit_code == 0
    assert "MILLSTREAM_LEARNBATCH is no setting" in run.stderr
    assert run.stdout.startswith("[")
