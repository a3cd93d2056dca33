"""A path as bytes: what it is, by its first bytes, and what is packed in it, a bounded piece at a time."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stream.event_files.errors import EventFileError, shown

#: What comes through a pipe is kept in a temporary file, because it is read more than once; no more than this.
PIPED_BYTES_MAX = 1 << 30
SAMPLE_BYTES = 1 << 18  # read to see what a file is

_PIECE = 1 << 16
# zstd packs 128 KiB into 4 bytes at best: what one piece of so many bytes unpacks to stays below 8 MiB.
_ZSTD_PIECE = 256
_PACKINGS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{b"BZh%d\x31\x41\x59\x26\x53\x59" % level: "bzip2" for level in range(1, 10)},
}
_UNPACK = "unpack it first"
_CONVERT = "convert it to Parquet or CSV"
_REFUSED = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV"),
    b"PARE": ("an encrypted Parquet file", "decrypt it first"),
    b"Obj\x01": ("an Avro file", _CONVERT),
    b"ARROW1": ("an Arrow file", _CONVERT),
    b"FEA1": ("a Feather file", _CONVERT),
    b"\x89HDF": ("an HDF5 file", _CONVERT),
    b"SQLite format 3\x00": ("an SQLite database", "export the table as CSV"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV"),
    b"7z\xbc\xaf": ("a 7-zip archive", _UNPACK),
    b"Rar!\x1a": ("a RAR archive", _UNPACK),
    b"\x04\x22\x4d\x18": ("packed with lz4", _UNPACK),
    b"%PDF-": ("a PDF document", _CONVERT),
}
_PAGES = (b"<!doctype", b"<html", b"<?xml")


class DamagedError(Exception):
    """Packed data that cannot be unpacked from here on; the message says why."""


class Opened:
    """A file, or what came through a pipe, that can be read from its beginning as often as is needed.

    `packing` is gzip, xz, bzip2, zstd or "". `sample` holds the first unpacked bytes. Raises EventFileError for what
    cannot be opened, is empty, or is of a known kind that holds no events.
    """

    def __init__(self, path: Path) -> None:
        self.name = "standard input" if str(path) == "-" else shown(path)
        self._piped: Any = None
        self.path = self._regular(path)
        self.size = self.path.stat().st_size
        if self.size == 0:
            raise EventFileError(f"{self.name} is empty")
        self._raw: IO[bytes] | None = None
        with self.path.open("rb") as file:
            head = file.read(16)
        self.packing = _packing(head)
        self.sample = self._sample()
        if not self.sample:
            raise EventFileError(f"{self.name} is empty")
        self._refuse_other_kinds()

    @property
    def fraction(self) -> float:
        """How much has been read, of the (packed) bytes."""
        if self._raw is None:
            return 0.0
        return 1.0 if self._raw.closed else self._raw.tell() / self.size

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """The unpacked bytes, from the beginning. Reading raises DamagedError where they end too early."""
        try:
            raw = self.path.open("rb")
        except OSError as error:
            raise EventFileError(f"{self.name} cannot be read: {error.strerror}") from None
        with raw, _unpack(raw, self.packing) as unpacked, io.BufferedReader(_Checked(unpacked), _PIECE) as stream:
            self._raw = raw
            yield stream

    def _regular(self, path: Path) -> Path:
        """The path itself; for a pipe that of a temporary file with what came through it."""
        if str(path) == "-":
            if sys.stdin is None or sys.stdin.isatty():
                raise EventFileError("standard input is a terminal: pipe a file into it, or name a file")
            return self._from_pipe(sys.stdin.buffer)
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise EventFileError(f"{self.name} is a folder: name a file in it")
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                with path.open("rb") as pipe:
                    return self._from_pipe(pipe)
            if not stat.S_ISREG(mode):
                raise EventFileError(f"{self.name} is a device: name a file")
            with path.open("rb"):
                return path
        except FileNotFoundError:
            raise EventFileError(f"{self.name}: there is no such file") from None
        except OSError as error:
            raise EventFileError(f"{self.name} cannot be read: {error.strerror}") from None
        except ValueError:  # a NUL in the name
            raise EventFileError(f"{self.name}: there can be no such file") from None

    def _from_pipe(self, pipe: IO[bytes]) -> Path:
        try:
            self._piped = tempfile.NamedTemporaryFile(prefix="nextclick-", suffix=".piped")  # noqa: SIM115 - as long as this lives
            shutil.copyfileobj(_First(pipe, PIPED_BYTES_MAX + 1), self._piped, _PIECE)
            self._piped.flush()
        except OSError as error:
            raise EventFileError(f"{self.name} cannot be kept in {tempfile.gettempdir()}: {error.strerror}") from None
        if os.path.getsize(self._piped.name) > PIPED_BYTES_MAX:
            raise EventFileError(f"{self.name} gives more than {PIPED_BYTES_MAX:,} bytes: save it as a file first")
        return Path(self._piped.name)

    def _sample(self) -> bytes:
        """The first bytes; fewer of them where the data is damaged, which the line reports when it is read."""
        pieces: list[bytes] = []
        with self.stream() as stream:
            try:
                while sum(map(len, pieces)) < SAMPLE_BYTES and (piece := stream.read(_PIECE)):
                    pieces.append(piece)
            except DamagedError as why:
                if not pieces:
                    raise EventFileError(f"{self.name}: the {self.packing} data is damaged ({why})") from None
        return b"".join(pieces)

    def _refuse_other_kinds(self) -> None:
        sample = self.sample
        inside = f", packed with {self.packing}" if self.packing else ""
        for start, (kind, way_on) in _REFUSED.items():
            if sample.startswith(start):
                raise EventFileError(f"{self.name} is {kind}{inside}: {way_on}")
        if sample[257:262] == b"ustar":
            raise EventFileError(f"{self.name} is a tar archive{inside}: {_UNPACK}")
        if _packing(sample[:16]):
            raise EventFileError(f"{self.name} is packed twice: {_UNPACK}")
        if sample.lstrip()[:9].lower().startswith(_PAGES):
            raise EventFileError(f"{self.name} is HTML or XML{inside}: {_CONVERT}")
        if sample.startswith(b"PAR1") and self.packing:
            raise EventFileError(f"{self.name} is a Parquet file{inside}: {_UNPACK}")


class _First:
    """The first `n` bytes of a pipe."""

    def __init__(self, pipe: IO[bytes], n: int) -> None:
        self._pipe, self._left = pipe, n

    def read(self, n: int = _PIECE, /) -> bytes:
        piece = self._pipe.read(min(n, self._left))
        self._left -= len(piece)
        return piece


class _Checked(io.RawIOBase):
    """Says DamagedError whatever way an unpacker has of saying it."""

    def __init__(self, unpacked: Any) -> None:
        self._unpacked = unpacked

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._unpacked.read(len(buffer))
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise DamagedError(str(error).splitlines()[0] if str(error) else "it ends too early") from None
        buffer[: len(piece)] = piece
        return len(piece)


class _Zstd(io.RawIOBase):
    """zstandard's own stream reader takes a frame that ends too early for the end of the data."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard  # noqa: PLC0415 - few files need it

        self._raw, self._unpacker, self._error = raw, zstandard.ZstdDecompressor(), zstandard.ZstdError
        self._frame: Any = None  # None between two frames
        self._ready = io.BytesIO()

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        while not (unpacked := self._ready.read(n)):
            piece = self._raw.read(_ZSTD_PIECE)
            if not piece:
                if self._frame is not None:
                    raise EOFError
                return b""
            self._frame = self._frame or self._unpacker.decompressobj()
            try:
                self._ready = io.BytesIO(self._frame.decompress(piece))
            except self._error as error:
                raise OSError(str(error)) from None
            if self._frame.eof:
                self._raw.seek(-len(self._frame.unused_data), os.SEEK_CUR)
                self._frame = None
        return unpacked


def _packing(head: bytes) -> str:
    return next((name for start, name in _PACKINGS.items() if head.startswith(start)), "")


def _unpack(raw: IO[bytes], packing: str) -> Any:
    unpackers: dict[str, Any] = {"xz": lzma.LZMAFile, "bzip2": bz2.BZ2File, "zstd": _Zstd}
    if packing == "gzip":
        return gzip.GzipFile(fileobj=raw)
    return unpackers[packing](raw) if packing else raw
