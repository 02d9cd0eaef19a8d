"""The tables of settings and metrics in the folders' READMEs, made of the code: `python -m tests.readme_tables` writes.

A setting's meaning is the string below its field, its bounds are its annotations; of a metric all stands in its table.
"""

from __future__ import annotations

import ast
import gc
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic_settings import BaseSettings

from learners.deepfm.config import DeepFMConfig
from learners.nn.heads import Head
from serving.__main__ import serve
from serving.metrics import TABLE as SERVING_METRICS
from serving.settings import ServingSettings
from stream.cli.worker import worker
from stream.metric_table import Metric
from stream.metrics import TABLE as STREAM_METRICS
from stream.servers.settings import StreamSettings
from stream.worker.settings import Clock, WorkerSettings

ROOT = Path(__file__).parents[1]
_SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of a table of settings."""

    name: str
    default: str
    bounds: str
    meaning: str


def main() -> None:
    """Write the tables of every README anew."""
    for readme, tables in TABLES.items():
        path = ROOT / readme
        path.write_text(with_tables(path.read_text(), tables()))
        sys.stderr.write(f"{readme}\n")
    (ROOT / SETTING_NAMES).write_text(setting_names())
    sys.stderr.write(f"{SETTING_NAMES}\n")


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced by the table of that name.

    Raises ValueError where a pair of marks is missing.
    """
    for name, table in tables.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (start and end):
            raise ValueError(f"<!-- {name} --> and <!-- /{name} --> are not there: the table has no place. Add them.")
        text = f"{before}{start}{table}{end}{after}"
    return text


def stream_tables() -> dict[str, str]:
    """The tables of stream/README.md."""
    settings = [
        *settings_of(StreamSettings),
        *options_of(worker),
        *worker_settings(),
    ]
    return {"settings": _settings_table(settings), "metrics": _metrics_table(STREAM_METRICS)}


def serving_tables() -> dict[str, str]:
    """The tables of serving/README.md."""
    settings = [*options_of(serve), *settings_of(ServingSettings)]
    return {"settings": _settings_table(settings), "metrics": _metrics_table(SERVING_METRICS)}


def learner_tables() -> dict[str, str]:
    """The table of learners/README.md."""
    return {"settings": _settings_table(settings_of_file(DeepFMConfig))}


SETTING_NAMES = "stream/servers/known_settings.py"
_OF_TESTS = {"MILLSTREAM_TEST_BROKER"}
TABLES = {
    "learners/README.md": learner_tables,
    "stream/README.md": stream_tables,
    "serving/README.md": serving_tables,
}


def setting_names() -> str:
    """The module that names all variables of all programs: each of them tells a setting from a misspelt one."""
    settings = [*settings_of(StreamSettings), *settings_of(ServingSettings), *worker_settings()]
    names = {one.name for one in (*settings, *options_of(worker), *options_of(serve))} | _OF_TESTS
    lines = "".join(f'        "{name}",\n' for name in sorted(names))
    doc = '"""The names of all settings of the environment; `make docs` writes them from the code."""'
    return f"{doc}\n\nNAMES = frozenset(\n    (\n{lines}    )\n)\n"


def settings_of(settings: type[BaseSettings]) -> Iterator[Setting]:
    """Every setting of a pydantic class."""
    meanings, prefix = docs_of(settings), settings.model_config.get("env_prefix", "")
    for name, info in settings.model_fields.items():
        variable = info.validation_alias or prefix + name
        bounds = bounds_of(info.annotation, info.metadata)
        yield Setting(str(variable).upper(), _shown(info.default), bounds, meanings[name])


def worker_settings() -> Iterator[Setting]:
    """The settings of `WorkerSettings`: what is unset there has the default, bounds and meaning of a config."""
    own = WorkerSettings.model_construct()  # the defaults, whatever the environment holds
    configs: dict[Clock, Sequence[Any]] = {
        clock: (own.join(), own.learning(clock), own.calibrator(), own.archive()) for clock in get_args(Clock)
    }
    for name in WorkerSettings.model_fields:
        holders = [type(config) for config in configs["wall"] if name in (field.name for field in fields(config))]
        holder: type[Any] = holders[0] if holders else WorkerSettings
        hint = get_type_hints(holder, include_extras=True)[name]
        wall, log = (_worker_default(own, name, clock, configs[clock]) for clock in ("wall", "log"))
        default = wall if wall == log else f"{wall} (log clock: {log})"
        bounds = bounds_of(hint, getattr(hint, "__metadata__", ()))
        yield Setting(f"MILLSTREAM_{name.upper()}", default, bounds, docs_of(holder)[name])


def _worker_default(own: WorkerSettings, name: str, clock: Clock, configs: Iterable[Any]) -> str:
    if name == "calibrate_interval_s":
        return _shown(own.calibration_interval_s(clock))
    return _shown(next((getattr(one, name) for one in configs if hasattr(one, name)), getattr(own, name)))


def settings_of_file(config: type[Any]) -> Iterator[Setting]:
    """What a TOML file of a config may set."""
    hints, meanings = get_type_hints(config, include_extras=True), docs_of(config)
    for field in fields(config):
        annotation = hints[field.name]
        bounds = bounds_of(annotation, getattr(annotation, "__metadata__", ()))
        yield Setting(field.name, _shown(field.default), bounds, meanings[field.name])


def options_of(command: Callable[..., None]) -> Iterator[Setting]:
    """The options of a command that a variable of the environment sets, too."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        annotation, option = get_args(hints[name])
        if option.envvar:
            meaning = f"`--{name.replace('_', '-')}` of the command line. {option.help}"
            yield Setting(option.envvar, _shown(parameter.default), bounds_of(annotation, ()), meaning)


def docs_of(cls: type) -> dict[str, str]:
    """The string below each field of a class, as one line."""
    gc.disable()  # a finaliser of it may parse, too, and CPython 3.11 counts the depth of both in one
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    finally:
        gc.enable()
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def bounds_of(annotation: Any, metadata: Iterable[Any]) -> str:
    """Bounds of a number, or the words that may be given."""
    if get_origin(annotation) is Literal:
        return _words(get_args(annotation))
    bounds = [item for item in metadata if type(item) in _SIGNS]
    return ", ".join(f"{_SIGNS[type(item)]} {_shown(getattr(item, type(item).__name__.lower()))}" for item in bounds)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Head):
        return f'{{ name = "{value.name}" }}'
    return f"`{value}`" if isinstance(value, str) else str(value)


def _settings_table(settings: Iterable[Setting]) -> str:
    rows = [(f"`{one.name}`", one.default, one.bounds, one.meaning) for one in settings]
    return _table(("setting", "default", "bounds", "meaning"), rows)


def _metrics_table(metrics: Sequence[Metric]) -> str:
    rows = [(f"`{one.name}`", one.kind, _words(one.labels), one.doc) for one in metrics]
    labels: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for one in metrics:
        for name, values in one.labels.items():
            labels.setdefault((name, tuple(values)), []).append(f"`{one.name}`")
    names = [name for name, _ in labels]
    of = [
        (f"`{name}`", _words(values) or "what the data holds", ", ".join(where) if names.count(name) > 1 else "all")
        for (name, values), where in labels.items()
    ]
    return f"{_table(('metric', 'type', 'labels', 'meaning'), rows)}\n{_table(('label', 'values', 'of'), of)}"


def _words(values: Iterable[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
