"""Feature specs: columns, hashes and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from learners.features.spec import FeatureSpec, built_in, load_spec
from learners.features.spec_parts import Calibration, CalibrationSlice, SpecError
from tests.learners.small_spec import SMALL

TOML = """
name = "mine"
user = "user"
ad = "ad"
fields = [{ name = "user", source = "user.id" }, { name = "ad", source = "ad.id" }]
counters = [{ field = "ad", ids = ["ctr"], dense = ["log_count"] }]
"""


def test_built_in_specs_load() -> None:
    """KuaiRand, the marketplace and the world of known truth come with the package."""
    assert built_in() == ("kuairand", "marketplace", "truth")
    for name in built_in():
        assert load_spec(name).name == name


def test_request_columns_come_before_ad_columns_and_raw_before_derived() -> None:
    """The order of columns, by hand."""
    assert SMALL.request_fields == (
        "user", "age", "tab", "hour", "weekday", "user_tab", "session.gap", "session.outcomes", "session.since_click",
        "session.session_impressions", "session.recent_ad_1", "session.recent_ad_2", "user.ctr", "user.count",
        "user_tab.ctr",
    )  # fmt: skip
    assert SMALL.ad_fields == (
        "ad", "author", "duration", "user_author", "user_tab_author", "duration_tab", "ad.recent_ctr", "user_author.ctr"
    )  # fmt: skip
    assert SMALL.ad_dense == (
        "ad.value_rate",
        "ad.recent_value_rate",
        "ad.recent_ctr",
        "user_author.ctr",
        "user_author.log_count",
    )
    assert SMALL.columns == SMALL.request_fields + SMALL.ad_fields
    assert (SMALL.id_columns, SMALL.dense_inputs) == (23, 12)


def test_columns_are_found_by_name() -> None:
    """Indices into the whole row; what is only a counter's key is not learned."""
    assert (SMALL.user_field, SMALL.ad_field, SMALL.field_index("duration")) == (0, 15, 17)
    assert SMALL.counter_columns == (0, 15, 2, 18, 5)
    assert SMALL.history_columns == (10, 11)
    assert set(range(23)) - set(SMALL.embedded_columns) == {5, 10, 11, 18}
    with pytest.raises(SpecError, match="no id column 'nope'; it has user, age"):
        SMALL.field_index("nope")


def test_a_counter_is_the_users_own_when_its_key_holds_the_user() -> None:
    """Own counters live in the user's partition, the others are shared."""
    assert [SMALL.own(counter) for counter in SMALL.counters] == [True, False, False, True, True]
    assert [counter.field for counter in SMALL.request_counters] == ["user", "tab", "user_tab"]


def test_the_hash_tells_specs_apart() -> None:
    """Equal specs hash equally, any change is another hash."""
    again = msgspec.json.decode(msgspec.json.encode(SMALL), type=FeatureSpec)
    changed = msgspec.structs.replace(SMALL, utc_offset_s=0)
    assert again.hash == SMALL.hash != changed.hash
    assert len(SMALL.hash) == 16
    assert int(SMALL.hash, 16)


def test_an_unknown_spec_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    """A typing error shows what there is."""
    with pytest.raises(SpecError, match=r"unknown feature spec 'kuairnd'\. Name one of kuairand, marketplace, truth"):
        load_spec("kuairnd")
    with pytest.raises(SpecError, match="no feature spec file"):
        load_spec(tmp_path / "none.toml")


def test_a_spec_comes_from_any_toml_file(tmp_path: Path) -> None:
    """One's own data needs no change of code."""
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    assert load_spec(path).ad_fields == ("ad", "ad.ctr")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "ad.id"', 'source = "page.id"', r"source 'page\.id' must be user\.x"),
        ('source = "ad.id"', 'source = "ad.id", cross = ["user"]', "either a source or a cross"),
        ('source = "ad.id"', 'source = "ad.id", edges = [3.0, 1.0]', "must ascend"),
        ('source = "ad.id"', 'source = "ad.id", edges = [nan]', "must ascend and be finite"),
        ('name = "ad", source', 'name = "user", source', "names must differ"),
        ('ad = "ad"', 'ad = "user"', r"ad = 'user' must name a field with a source ad\."),
        ('field = "ad"', 'field = "shop"', "must each name another one of the fields"),
        ('ids = ["ctr"]', 'ids = ["cpr"]', "Invalid enum value 'cpr'"),
        ('ids = ["ctr"]', "idz = []", "unknown field `idz`"),
        ('name = "mine"', "name = 3", "Expected `str`, got `int`"),
        ('name = "mine"', "name = ", "Invalid value"),
        ('name = "mine"', 'name = "mine"\nrates.ctr_prior = 1.0', "rates.ctr_prior = 1.0 must lie between 0 and 1"),
        ('name = "mine"', 'name = "mine"\nrates.own_ttl_s = 0.0', "rates.own_ttl_s = 0.0 must be positive"),
        ('name = "mine"', 'name = "mine"\nsession.last_outcomes = 9', r"last_outcomes in 1\.\.8"),
        ('name = "mine"', 'name = "mine"\nsession.recent_ads = 9', r"recent_ads = 9 must lie in 0\.\.8"),
        ('[{ name = "user"', '[{ name = "x", cross = ["user", "ad"] }, { name = "user"', "two or more earlier fields"),
    ],
)
def test_a_spec_that_cannot_mean_anything_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The error names the file and what is wrong in it."""
    path = tmp_path / "mine.toml"
    assert old in TOML
    path.write_text(TOML.replace(old, new))
    with pytest.raises(SpecError, match=rf"mine\.toml: .*{message}"):
        load_spec(path)


def test_slices_of_the_calibration_are_columns_and_leave_the_hash_alone() -> None:
    """They read what rows have: models of the same columns stay valid; an unknown column is refused with its name."""
    spec = load_spec("marketplace")
    assert [one.name for one in spec.slice_plan.slices] == ["ad.log_count", "placement", "session.first_display"]
    assert spec.slice_plan.slices[1].column == spec.field_index("placement")
    assert msgspec.structs.replace(spec, calibration=Calibration()).hash == spec.hash
    with pytest.raises(SpecError, match="'colour' of the calibration is no id column"):
        msgspec.structs.replace(spec, calibration=Calibration(slices=(CalibrationSlice(column="colour"),)))
    slices = (CalibrationSlice(column="ad.log_count", edges=(2.0, 1.0)),)
    with pytest.raises(SpecError, match="must ascend"):
        msgspec.structs.replace(spec, calibration=Calibration(slices=slices))
