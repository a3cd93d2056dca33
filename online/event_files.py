"""Files of events (CSV, JSON lines, Parquet) read as messages for the clicks topic, a row at a time.

Ids stay the text they are ("007" is not 7). A row that is itself broken becomes a message all the same: the worker is
the judge of messages, and its dead letters are where people look for them.
"""

import codecs
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

#: A click's fields, and the columns each is read from (the first that is there).
COLUMNS = {
    "user_id": ("user_id", "user"),
    "item_id": ("item_id", "item"),
    "timestamp": ("timestamp",),
    "event_type": ("event_type",),
    "event_id": ("event_id",),
    "value": ("value", "rating"),
}
NEEDED = ("user_id", "item_id", "timestamp")
KINDS = ".csv, .jsonl or .ndjson (these also with .gz or .xz), .parquet"

# A little below what Kafka takes in one message by default (1 MiB), which leaves room for the event id.
_LINE_BYTES_MAX = 1_000_000
_BATCH_ROWS = 4_096
_LINES_SEARCHED_FOR_FIELDS = 100
_PACKINGS = {"": "", ".gz": "gzip", ".xz": "xz"}
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)  # gzip's own error is an OSError
_Stream = IO[bytes] | gzip.GzipFile | lzma.LZMAFile


class EventFileError(Exception):
    """A file that cannot be replayed. One line that names it and says what is needed."""


@dataclass(frozen=True, slots=True)
class Message:
    """One row as it is published. `row` counts from 1; `key` is the user id, None where there is none."""

    row: int
    key: bytes | None
    value: bytes


