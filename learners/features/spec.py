"""The feature spec: which fields, counters and session features a model reads. Data, kept in TOML.

A model's row is F id columns and K dense inputs. Request-scoped columns come first (they are the same for every ad of a
request), then ad-scoped ones; within a scope the raw fields in their order, then what is derived from session state.
A field or counter is ad-scoped as soon as one of its sources is the ad's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from calibration.slices import SlicePlan, named_slices
from learners.features.session_state import REMEMBERED
from learners.features.spec_parts import GROUPS, TIMES, Calibration, Counter, Field, Rates, Session, SpecError


class FeatureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A whole feature spec, checked. ``user`` and ``ad`` name the fields that say who and what."""

    name: str
    user: str
    ad: str
    fields: tuple[Field, ...]
    counters: tuple[Counter, ...] = ()
    rates: Rates = Rates()
    session: Session = Session()
    utc_offset_s: int = 0
    calibration: Calibration = Calibration()

    def __post_init__(self) -> None:
        check(self)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the SHA-256 of the spec's canonical JSON: rows of equal hashes have equal columns.

        The calibration's slices are left out: they read columns and make none.
        """
        as_read = msgspec.json.decode(msgspec.json.encode(self), type=FeatureSpec)  # 18 and 18.0 are one number
        columns = {name: getattr(as_read, name) for name in as_read.__struct_fields__ if name != "calibration"}
        return hashlib.sha256(msgspec.json.encode(columns, order="sorted")).hexdigest()[:16]

    @cached_property
    def by_name(self) -> dict[str, Field]:
        """Fields by their name."""
        return {field.name: field for field in self.fields}

    @cached_property
    def slice_plan(self) -> SlicePlan:
        """The slices of the calibration. Raises ValueError for a column that does not exist."""
        names = [(one.column, one.edges) for one in self.calibration.slices]
        return SlicePlan(named_slices(names, self.columns, self.request_dense + self.ad_dense))

    def of_ad(self, field: str) -> bool:
        """Whether the field's value can differ between the ads of one request."""
        made_of = self.by_name[field]
        return any(self.of_ad(part) for part in made_of.cross) if made_of.cross else made_of.source.startswith("ad.")

    def own(self, counter: Counter) -> bool:
        """Whether the counter is the user's own: its key holds the user, so it lives in the user's partition."""
        return self.user in self.parts(counter.field)

    def parts(self, field: str) -> tuple[str, ...]:
        """The plain fields that a field is made of."""
        crossed = self.by_name[field].cross
        return tuple(plain for part in crossed for plain in self.parts(part)) if crossed else (field,)

    @cached_property
    def raw_request_fields(self) -> tuple[Field, ...]:
        """Fields of the request itself, not derived."""
        return tuple(field for field in self.fields if not self.of_ad(field.name))

    @cached_property
    def raw_ad_fields(self) -> tuple[Field, ...]:
        """Fields that differ by ad, not derived."""
        return tuple(field for field in self.fields if self.of_ad(field.name))

    @cached_property
    def request_counters(self) -> tuple[Counter, ...]:
        """Counters whose key is the same for every ad of a request."""
        return tuple(counter for counter in self.counters if not self.of_ad(counter.field))

    @cached_property
    def ad_counters(self) -> tuple[Counter, ...]:
        """Counters whose key differs by ad."""
        return tuple(counter for counter in self.counters if self.of_ad(counter.field))

    @cached_property
    def request_fields(self) -> tuple[str, ...]:
        """Names of the request-scoped id columns: raw, then ``session.*``, then ``<field>.*`` of the counters."""
        derived = tuple(f"session.{kind}" for kind in self.session.ids) + self.history_fields
        return (*(f.name for f in self.raw_request_fields), *derived, *_derived(self.request_counters, "ids"))

    @cached_property
    def history_fields(self) -> tuple[str, ...]:
        """Names of the id columns that hold the user's recent ads, newest first."""
        return tuple(f"session.recent_ad_{at}" for at in range(1, self.session.recent_ads + 1))

    @cached_property
    def ad_fields(self) -> tuple[str, ...]:
        """Names of the ad-scoped id columns: raw, then ``<field>.*`` of the counters."""
        return (*(f.name for f in self.raw_ad_fields), *_derived(self.ad_counters, "ids"))

    @cached_property
    def request_dense(self) -> tuple[str, ...]:
        """Names of the request-scoped dense inputs."""
        return (*(f"session.{kind}" for kind in self.session.dense), *_derived(self.request_counters, "dense"))

    @cached_property
    def ad_dense(self) -> tuple[str, ...]:
        """Names of the ad-scoped dense inputs."""
        return _derived(self.ad_counters, "dense")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of all F id columns in the order of ``Rows.ids``."""
        return self.request_fields + self.ad_fields

    @property
    def id_columns(self) -> int:
        """F, the width of ``Rows.ids``."""
        return len(self.columns)

    @property
    def dense_inputs(self) -> int:
        """K, the width of ``Rows.dense``."""
        return len(self.request_dense) + len(self.ad_dense)

    def field_index(self, name: str) -> int:
        """The column of a field in ``Rows.ids``. Raises SpecError for an unknown one."""
        try:
            return self.columns.index(name)
        except ValueError:
            raise SpecError(f"spec {self.name} has no id column {name!r}; it has {', '.join(self.columns)}") from None

    @cached_property
    def user_field(self) -> int:
        """The column of the user key."""
        return self.field_index(self.user)

    @cached_property
    def ad_field(self) -> int:
        """The column of the ad's id."""
        return self.field_index(self.ad)

    @cached_property
    def embedded_columns(self) -> tuple[int, ...]:
        """The columns of ``Rows.ids`` that are learned, ascending."""
        logged_only = {field.name for field in self.fields if not field.embed} | set(self.history_fields)
        return tuple(at for at, name in enumerate(self.columns) if name not in logged_only)

    @cached_property
    def history_columns(self) -> tuple[int, ...]:
        """The columns of the user's recent ads, newest first."""
        return tuple(self.field_index(name) for name in self.history_fields)

    @cached_property
    def counter_columns(self) -> tuple[int, ...]:
        """For each of ``counters`` the column of its key."""
        return tuple(self.field_index(counter.field) for counter in self.counters)


