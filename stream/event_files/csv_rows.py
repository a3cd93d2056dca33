"""The rows of a CSV file: cells by column, and quotes that are closed."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from stream.click_fields import NEEDED
from stream.event_files.columns import (
    ReadOptions,
    find_columns,
    folded,
    is_time_like,
    listed,
    names_are_data,
    needed,
    numbers_option,
)  # fmt: skip
from stream.event_files.delimiter import find_delimiter, said_by_excel, split
from stream.event_files.errors import EventFileError, shown
from stream.event_files.messages import Message, message, number_of
from stream.event_files.text import LINE_BYTES_MAX

#: A row whose quoted fields span more lines or characters has a quote that was never closed.
QUOTED_LINES_MAX = 200
QUOTED_CHARACTERS_MAX = 65_536

HIDDEN = " \t\xa0"  # around a cell

_LINES_LOOKED_AT = 200  # for the delimiter
_CHARACTERS_LOOKED_AT = 65_536
_WAY_ON = 'close it, or double it ("") where it belongs to the text'


class CsvRows:
    """The rows of one file. What is found out about it is known from the first message on."""

    def __init__(self, name: str, options: ReadOptions) -> None:
        self._name, self._options = name, options
        self.delimiter = ","
        self.has_header = True
        self.names: dict[str, str] = {}  # of the column that each field is read from
        self.longer_rows = 0  # with more cells than the header
        self.odd_quotes = 0  # rows with a quote in the middle of a quoted cell
        self._places: dict[str, int] = {}
        self._width = 0
        self._line = 0  # the number of the line that was read last

    def messages(self, lines: Iterable[str], skip: int) -> Iterator[Message]:
        """The rows after the first `skip`. Raises EventFileError for wrong columns and for quotes left open."""
        csv.field_size_limit(LINE_BYTES_MAX)
        self.longer_rows = self.odd_quotes = self._width = 0
        records = self._records(self._without_preface(iter(lines)))
        first = next(records, None)
        if first is None:
            raise EventFileError(f"{self._name} is empty: it needs {needed()}")
        self._find_columns(first[0])
        self._width = len(first[0])
        row = 0
        for cells, plain in records if self.has_header else chain([first], records):
            row += 1
            if len(cells) > self._width and any(cell.strip() for cell in cells[self._width :]):
                self.longer_rows += 1
            if row > skip:
                yield self._message(row, cells, plain)
        if row == 0:
            raise EventFileError(f"{self._name} has no rows after its header")

    def _message(self, row: int, cells: Sequence[str], plain: bool) -> Message:
        """A cell that the row is too short for is absent, as is an empty one that need not be there.

        Spaces around a cell are no part of it, unless quotes say so.
        """
        fields: dict[str, str | int | float] = {}
        for field, place in self._places.items():
            if place >= len(cells):
                continue
            cell = cells[place].strip(HIDDEN) if plain else cells[place]
            if cell or field in NEEDED:
                numeric = field in ("timestamp", "value")
                fields[field] = number_of(cell, decimal_comma=self.delimiter != ",") if numeric else cell
        return message(row, fields, self._options.timezone)

    def _without_preface(self, lines: Iterator[str]) -> Iterator[str]:
        """The lines from the header on; finds the delimiter on the way."""
        head: list[str] = []
        self._line = 0
        for line in lines:
            if line.strip() or head:
                head.append(line)
            else:
                self._line += 1
            if len(head) >= _LINES_LOOKED_AT or sum(map(len, head)) >= _CHARACTERS_LOOKED_AT:
                break
        by_excel = said_by_excel(head[0].strip()) if head else None
        if by_excel is not None:
            del head[0]
            self._line += 1
        looked_at = [line for line in head if line.strip()]
        given = self._options.delimiter or by_excel
        if looked_at:
            self.delimiter = given or find_delimiter(looked_at, self._options, self._name)
        return chain(head, lines)

    def _records(self, lines: Iterator[str]) -> Iterator[tuple[list[str], bool]]:
        """The cells of each row, and whether they are as they stand in the file, without quotes."""
        if len(self.delimiter) > 1 or self.delimiter == " ":
            for line in lines:
                self._line += 1
                if line.strip():
                    yield split(line, self.delimiter), True
            return
        pending: list[str] = []  # the lines of the row that is being read
        reader = csv.reader(self._watched(lines, pending), delimiter=self.delimiter, strict=True, skipinitialspace=True)
        while True:
            try:
                cells = next(reader, None)
                plain = len(pending) == 1 and '"' not in pending[0]
            except csv.Error as error:
                cells, plain = self._leniently(pending, error), True
            if cells is None:
                return
            if len(pending) > 1:
                self._check_lines(pending, cells)
            if len(cells) > 1 or any(line.strip() for line in pending):
                yield cells, plain
            pending.clear()

    def _watched(self, lines: Iterator[str], pending: list[str]) -> Iterator[str]:
        for line in lines:
            self._line += 1
            pending.append(line)
            if len(pending) > 1 and (len(pending) > QUOTED_LINES_MAX or sum(map(len, pending)) > QUOTED_CHARACTERS_MAX):
                raise EventFileError(
                    f"{self._name}, line {self._opened_at(pending):,}: the quote that opens here is not closed within "
                    f"{QUOTED_LINES_MAX} lines and {QUOTED_CHARACTERS_MAX:,} characters: {_WAY_ON}"
                )
            yield line

    def _leniently(self, pending: Sequence[str], error: csv.Error) -> list[str]:
        """A row with a quote where none belongs, as far as it is certain where the row ends."""
        if len(pending) == 1 and pending[0].count('"') % 2 == 0:
            self.odd_quotes += 1
            return next(csv.reader(pending, delimiter=self.delimiter, skipinitialspace=True), [])
        where = f"{self._name}, line {self._opened_at(pending):,}"
        if "unexpected end" in str(error) or len(pending) > 1:
            raise EventFileError(f"{where}: the quote that opens here is never closed: {_WAY_ON}") from None
        raise EventFileError(f"{where}: a quote stands inside a quoted cell: {_WAY_ON}") from None

    def _check_lines(self, pending: Sequence[str], cells: Sequence[str]) -> None:
        """A field of several lines is text, unless its lines look like rows of their own: then a quote is left open."""
        if not self._width:
            return
        inside = [place for place, cell in enumerate(cells) if "\n" in cell or "\r" in cell]
        suspects = [line for line in pending[1:-1] if '"' not in line]
        if inside and inside[0] < self._width - 1:
            suspects.append(pending[0])
        if inside and inside[-1] > 0:
            suspects.append(pending[-1])
        if any(map(self._is_row, suspects)):
            first = self._line - len(pending) + 1
            raise EventFileError(
                f"{self._name}, line {first:,}: the quote that opens here is closed in line {self._line:,}, and what "
                f"stands between looks like rows: {_WAY_ON}"
            )

    def _is_row(self, line: str) -> bool:
        cells = split(line, self.delimiter)
        return len(cells) == self._width and is_time_like(cells[self._places["timestamp"]])

    def _opened_at(self, pending: Sequence[str]) -> int:
        """The number of the line in which the quote opens that is open at the end."""
        opened, is_open = 0, False
        for at, line in enumerate(pending):
            if line.count('"') % 2:
                opened, is_open = (opened if is_open else at), not is_open
        return self._line - len(pending) + 1 + opened

    def _find_columns(self, first: Sequence[str]) -> None:
        names = [name.strip() for name in first]
        given = {field: column for field, column in self._options.columns.items() if column}
        self.has_header = not (
            set(NEEDED) <= set(given)
            and all(column.isdecimal() for column in given.values())
            and 1 <= (time := int(given["timestamp"])) <= len(names)
            and is_time_like(names[time - 1])
            and names != [str(number) for number in range(len(names))]  # the names pandas gives
        )
        if self.has_header:
            try:
                self._places = find_columns(names, self._options, self._name, numbered=True)
            except EventFileError:
                # What is missing may have been given; then a header that looks odd is one all the same.
                if given or not names_are_data(names):
                    raise
                raise EventFileError(self._no_header(names)) from None
        else:
            outside = [column for column in given.values() if not 1 <= int(column) <= len(names)]
            if outside:
                raise EventFileError(f"{self._name} has no column {outside[0]}: it has {len(names)}, {listed(names)}")
            self._places = {field: int(column) - 1 for field, column in given.items()}
        self.names = {
            field: shown(folded(names[place])) if self.has_header else str(place + 1)
            for field, place in self._places.items()
        }

    def _no_header(self, names: Sequence[str]) -> str:
        option = numbers_option(names)
        way_on = f", for example {option}" if option else ""
        return (
            f"{self._name} has no header: its first line is {listed(names)}, and columns are known by their names "
            f"({needed()}); give a header, or name columns by number{way_on}"
        )
