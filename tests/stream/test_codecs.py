"""Unpacking what producers have compressed: the same bytes, and never more of them than a bound."""

import contextlib
import gzip
import os
import struct

import cramjam
import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka.codec import snappy_encode

from stream.codecs import CODECS, UnpackError, unpack

PACK = {
    "gzip": gzip.compress,
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
    "lz4": lz4.frame.compress,
    "zstd": zstandard.compress,
}
NUMBERS = {name: number for number, name in CODECS.items()}
DATA = os.urandom(5_000) * 600  # 3 MB that become some kB


def streamed(data: bytes) -> bytes:
    """zstd that does not say how much it unpacks to, as a stream that is written piece by piece."""
    writer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return writer.compress(data) + writer.flush()


@pytest.mark.parametrize("codec", PACK)
def test_each_codec_gives_back_what_was_packed_and_no_more_than_the_bound(codec):
    packed = PACK[codec](DATA)
    assert unpack(NUMBERS[codec], packed) == DATA
    assert unpack(NUMBERS[codec], packed, len(DATA)) == DATA
    with pytest.raises(UnpackError, match=f"{codec}: it unpacks to more than 2,999,999 bytes"):
        unpack(NUMBERS[codec], packed, len(DATA) - 1)


def test_parts_that_follow_one_another_are_one():
    assert unpack(1, gzip.compress(b"one") + gzip.compress(b"two")) == b"onetwo"
    assert unpack(3, lz4.frame.compress(b"one") + lz4.frame.compress(b"two")) == b"onetwo"
    assert unpack(4, zstandard.compress(b"one") + streamed(b"two")) == b"onetwo"
    java = snappy_encode(DATA)
    assert unpack(2, java) == DATA
    assert unpack(2, java + java) == DATA + DATA
    with pytest.raises(UnpackError, match="more than"):
        unpack(2, java + java, len(DATA) + 1)


def test_zstd_without_its_size_and_lz4_with_linked_blocks_are_read():
    assert unpack(4, streamed(DATA)) == DATA
    assert unpack(3, lz4.frame.compress(DATA, block_linked=True, content_checksum=True, store_size=False)) == DATA


@pytest.mark.parametrize(("codec", "pack"), PACK.items(), ids=PACK)
def test_a_bomb_is_not_unpacked(codec, pack):
    with pytest.raises(UnpackError, match="more than 1,000,000 bytes"):
        unpack(NUMBERS[codec], pack(bytes(200_000_000)), 1_000_000)


def test_a_codec_that_is_not_known_is_named():
    with pytest.raises(UnpackError, match="number 5, which is not known"):
        unpack(5, b"data")


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4"])
def test_truncated_bytes_are_refused(codec):
    with pytest.raises(UnpackError, match=codec):
        unpack(NUMBERS[codec], PACK[codec](DATA)[:-3])
    with pytest.raises(UnpackError, match="snappy: it is truncated"):
        unpack(2, snappy_encode(DATA)[:-3])


@given(codec=st.sampled_from(sorted(CODECS)), data=st.binary(max_size=200), magic=st.booleans())
def test_whatever_the_bytes_are_it_is_unpacked_or_refused(codec, data, magic):
    heads = {
        1: b"\x1f\x8b\x08",
        2: b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1),
        3: b"\x04\x22\x4d\x18",
        4: b"\x28\xb5\x2f\xfd",
    }
    with contextlib.suppress(UnpackError):
        assert len(unpack(codec, heads[codec] * magic + data, 10_000)) <= 10_000
