"""Arrays as safetensors, written in pieces, read by the format's own library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.numpy import load

from learners.snapshots import safetensors_pieces as tensors
from learners.snapshots.safetensors_pieces import pieces_of

DTYPES = ["?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
one_array = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), one_array, max_size=5))
def test_the_library_reads_what_was_written(held: dict[str, NDArray[Any]]) -> None:
    """Names, dtypes, shapes and every bit."""
    found = load(b"".join(pieces_of(held)))
    assert found.keys() == held.keys()
    for name, array in held.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_no_piece_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large arrays come in several pieces, views and not copies."""
    monkeypatch.setattr(tensors, "PIECE_BYTES", 1000)
    array = np.arange(1024, dtype=np.int64)
    _, *pieces = pieces_of({"a": array})
    assert [len(piece) for piece in pieces] == [1000] * 8 + [192]
    assert np.shares_memory(np.frombuffer(pieces[3], np.uint8), array)


def test_rows_that_are_not_contiguous_are_written_in_order() -> None:
    """A transposed matrix arrives as it is indexed."""
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert load(b"".join(pieces_of({"m": matrix})))["m"].tolist() == matrix.tolist()


def test_a_dtype_that_the_format_lacks_is_refused() -> None:
    """By name."""
    with pytest.raises(ValueError, match="array words is of <U3"):
        list(pieces_of({"words": np.array(["abc"])}))
