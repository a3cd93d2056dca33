"""A file of events, whatever its kind."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from stream.event_files.columns import ReadOptions, needed
from stream.event_files.csv_rows import CsvRows
from stream.event_files.delimiter import NAMES
from stream.event_files.errors import EventFileError
from stream.event_files.json_rows import JsonRows
from stream.event_files.messages import Message
from stream.event_files.opening import Opened
from stream.event_files.parquet_rows import ParquetRows
from stream.event_files.text import UTF_8, encoding_of, likely_encoding, lines_of

_AS_IT_IS = ReadOptions()
_LINES_COUNTED = 100


class EventFile:
    """A file of events, or what comes through a pipe ("-": standard input). Memory does not grow with its size.

    Raises EventFileError, on opening, for what cannot be opened, is empty, or holds no text and no Parquet; on reading,
    for columns that are missing or of a wrong type, quotes left open, and damaged data.
    """

    def __init__(self, path: Path, options: ReadOptions = _AS_IT_IS) -> None:
        try:
            self._opened = Opened(path)
        except EventFileError as error:
            if str(error).endswith("is empty"):
                raise EventFileError(f"{error}: it needs {needed()}") from None
            raise
        self.path = path
        self.name = self._opened.name
        self._options = options
        self._csv = self._json = self._parquet = None
        if self._opened.sample.startswith(b"PAR1"):
            self._parquet = ParquetRows(self.name, self._opened.path, options)
            return
        self._encoding = options.encoding or encoding_of(self._opened.sample, self.name)
        if self._is_json():
            self._json = JsonRows(self.name, options)
        else:
            self._csv = CsvRows(self.name, options)

    def __str__(self) -> str:
        return self.name

    @property
    def rows(self) -> int | None:
        """How many there are, where that is known: for Parquet, from the first message on."""
        return self._parquet.rows if self._parquet is not None else None

    @property
    def fraction(self) -> float:
        """How much has been read, from 0 to 1: of the rows for Parquet, of the (packed) bytes otherwise."""
        if self._parquet is None:
            return self._opened.fraction
        return self._parquet.rows_read / max(self._parquet.rows or 0, 1)

    @property
    def columns(self) -> Mapping[str, str]:
        """The name of the column that each field is read from, from the first message on."""
        reader = self._csv or self._json or self._parquet
        assert reader is not None
        return reader.names

    @property
    def content_id(self) -> str:
        """A short digest of the size, the first and the last mebibyte: by it, versions before knew a file."""
        digest = blake2b(str(self._opened.size).encode(), digest_size=8)
        with self._opened.path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, self._opened.size - (1 << 20)))
            digest.update(file.read(1 << 20))
        return digest.hexdigest()

    def messages(self, *, skip: int = 0) -> Generator[Message]:
        """The rows after the first `skip`, in order. Rows are counted from 1, blank lines are none."""
        if self._parquet is not None:
            yield from self._parquet.messages(skip)
            return
        if self._json is not None:
            with closing(lines_of(self._opened, self._encoding)) as lines:
                self._json.check_fields(lines)
        with closing(lines_of(self._opened, self._encoding)) as lines:
            reader = self._json or self._csv
            assert reader is not None
            try:
                yield from reader.messages(lines, skip)
            except EventFileError as error:
                raise self._with_what_its_name_says(error) from None

    def with_columns(self, columns: Mapping[str, str]) -> "EventFile":
        """The same file, also one that came through a pipe, with some fields read from other columns."""
        columns = {**self._options.columns, **columns}
        return EventFile(self._opened.path, replace(self._options, columns=columns))

    def remarks(self) -> Iterator[str]:
        """What has been taken for granted so far, a line each; nothing where there is only one way to read the file."""
        if self._parquet is not None:
            if self._parquet.time_without_zone:
                name = self._parquet.names["timestamp"]
                yield f"the times in {name!r} have no time zone: they are taken as UTC (--timezone says another)"
            return
        if self._encoding != UTF_8:
            yield f"read as {self._encoding}"
        if self._csv is None:
            return
        if self._csv.delimiter != ",":
            yield f"columns are separated by {NAMES.get(self._csv.delimiter, repr(self._csv.delimiter))}"
        if not self._csv.has_header:
            yield "there is no header: the first line is a row"
        if self._csv.longer_rows:
            yield f"{self._csv.longer_rows:,} rows have more cells than the header: what is beyond it is not read"
        if self._csv.odd_quotes:
            yield f"{self._csv.odd_quotes:,} rows have a quote inside a quoted cell: they are read as far as they go"

    def encoding_hint(self) -> str | None:
        """What bytes that are no UTF-8 may be."""
        return likely_encoding(self._opened.sample) if self._parquet is None else None

    def _is_json(self) -> bool:
        """Whether the first line begins as an object or an array does, or most lines as an object."""
        sample = self._opened.sample.decode(self._encoding, "replace")
        lines = [line.strip() for line in sample.splitlines()[:_LINES_COUNTED] if line.strip()]
        # Whole ones, or the last, which the sample may have cut: a table's first cells may begin with a brace too.
        objects = sum(line.startswith("{") and (line.endswith("}") or line is lines[-1]) for line in lines)
        return bool(lines) and (lines[0].startswith(("{", "[")) or 2 * objects > len(lines))

    def _with_what_its_name_says(self, error: EventFileError) -> EventFileError:
        """A name that promises another kind than the content is worth a word, where the content cannot be read."""
        for suffix, kind in ((".parquet", "Parquet"), (".gz", "gzip"), (".xz", "xz"), (".zst", "zstd")):
            if self.path.name.lower().endswith(suffix) and not self._opened.packing:
                return EventFileError(f"{error} (by its name it is {kind}; by its content it is text)")
        return error
