"""Slices: codes, paths, nodes and their names."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.slices import Slice, SlicePlan, named_slices

PLAN = SlicePlan((Slice("age", 1, (1.0, 2.0)), Slice("placement", 0), Slice("new", 0, (0.5,))))


def test_rows_with_equal_values_have_equal_paths_and_others_do_not() -> None:
    """Buckets of a dense input and hashed ids, first slice first."""
    ids = np.array([[7], [7], [8], [0], [7]], np.uint64)
    dense = np.array([[0, 0.5], [0, 0.9], [0, 0.5], [0, 0.5], [0, 1.0]], np.float32)
    paths = PLAN.paths(ids, dense)
    assert paths[0] == paths[1]
    assert len(set(paths.tolist())) == 4
    assert PLAN.codes(paths, 0).tolist() == [0, 0, 0, 0, 1], "an edge belongs to the bucket above it"
    assert PLAN.codes(paths, 1)[3] == 0, "a missing id has a code of its own"
    assert PLAN.codes(paths, 2).tolist() == [0] * 5


def test_nodes_of_a_depth_are_prefixes_and_lead_to_the_first() -> None:
    """The rows of a node share the codes so far; depths never share a node."""
    ids = np.arange(1, 60, dtype=np.uint64)[:, None] % 7
    dense = np.linspace(0, 3, 59, dtype=np.float32)[:, None].repeat(2, axis=1)
    paths = PLAN.paths(ids, dense)
    nodes = [PLAN.nodes(paths, depth) for depth in range(4)]
    assert [len(np.unique(at)) for at in nodes[:2]] == [1, 3]
    assert len(np.unique(nodes[3])) == len(np.unique(paths))
    assert len(np.unique(np.concatenate(nodes))) == sum(len(np.unique(at)) for at in nodes)
    for depth in (1, 2, 3):
        np.testing.assert_array_equal(PLAN.firsts(nodes[depth]), nodes[1])


def test_values_are_named_by_their_bounds() -> None:
    """Or by the code of the id."""
    age, placement, _ = PLAN.slices
    assert [age.value_name(code) for code in range(3)] == ["[-inf, 1)", "[1, 2)", "[2, inf)"]
    assert (placement.value_name(0), placement.value_name(0x1F), placement.value_name(4095)) == (
        "missing", "01f", "other",
    )  # fmt: skip


def test_plans_of_other_columns_or_edges_have_another_fingerprint() -> None:
    """What one has counted means nothing to the other."""
    same = SlicePlan(PLAN.slices)
    other = SlicePlan((Slice("age", 1, (1.0, 2.5)), *PLAN.slices[1:]))
    assert PLAN.fingerprint == same.fingerprint != other.fingerprint


def test_columns_are_found_by_name_and_unknown_ones_refused() -> None:
    """With edges among the dense inputs, without among the ids."""
    found = named_slices([("ad", ()), ("ctr", (0.1,))], ["user", "ad"], ["n", "ctr"])
    assert found == (Slice("ad", 1), Slice("ctr", 1, (0.1,)))
    with pytest.raises(ValueError, match="'ctr' of the calibration is no id column; there are user, ad"):
        named_slices([("ctr", ())], ["user", "ad"], ["ctr"])
    with pytest.raises(ValueError, match="4 slices"):
        SlicePlan((Slice("a", 0),) * 4)
