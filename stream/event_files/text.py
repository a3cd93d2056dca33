"""The lines of a text file: their encoding, and a bound for each."""

import codecs
import io
from collections.abc import Generator

from stream.event_files.errors import EventFileError
from stream.event_files.opening import DamagedError, Opened

# A little below what Kafka takes in one message by default (1 MiB), which leaves room for the event id.
LINE_BYTES_MAX = 1_000_000
UTF_8 = "utf-8-sig"  # with or without its mark

_MARKS = {
    codecs.BOM_UTF8: UTF_8, codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_NULS = 0.3  # of every second byte of UTF-16 text without a mark, at least
_NULS_OF_BINARY = 0.05


def encoding_of(sample: bytes, name: str) -> str:
    """What certain signs say; UTF-8 without any: a guess would make other ids of users' ids.

    Raises EventFileError for data that is no text.
    """
    for mark, encoding in _MARKS.items():  # UTF-32's first: UTF-16's begins alike
        if sample.startswith(mark):
            return encoding
    even, odd = (sample[start::2].count(0) / max(1, len(sample[start::2])) for start in (0, 1))
    if odd > _NULS > 0.01 >= even:
        return "utf-16-le"
    if even > _NULS > 0.01 >= odd:
        return "utf-16-be"
    # A file that is nothing but NULs is one line that is too long, or a hole of a disk that was full: told by its line.
    if _NULS_OF_BINARY * 2 < even + odd < 2 and not _begins_as_text(sample):
        raise EventFileError(f"{name} is no text and no Parquet: CSV, JSON lines or Parquet is needed")
    return UTF_8


def known_encoding(name: str) -> str:
    """A name of an encoding of text as Python has it. Raises ValueError for others."""
    try:
        info = codecs.lookup(name)
        codecs.getincrementaldecoder(name)("strict").decode(b"")
        "a,1\n".encode(name)
    except (LookupError, ValueError, TypeError, AttributeError):
        raise ValueError(f"there is no encoding {name!r}; utf-8, utf-16, cp1252 and latin-1 are some") from None
    return UTF_8 if info.name in ("utf-8", "utf-8-sig") else info.name


def likely_encoding(sample: bytes) -> str | None:
    """What text that is not UTF-8 may be: a hint, never taken by itself."""
    from charset_normalizer import from_bytes  # noqa: PLC0415 - for an error only

    best = from_bytes(sample[:65_536]).best()
    return None if best is None or best.encoding in ("utf_8", "ascii") else best.encoding


def lines_of(opened: Opened, encoding: str) -> Generator[str]:
    """Each line with its end, whichever it is (LF, CR LF, CR); bytes that are no UTF-8 survive the way through text.

    Raises EventFileError for a line that is too long, damaged data, and bytes that a given encoding does not have.
    """
    errors = "surrogateescape" if encoding == UTF_8 else "strict"
    number = 0
    with opened.stream() as stream, io.TextIOWrapper(stream, encoding, errors, newline="") as text:
        while True:
            try:
                line = text.readline(LINE_BYTES_MAX + 1)
            except DamagedError as why:
                where = f"the {opened.packing} data is damaged" if opened.packing else "it cannot be read"
                raise EventFileError(f"{opened.name}: {where} after line {number:,} ({why})") from None
            except UnicodeError as error:
                reason = getattr(error, "reason", str(error))
                raise EventFileError(
                    f"{opened.name}: after line {number:,} it is no {encoding} ({reason}); --encoding says another"
                ) from None
            if not line:
                return
            number += 1
            # Counted only where a character may have more bytes than one.
            if len(line) * (1 if line.isascii() else 4) > LINE_BYTES_MAX and _size(line) > LINE_BYTES_MAX:
                raise EventFileError(f"{opened.name}: line {number:,} is longer than {LINE_BYTES_MAX:,} bytes")
            yield line


def _size(line: str) -> int:
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def _begins_as_text(sample: bytes) -> bool:
    """Whether a first line stands there: what comes after it is then told by its line."""
    first = sample[:1_024].split(b"\n", 1)
    return len(first) == 2 and b"\0" not in first[0] and first[0].strip() != b""
