"""The READMEs tell of settings and metrics what the code says, the bounds told are kept, the files named are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt

from calibration.config import CalibratorConfig
from learners.deepfm.config import DeepFMConfig
from serving.settings import ServingSettings
from stream.archive.part_buffer import ArchiveConfig
from stream.join.config import JoinConfig
from stream.learn.config import LearningConfig
from stream.servers.settings import StreamSettings
from stream.worker.settings import WorkerSettings
from tests.readme_tables import ROOT, TABLES, bounds_of, settings_of, settings_of_file, with_tables, worker_settings

_FILE = re.compile(r"[\w/.-]*\w\.(?:py|lua|md|toml|yml)\b")
_NOT_OURS = {"model.toml"}  # a name that the reader chooses
CONFIGS = (DeepFMConfig, JoinConfig, LearningConfig, CalibratorConfig, ArchiveConfig)


@pytest.mark.parametrize("readme", TABLES)
def test_the_tables_of_a_readme_are_those_of_the_code(readme: str) -> None:
    """When this fails: make docs."""
    text = (ROOT / readme).read_text()
    assert with_tables(text, TABLES[readme]()) == text


def test_every_setting_has_a_meaning_that_ends_with_a_stop() -> None:
    """No row is empty, none is cut off."""
    for setting in (
        *settings_of(StreamSettings),
        *settings_of(ServingSettings),
        *worker_settings(),
        *settings_of_file(DeepFMConfig),
    ):
        assert setting.meaning.endswith("."), setting


@pytest.mark.parametrize(
    "readme", sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*/README.md"), ROOT / "README.md"))
)
def test_files_that_a_readme_names_are_there(readme: Path) -> None:
    """By their path from the repository's root, or from a folder of the README's own."""
    folder = (ROOT / readme).parent
    there = [path.as_posix() for top in ([] if folder == ROOT else [folder]) for path in top.rglob("*.*")]
    named = set(_FILE.findall((ROOT / readme).read_text())) - _NOT_OURS
    assert named
    assert [
        one for one in sorted(named) if not ((ROOT / one).exists() or any(path.endswith(f"/{one}") for path in there))
    ] == []


def _bounds() -> list[tuple[type[Any], str, Any]]:
    return [
        (config, name, bound)
        for config in CONFIGS
        for name, hint in get_type_hints(config, include_extras=True).items()
        for bound in getattr(hint, "__metadata__", ())
    ]


@pytest.mark.parametrize(("config", "name", "bound"), _bounds())
def test_a_bound_that_is_told_is_kept(config: type[Any], name: str, bound: Ge | Gt | Le | Lt) -> None:
    """The number at an open bound, or just beyond a closed one, is refused; on the other side it is taken."""
    number = getattr(bound, type(bound).__name__.lower())
    whole = "int" in str(get_args(get_type_hints(config, include_extras=True)[name])[0])
    near = 1 if whole else 1e-9 * max(abs(number), 1.0)
    inward = near if isinstance(bound, Ge | Gt) else -near
    closed = isinstance(bound, Ge | Le)
    config(**{name: number if closed else number + inward})
    with pytest.raises(ValueError, match=name):
        config(**{name: number - inward if closed else number})


def test_bounds_and_words_are_shown() -> None:
    """As they stand in the table."""
    assert bounds_of(float, [Ge(0), Lt(0.01)]) == "≥ 0, < 0.01"
    clocks = {setting.name: setting for setting in worker_settings()}
    assert clocks["MILLSTREAM_LEARN_INTERVAL_S"].default == "1 (log clock: 300)"
    assert WorkerSettings.model_fields.keys() <= {name.removeprefix("MILLSTREAM_").lower() for name in clocks}


def test_a_readme_without_marks_is_refused() -> None:
    """A table cannot get lost."""
    with pytest.raises(ValueError, match="settings"):
        with_tables("# stream\n", {"settings": "| a |\n"})
