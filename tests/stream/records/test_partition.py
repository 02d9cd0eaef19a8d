"""Users and their partitions."""

from __future__ import annotations

import numpy as np
import pytest
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from stream.records.partition import key_bytes, partition_of

u64 = st.integers(0, 2**64 - 1)


@given(
    keys=st.lists(u64 | st.integers(0, 20).map(lambda digits: 10**digits % 2**64), max_size=30), n=st.integers(1, 64)
)
def test_partition_is_that_of_kafkas_default_partitioner(keys: list[int], n: int) -> None:
    """Any client that keys its records by the user key writes to the partition where the join looks for them."""
    choose = DefaultPartitioner()
    expected = [choose(key_bytes(key), list(range(n)), list(range(n))) for key in keys]
    found = partition_of(np.array(keys, np.uint64), n)
    assert found.dtype == np.int32
    assert found.tolist() == expected


def test_no_partitions_are_refused() -> None:
    """The error names the setting."""
    with pytest.raises(ValueError, match="MILLSTREAM_PARTITIONS"):
        partition_of(np.zeros(1, np.uint64), 0)