def _derived(counters: Sequence[Counter], what: Literal["ids", "dense"]) -> tuple[str, ...]:
    return tuple(f"{counter.field}.{kind}" for counter in counters for kind in getattr(counter, what))


def load_spec(name_or_path: str | Path) -> FeatureSpec:
    """A built-in spec by its name, or one from a TOML file (a path with ``.toml``). Raises SpecError."""
    text = str(name_or_path)
    if text.endswith(".toml"):
        path = Path(text)
        if not path.is_file():
            raise SpecError(f"there is no feature spec file {text}. Built in are {', '.join(built_in())}.")
        return _parsed(path.read_bytes(), text)
    if text not in built_in():
        raise SpecError(f"unknown feature spec {text!r}. Name one of {', '.join(built_in())}, or a .toml file.")
    return _parsed((resources.files("learners.specs") / f"{text}.toml").read_bytes(), f"built-in spec {text}")


def built_in() -> tuple[str, ...]:
    """Names of the specs that come with the package."""
    files = (Path(entry.name) for entry in resources.files("learners.specs").iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix == ".toml"))


def _parsed(toml: bytes, where: str) -> FeatureSpec:
    try:
        return msgspec.toml.decode(toml, type=FeatureSpec)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError and SpecError in it included
        raise SpecError(f"{where}: {error}") from error


def check(spec: FeatureSpec) -> None:
    """Raise SpecError for the first thing in the spec that cannot mean anything."""
    known: set[str] = set()
    for field in spec.fields:
        _check_field(field, known)
        known.add(field.name)
    for role, field_name, group in (("user", spec.user, "user."), ("ad", spec.ad, "ad.")):
        if field_name not in known or not spec.by_name[field_name].source.startswith(group):
            raise SpecError(f"{role} = {field_name!r} must name a field with a source {group}…, to know the {role}")
    counted = [counter.field for counter in spec.counters]
    if len(set(counted)) < len(counted) or not known.issuperset(counted):
        raise SpecError(f"counters {counted} must each name another one of the fields: their ids are the keys")
    _check_numbers(spec)
    for one in spec.calibration.slices:
        _check_edges(f"calibration slice {one.column!r}: edges", one.edges)
    try:
        _ = spec.slice_plan
    except ValueError as error:
        raise SpecError(str(error)) from error


def _check_field(field: Field, known: set[str]) -> None:
    if field.name in known or not field.name or "." in field.name or field.name == "session":
        raise SpecError(f"field {field.name!r}: names must differ, hold no dot, and not be 'session'")
    if bool(field.source) == bool(field.cross):
        raise SpecError(f"field {field.name!r} needs either a source or a cross, not both and not neither")
    if field.cross and (len(field.cross) < 2 or field.edges or not known.issuperset(field.cross)):
        raise SpecError(f"field {field.name!r} crosses {list(field.cross)}: two or more earlier fields, without edges")
    group, _, key = field.source.partition(".")
    if field.source and (group not in GROUPS or not key or (group == "time" and key not in TIMES)):
        raise SpecError(f"field {field.name!r}: source {field.source!r} must be user.x, context.x, ad.x or time.hour")
    _check_edges(f"field {field.name!r}: edges", field.edges)


def _check_edges(what: str, edges: Sequence[float]) -> None:
    if any(not math.isfinite(edge) for edge in edges) or any(a >= b for a, b in pairwise(edges)):
        raise SpecError(f"{what} {list(edges)} must ascend and be finite: a value would belong to no bucket")


def _check_numbers(spec: FeatureSpec) -> None:
    rates, session = spec.rates, spec.session
    for what, value in (("ctr_prior", rates.ctr_prior), ("value_prior", rates.value_prior)):
        if not 0 < value < 1:
            raise SpecError(f"rates.{what} = {value} must lie between 0 and 1: its log-odds would be infinite")
    for what in ("prior_weight", "bucket_prior_weight", "half_life_s", "own_ttl_s", "shared_ttl_s"):
        if not 0 < getattr(rates, what) < math.inf:
            raise SpecError(f"rates.{what} = {getattr(rates, what)} must be positive and finite")
    if not 0 < session.gap_s < math.inf or not 1 <= session.last_outcomes <= REMEMBERED:
        raise SpecError(f"session: gap_s must be positive and last_outcomes in 1..{REMEMBERED}, not {session}")
    if not 0 <= session.recent_ads <= REMEMBERED:
        raise SpecError(
            f"session.recent_ads = {session.recent_ads} must lie in 0..{REMEMBERED}: no more are remembered"
        )
    _check_edges("rates.ctr_edges", rates.ctr_edges)
    _check_edges("rates.count_edges", rates.count_edges)
    _check_edges("session.gap_edges_s", session.gap_edges_s)
    _check_edges("session.count_edges", session.count_edges)
