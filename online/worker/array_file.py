"""One file of a checkpoint: arrays by name, compressed by zstd, whole or as changes of another file's arrays.

The file begins with `MAGIC`. Then come zstd's frames, each with a checksum of its own; then an index of them, which is
a frame of JSON; then its place as eight bytes, and `MAGIC` again. Nothing in it is executable, and only numbers can be
in an array.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from online.learner.delta import Delta, DeltaError, delta, patched

MAGIC = b"nextclick arrays"
WINDOW_LOG_MAX = 27  # of a frame that is read: 128 MB, which all levels up to 19 keep to
PIECE_BYTES = 1 << 20  # that are compressed at a time, so that little memory is needed beside the arrays
INDEX_BYTES_MAX = 1 << 28
_NUMBERS = "biuf"  # numpy's kinds of numbers


class ArrayFileError(ValueError):
    """A file that is not what was written; one line."""


class ArrayWriter:
    """Writes arrays to a new file; made by `array_writer`."""

    def __init__(self, file: IO[bytes], level: int) -> None:
        self._file = file
        self._level = level
        self._index: dict[str, dict[str, Any]] = {}
        file.write(MAGIC)

    def add(self, name: str, array: NDArray[Any], before: NDArray[Any] | None = None) -> None:
        """Adds an array: as its changes, if `before` has numbers as wide, else whole."""
        # A scalar's shape is (), which `ascontiguousarray` does not keep.
        array = np.asarray(array, order="C")
        entry: dict[str, Any] = {"dtype": array.dtype.str, "shape": array.shape}
        if before is not None and before.itemsize == array.itemsize:
            changes = delta(before, array)
            entry |= {"runs": self._frame(changes.runs), "new": self._frame(changes.new)}
        else:
            entry["whole"] = self._frame(array)
        self._index[name] = entry

    def close(self) -> None:
        """Writes the index."""
        at, _, _ = self._frame(np.frombuffer(json.dumps(self._index).encode(), np.uint8))
        self._file.write(at.to_bytes(8, "little") + MAGIC)

    def _frame(self, array: NDArray[Any]) -> tuple[int, int, int]:
        """Writes an array's bytes -> where they are, bytes in the file, and bytes of the array."""
        at, content = self._file.tell(), array.reshape(-1).view(np.uint8).data
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True).compressobj(size=len(content))
        for start in range(0, len(content), PIECE_BYTES):
            self._file.write(compressor.compress(content[start : start + PIECE_BYTES]))
        self._file.write(compressor.flush())
        return at, self._file.tell() - at, len(content)


@contextmanager
def array_writer(path: Path, level: int) -> Iterator[ArrayWriter]:
    """Makes a file, which must not exist: another checkpoint may share it. Raises OSError."""
    with path.open("xb") as file:
        writer = ArrayWriter(file, level)
        yield writer
        writer.close()


class ArrayFile:
    """Reads arrays, also from several threads. `before`: the file that it holds changes of; None: it has whole arrays
    only."""

    def __init__(self, file: IO[bytes], before: "ArrayFile | None" = None) -> None:
        """Raises ArrayFileError."""
        self._file, self._before = file, before
        size = file.seek(0, 2)
        file.seek(max(0, size - 8 - len(MAGIC)))
        end = file.read()
        at = int.from_bytes(end[:8], "little")
        file.seek(0)
        if end[8:] != MAGIC or file.read(len(MAGIC)) != MAGIC or not len(MAGIC) <= at < size:
            raise ArrayFileError("it is no file of arrays, or its end is missing")
        file.seek(at)
        compressed = file.read(size - at - 8 - len(MAGIC))
        try:
            length = zstandard.frame_content_size(compressed)
        except zstandard.ZstdError as error:
            raise ArrayFileError(f"its index is damaged: {error}") from error
        if not 0 <= length <= INDEX_BYTES_MAX:
            raise ArrayFileError("its index is damaged")
        self._index: dict[str, dict[str, Any]] = json.loads(self._read(at, len(compressed), length))

    @property
    def names(self) -> list[str]:
        return list(self._index)

    def read(self, name: str) -> NDArray[Any]:
        """Returns an array, which may be written to. Raises ArrayFileError, KeyError, OSError."""
        entry = self._index[name]
        dtype, shape = np.dtype(entry["dtype"]), tuple(int(length) for length in entry["shape"])
        if dtype.kind not in _NUMBERS:
            raise ArrayFileError(f"{name} has no numbers")
        if "whole" in entry:
            return self._array(entry["whole"], dtype).reshape(shape)
        if self._before is None:
            raise ArrayFileError(f"{name} is there as changes only")
        runs = self._array(entry["runs"], np.dtype(np.int64)).reshape(-1, 3)
        changes = Delta(runs, self._array(entry["new"], np.dtype(f"i{dtype.itemsize}")))
        try:
            return patched(self._before.read(name), changes, dtype, shape)
        except DeltaError as error:
            raise ArrayFileError(f"{name}: {error}") from error

    def read_if_there(self, name: str) -> NDArray[Any] | None:
        """Returns an array; None: there is none of that name."""
        return self.read(name) if name in self._index else None

    def _array(self, frame: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.frombuffer(self._read(*frame), dtype)

    def _read(self, at: int, size: int, length: int) -> bytearray:
        """Returns what a frame holds, whose length is known. It is writable, so that nothing is copied again."""
        content = bytearray(length)
        try:
            part: Any = _Part(self._file.fileno(), at, size)
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX)
            source = decompressor.stream_reader(part, read_size=PIECE_BYTES)
            filled, view = 0, memoryview(content)
            while filled < length and (count := source.readinto(view[filled:])):
                filled += count
            if filled != length or source.read(1):
                raise ArrayFileError("a frame is shorter or longer than its index says")
        except zstandard.ZstdError as error:
            raise ArrayFileError(f"a frame is damaged: {error}") from error
        return content


class _Part:
    """A part of a file, read without moving the file's place, which threads share."""

    def __init__(self, descriptor: int, at: int, size: int) -> None:
        self._descriptor, self._at, self._end = descriptor, at, at + size

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._at
        found = os.pread(self._descriptor, left if size < 0 else min(size, left), self._at)
        self._at += len(found)
        return found
