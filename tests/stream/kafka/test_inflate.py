"""Compressed bytes: the same as ever up to the bound, an error beyond it."""

from __future__ import annotations

from collections.abc import Callable

import cramjam
import pytest
from aiokafka import codec as codecs  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from stream.kafka.inflate import (
    MAX_INFLATED_BYTES,
    InflateError,
    inflate_gzip,
    inflate_lz4,
    inflate_snappy,
    inflate_zstd,
)

MIB = 1 << 20
Codec = Callable[[bytes], bytes]
CODECS: dict[str, tuple[Codec, Codec]] = {
    "gzip": (codecs.gzip_encode, inflate_gzip),
    "snappy of Java": (codecs.snappy_encode, inflate_snappy),
    "raw snappy": (lambda data: bytes(codecs.snappy_encode(data, xerial_compatible=False)), inflate_snappy),
    "lz4": (codecs.lz4_encode, inflate_lz4),
    "zstd": (codecs.zstd_encode, inflate_zstd),
}
BOMBS: dict[str, tuple[Callable[[], bytes], Codec]] = {  # each of 1 GiB, lz4 of less, since it makes them slowly
    "gzip": (lambda: 1024 * codecs.gzip_encode(bytes(MIB)), inflate_gzip),
    "snappy of Java": (
        lambda: (
            codecs.snappy_encode(bytes(MIB), xerial_blocksize=MIB)
            + 1024 * codecs.snappy_encode(bytes(MIB), xerial_blocksize=MIB)[16:]
        ),
        inflate_snappy,
    ),
    "raw snappy": (lambda: b"\x80\x80\x80\x80\x0f" + bytes(9), inflate_snappy),
    "lz4": (lambda: bytes(cramjam.lz4.compress(bytes(200 * MIB))), inflate_lz4),
    "zstd": (lambda: 1024 * codecs.zstd_encode(bytes(MIB)), inflate_zstd),
}


@pytest.mark.parametrize("name", CODECS)
@given(data=st.binary(min_size=1, max_size=100_000) | st.integers(1, 3 * MIB).map(bytes))
def test_below_the_bound_nothing_changes(name: str, data: bytes) -> None:
    """What a producer compressed comes out."""
    compress, inflate = CODECS[name]
    assert inflate(compress(data)) == data


@pytest.mark.parametrize("name", CODECS)
def test_the_bound_itself_is_allowed(name: str) -> None:
    """So many bytes come out, one more does not."""
    compress, inflate = CODECS[name]
    assert len(inflate(compress(bytes(MAX_INFLATED_BYTES)))) == MAX_INFLATED_BYTES
    with pytest.raises(InflateError, match=rf"do not inflate to at most {MAX_INFLATED_BYTES} bytes"):
        inflate(compress(bytes(MAX_INFLATED_BYTES + 1)))


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str) -> None:
    """However small it came; the error names codec and sizes."""
    bomb, inflate = BOMBS[name]
    with pytest.raises(InflateError, match=rf"bytes of {name.split()[0] if name != 'raw snappy' else 'snappy'} do not"):
        inflate(bomb())


@pytest.mark.parametrize("inflate", [inflate_gzip, inflate_snappy, inflate_lz4, inflate_zstd])
@given(junk=st.binary(min_size=1, max_size=200))
def test_bytes_that_are_no_such_codec_are_one_kind_of_error(inflate: Codec, junk: bytes) -> None:
    """Whatever the libraries raise; a few bytes may happen to be sound."""
    try:
        inflate(junk)
    except InflateError:
        return


@pytest.mark.parametrize("name", CODECS)
@given(cut=st.integers(0, 200))
def test_what_is_cut_off_is_an_error(name: str, cut: int) -> None:
    """Or shorter, where the format has no end mark: never longer, never another error."""
    compress, inflate = CODECS[name]
    data = bytes(range(256))
    try:
        assert data.startswith(inflate(bytes(compress(data))[:cut]))
    except InflateError:
        return
