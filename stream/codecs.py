"""Unpacks what Kafka's producers have compressed: gzip, snappy, lz4 and zstd, never to more than a bound."""

import zlib

import lz4.frame
import zstandard
from cramjam import snappy

#: Of one batch. A producer's batch holds some MiB at most (`max.message.bytes` of a topic is 1 MiB, compressed).
UNPACKED_BYTES_MAX = 128 * 2**20

# Java's snappy writes blocks, each behind its length, after 8 bytes of magic and 8 of versions.
_XERIAL_MAGIC = b"\x82SNAPPY\0"
_XERIAL_HEADER_BYTES = 16


class UnpackError(Exception):
    """Compressed data that cannot be unpacked; says why."""


def _too_large(bytes_max: int) -> UnpackError:
    return UnpackError(f"it unpacks to more than {bytes_max:,} bytes")


def _gzip(data: bytes, bytes_max: int) -> bytes:
    parts, left = [], bytes_max
    while data:
        member = zlib.decompressobj(wbits=31)
        parts.append(member.decompress(data, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise _too_large(bytes_max)
        if not member.eof:
            raise UnpackError("it is truncated")
        data = member.unused_data
    return b"".join(parts)


def _snappy(data: bytes, bytes_max: int) -> bytes:
    if not data.startswith(_XERIAL_MAGIC):
        return _snappy_block(data, bytes_max, bytes_max)
    parts, left, at = [], bytes_max, 0
    while at < len(data):
        if data.startswith(_XERIAL_MAGIC, at):  # streams may follow one another
            at += _XERIAL_HEADER_BYTES
            continue
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if at + size > len(data):
            raise UnpackError("it is truncated")
        parts.append(_snappy_block(data[at : at + size], left, bytes_max))
        left -= len(parts[-1])
        at += size
    return b"".join(parts)


def _snappy_block(data: bytes, left: int, bytes_max: int) -> bytes:
    if snappy.decompress_raw_len(data) > left:
        raise _too_large(bytes_max)
    return bytes(snappy.decompress_raw(data))


def _lz4(data: bytes, bytes_max: int) -> bytes:
    parts, left = [], bytes_max
    while data:
        frame = lz4.frame.LZ4FrameDecompressor()
        parts.append(frame.decompress(data, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise _too_large(bytes_max)
        if not frame.eof:
            raise UnpackError("it is truncated")
        data = frame.unused_data or b""
    return b"".join(parts)


def _zstd(data: bytes, bytes_max: int) -> bytes:
    # What is cut off shows in the records, of which some are missing then.
    parts, left = [], bytes_max
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while part := reader.read(left + 1):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise _too_large(bytes_max)
    return b"".join(parts)


_UNPACK = {1: ("gzip", _gzip), 2: ("snappy", _snappy), 3: ("lz4", _lz4), 4: ("zstd", _zstd)}
CODECS = {number: name for number, (name, _) in _UNPACK.items()}  # as the attributes of a batch number them


def unpack(codec: int, data: bytes, bytes_max: int = UNPACKED_BYTES_MAX) -> bytes:
    """What `data` unpacks to. `codec`: one of CODECS. Raises UnpackError, whatever is wrong."""
    if codec not in _UNPACK:
        raise UnpackError(f"its codec has the number {codec}, which is not known")
    name, unpacked = _UNPACK[codec]
    try:
        return unpacked(data, bytes_max)
    except MemoryError:
        raise
    except UnpackError as error:
        raise UnpackError(f"{name}: {error}") from None
    except Exception as error:  # each library has errors of its own
        raise UnpackError(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from error