class EventFile:
    """A file of events. Memory does not grow with its size.

    Raises EventFileError, on opening, for what is no file, is empty, or has a name that says no known kind; on reading,
    for a missing column and for damaged data.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise EventFileError(f"{path} is a folder: name a file in it ({KINDS})")
        try:
            size = path.stat().st_size
            with path.open("rb"):
                pass
        except FileNotFoundError:
            raise EventFileError(f"{path}: there is no such file") from None
        except OSError as error:
            raise EventFileError(f"{path} cannot be read: {error.strerror}") from None
        if size == 0:
            raise EventFileError(f"{path} is empty: it needs {_needed()}")
        suffixes = [suffix.lower() for suffix in path.suffixes]
        self._packing = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".xz") else ""
        self._kind = suffixes[-1] if suffixes else ""
        if self._kind not in (".csv", ".jsonl", ".ndjson", ".parquet") or (self._kind == ".parquet" and self._packing):
            raise EventFileError(f"{path}: its name does not say what it is; known are {KINDS}")
        self.path = path
        self.rows: int | None = None  # known from the first message on, for Parquet
        self._size = size
        self._raw: IO[bytes] | None = None
        self._rows_read = 0

    @property
    def fraction(self) -> float:
        """How much has been read, from 0 to 1: of the rows for Parquet, of the (compressed) bytes otherwise."""
        if self.rows is not None:
            return self._rows_read / max(self.rows, 1)
        if self._raw is None:
            return 0.0
        return 1.0 if self._raw.closed else self._raw.tell() / self._size

    @property
    def content_id(self) -> str:
        """A short digest that tells files apart: of the size, the first and the last mebibyte."""
        digest = blake2b(str(self._size).encode(), digest_size=8)
        with self.path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, self._size - (1 << 20)))
            digest.update(file.read(1 << 20))
        return digest.hexdigest()

    def messages(self, *, skip: int = 0) -> Iterator[Message]:
        """The rows after the first `skip`, in order."""
        rows = {".csv": self._csv, ".parquet": self._parquet}.get(self._kind, self._json_lines)
        return rows(skip)

    def _csv(self, skip: int) -> Iterator[Message]:
        csv.field_size_limit(_LINE_BYTES_MAX)  # a field longer than a line may be is an unclosed quote
        with self._lines() as lines:
            # Bytes that are no UTF-8 survive the way through text, so that the worker gets to see them.
            reader = csv.reader(line.decode("utf-8", "surrogateescape") for line in lines)
            row = 0
            try:
                header = [name.strip() for name in next(reader, [])]
                if not header:
                    raise EventFileError(f"{self.path} is empty: it needs {_needed()}")
                places = {field: header.index(column) for field, column in self._columns(header).items()}
                for cells in reader:
                    if not cells:
                        continue
                    row += 1
                    if row > skip:
                        yield _from_cells(row, places, cells)
                if row == 0:
                    raise EventFileError(f"{self.path} has no rows after its header")
            except csv.Error as error:
                where = f"{self.path}, near line {reader.line_num}"
                raise EventFileError(f"{where}: {error}; is there a quote that is never closed?") from None

    def _json_lines(self, skip: int) -> Iterator[Message]:
        self._check_fields()
        with self._lines() as lines:
            row = 0
            for line in lines:
                text = line.strip()
                if not text:
                    continue
                row += 1
                if row > skip:
                    yield _from_json_line(row, text)

    def _parquet(self, skip: int) -> Iterator[Message]:
        import pyarrow as pa  # noqa: PLC0415 - takes longer to import than most commands to run
        from pyarrow import parquet  # noqa: PLC0415

        try:
            # Read through a buffer, not a whole column of a row group at a time, however large its writer made them.
            with parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                self.rows = file.metadata.num_rows
                if self.rows == 0:
                    raise EventFileError(f"{self.path} has no rows")
                columns = self._columns(file.schema_arrow.names)
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns.values())):
                    first = self._rows_read
                    self._rows_read += batch.num_rows
                    if self._rows_read <= skip:
                        continue
                    values = {field: _plain(batch.column(column)) for field, column in columns.items()}
                    for place in range(max(0, skip - first), batch.num_rows):
                        fields = {field: column[place] for field, column in values.items()}
                        yield _message(first + place + 1, fields)
        except (pa.ArrowException, OSError) as error:
            why = str(error).splitlines()[0]
            raise EventFileError(f"{self.path} is no readable Parquet file: {why}") from None

    @contextmanager
    def _lines(self) -> Iterator[Iterator[bytes]]:
        """The lines of a text file, unpacked."""
        with self.path.open("rb") as self._raw, _unpack(self._raw, self._packing) as stream:
            yield self._bounded_lines(stream)

    def _bounded_lines(self, stream: _Stream) -> Iterator[bytes]:
        number = 0
        while True:
            try:
                line = stream.readline(_LINE_BYTES_MAX + 1)
            except _DAMAGED as error:
                why = str(error) or "it ends too early"
                raise EventFileError(
                    f"{self.path}: the {_PACKINGS[self._packing]} data is damaged after line {number:,} ({why})"
                ) from None
            if not line:
                return
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > _LINE_BYTES_MAX:
                raise EventFileError(f"{self.path}: line {number:,} is longer than {_LINE_BYTES_MAX:,} bytes")
            yield line

    def _columns(self, names: Sequence[str]) -> dict[str, str]:
        """The column of each field that is there. Raises EventFileError where a needed one is not."""
        by_lower_case = {name.lower(): name for name in reversed(names)}
        found = {}
        for field, columns in COLUMNS.items():
            present = [by_lower_case[column] for column in columns if column in by_lower_case]
            if present:
                found[field] = present[0]
        missing = [_or(COLUMNS[field]) for field in NEEDED if field not in found]
        if missing:
            there = ", ".join(names[:20])[:200] or "none"
            hint = "; columns are separated by commas" if len(names) == 1 and set(names[0]) & set(";\t|") else ""
            without = " and no column ".join(missing)
            raise EventFileError(
                f"{self.path} has no column {without}: there are {there!r}, needed are {_needed()}{hint}"
            )
        return found

    def _check_fields(self) -> None:
        """A file of JSON lines in which no early object has a needed field is the wrong file, not a broken row."""
        names: dict[str, None] = {}
        with self._lines() as lines:
            for _, line in zip(range(_LINES_SEARCHED_FOR_FIELDS), lines, strict=False):
                fields = _object(line)
                names.update(dict.fromkeys(fields or ()))
        if not names:
            raise EventFileError(
                f"{self.path} holds no JSON object in its first lines: it needs {_needed()} on each line"
            )
        self._columns(list(names))


def _unpack(raw: IO[bytes], packing: str) -> _Stream:
    if packing == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if packing == ".xz":
        return lzma.LZMAFile(raw)
    return raw


def _from_cells(row: int, places: Mapping[str, int], cells: Sequence[str]) -> Message:
    """A CSV row; a cell that the row is too short for is absent, as is an empty one that need not be there."""
    fields: dict[str, Any] = {field: cells[place] for field, place in places.items() if place < len(cells)}
    for field in ("event_type", "event_id", "value"):
        if fields.get(field) == "":
            del fields[field]
    for field in ("timestamp", "value"):
        if field in fields:
            fields[field] = _number(fields[field])
    return _message(row, fields)


def _from_json_line(row: int, line: bytes) -> Message:
    """An object with its fields under our names; anything else as it stands."""
    values = _object(line)
    if values is None:
        return Message(row, None, line)
    lower = {name.lower(): value for name, value in reversed(values.items())}
    fields = {
        field: next(lower[column] for column in columns if column in lower)
        for field, columns in COLUMNS.items()
        if any(column in lower for column in columns)
    }
    try:
        return _message(row, fields)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return Message(row, None, line)


def _message(row: int, fields: Mapping[str, Any]) -> Message:
    """Publishing a row twice is harmless: without an id of its own it is known by its number and content."""
    fields = {field: value for field, value in fields.items() if value is not None}
    if "event_id" not in fields:
        content = _json({"row": row, **fields})
        fields["event_id"] = blake2b(content, digest_size=12).hexdigest()
    user_id = fields.get("user_id")
    if isinstance(user_id, int) and not isinstance(user_id, bool):
        user_id = str(user_id)
    key = user_id.encode("utf-8", "surrogateescape") if isinstance(user_id, str) and user_id else None
    return Message(row, key, _json(fields))


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line; None where there is anything else."""
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _plain(column: Any) -> list[Any]:
    """A Parquet column as values that JSON has. Times become seconds since 1970; those without a zone count as UTC."""
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(column.type):
        per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
        return [None if ticks is None else ticks / per_second for ticks in column.cast(pa.int64()).to_pylist()]
    return [_json_value(value) for value in column.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _number(text: str) -> int | float | str:
    """A cell as a number where it is one; otherwise as the text it is (an ISO 8601 time, or a mistake)."""
    try:
        return int(text) if text.isdecimal() and len(text) < 20 else float(text) if "_" not in text else text
    except ValueError:
        return text


def _needed() -> str:
    return ", ".join(_or(COLUMNS[field]) for field in NEEDED)


def _or(columns: Sequence[str]) -> str:
    return " or ".join(columns)
