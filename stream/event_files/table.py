"""The rows of a table of any columns: CSV (also packed), JSON lines or Parquet, by what the content is.

Events have columns of their own (stream/event_files/columns.py); this reads what else a command takes, such as a log of
impressions or a file of items. Cells of a CSV stay the text they are; the other formats have types.
"""

import csv
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from stream.event_files.csv_rows import QUOTED_CHARACTERS_MAX, QUOTED_LINES_MAX
from stream.event_files.delimiter import KNOWN
from stream.event_files.errors import EventFileError, shown
from stream.event_files.opening import Opened
from stream.event_files.text import LINE_BYTES_MAX, encoding_of, lines_of

_BATCH_ROWS = 4_096

Row = dict[str, Any]


class TableRow(NamedTuple):
    """One row, or why it is none."""

    line: int  # its first line, from 1; of Parquet the number of the row
    values: Row  # by column
    fault: str = ""  # why it cannot be read; "": it can


class Table:
    """A file with rows of any columns. Its rows can be gone through as often as is needed.

    Raises EventFileError, on opening or while rows are read, for what cannot be read as a whole.
    """

    def __init__(self, path: Path, *, delimiter: str | None = None, encoding: str | None = None) -> None:
        """`delimiter`: of a CSV; `encoding`: of text; None: what the content shows."""
        self._opened = Opened(path)
        self.name = self._opened.name
        self.delimiter = delimiter or ""  # of a CSV, from the first row on
        self._given = delimiter
        self._read = self._rows = 0  # of a Parquet file
        sample = self._opened.sample
        self._is_parquet = sample.startswith(b"PAR1")
        self._encoding = "" if self._is_parquet else encoding or encoding_of(sample, self.name)
        self._is_json = not self._is_parquet and sample.decode(self._encoding, "replace").lstrip().startswith(
            ("{", "[")
        )

    @property
    def is_typed(self) -> bool:
        """Whether values have types; in a CSV each is text."""
        return self._is_parquet or self._is_json

    @property
    def fraction(self) -> float:
        """How much has been read, from 0 to 1."""
        return self._read / max(1, self._rows) if self._is_parquet else self._opened.fraction

    def rows(self) -> Generator[TableRow]:
        """Each row in order, with those that cannot be read. Raises EventFileError."""
        if self._is_parquet:
            yield from self._parquet()
            return
        with closing(lines_of(self._opened, self._encoding)) as lines:
            yield from _json_lines(lines) if self._is_json else self._csv(lines)

    def _csv(self, lines: Iterator[str]) -> Iterator[TableRow]:
        csv.field_size_limit(LINE_BYTES_MAX)
        counted = _Lines(self.name, lines)
        header = next((line for line in counted if line.strip()), "")
        self.delimiter = _delimiter(self.name, header, self._given)
        names = [one.strip() for one in next(csv.reader([header], delimiter=self.delimiter, skipinitialspace=True))]
        if len(set(names)) < len(names):
            twice = next(one for one in names if names.count(one) > 1)
            raise EventFileError(f"{self.name} has two columns of the name {shown(twice)!r}: rename one of them")
        reader = csv.reader(counted, delimiter=self.delimiter, strict=True, skipinitialspace=True)
        while True:
            line = counted.begin_row()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield TableRow(line, {}, str(error))
                continue
            if cells is None:
                return
            if any(cells):
                wrong = "" if len(cells) == len(names) else f"{len(cells)} cells under {len(names)} columns"
                if wrong and counted.number > line:
                    wrong += f", up to line {counted.number:,}: is a quote left open?"
                yield TableRow(line, {} if wrong else dict(zip(names, cells, strict=True)), wrong)

    def _parquet(self) -> Iterator[TableRow]:
        try:
            import pyarrow as pa  # noqa: PLC0415 - takes longer to import than most commands to run
            from pyarrow import parquet  # noqa: PLC0415
        except ImportError:
            raise EventFileError(
                f'{self.name} is a Parquet file, which needs the packages of the extra "backtest": '
                "pip install 'nextclick[backtest]'"
            ) from None
        self._read = 0
        try:
            with parquet.ParquetFile(self._opened.path) as file:
                self._rows = file.metadata.num_rows
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    for values in batch.to_pylist():
                        self._read += 1
                        yield TableRow(self._read, values)
        except (pa.ArrowException, OSError, ValueError) as error:
            why = shown((str(error).splitlines() or ["its data is damaged"])[0])
            raise EventFileError(f"{self.name} is no readable Parquet file: {why}") from None


def table_rows(path: Path, delimiter: str | None = None) -> Generator[Row]:
    """Each row as {column: value}. Raises EventFileError, which names the line, for what cannot be read."""
    table = Table(path, delimiter=delimiter)
    for row in table.rows():
        if row.fault:
            raise EventFileError(f"{table.name}, line {row.line:,}: {row.fault}")
        yield row.values


class _Lines:
    """Lines with their numbers, of which a row takes a bounded number."""

    def __init__(self, name: str, lines: Iterator[str]) -> None:
        self._name, self._lines = name, lines
        self.number = 0  # of the line that was read last
        self._first, self._characters = 1, 0  # of the row that is being read

    def begin_row(self) -> int:
        """Returns the number of the line that comes next."""
        self._first, self._characters = self.number + 1, 0
        return self._first

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self._characters += len(line)
        spanned = self.number - self._first
        if spanned > QUOTED_LINES_MAX or (spanned and self._characters > QUOTED_CHARACTERS_MAX):
            raise EventFileError(
                f"{self._name}, line {self._first:,}: a quote that opens here is not closed within {QUOTED_LINES_MAX} "
                f"lines and {QUOTED_CHARACTERS_MAX:,} characters"
            )
        return line


def _json_lines(lines: Iterator[str]) -> Iterator[TableRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield TableRow(number, {}, "it is no JSON; an object on each line is needed")
            continue
        is_row = isinstance(row, dict)
        yield TableRow(number, row if is_row else {}, "" if is_row else "an object on each line is needed")


def _delimiter(name: str, header: str, given: str | None) -> str:
    delimiter = given or max((one for one in KNOWN if len(one) == 1), key=header.count)
    if len(delimiter) != 1:
        raise EventFileError(f"{name}: a delimiter of one character is needed here, not {delimiter!r}")
    return delimiter
