"""A file of items, or of users, whatever its type."""

import json
from collections import Counter
from collections.abc import Generator, Mapping
from datetime import UTC
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from stream.click_fields import at
from stream.event_files.errors import EventFileError, shown
from stream.event_files.table import Table, TableRow
from stream.events import BadEvent, Limits
from stream.item_files.cells import CellError, attribute_of, is_absent, moment_of, tags_of, truth_of
from stream.item_files.columns import ItemColumns, ItemOptions, find_item_columns
from stream.item_files.kinds import AVAILABLE, ID, ITEMS, PUBLISHED_AT, TAGS, TITLE, Kind
from stream.items import TEXT_BYTES_MAX, Item
from stream.users import User

VECTOR = "vector"
SAMPLE_ROWS = 1_000  # from which columns are guessed
_EXACT_BELOW = 2**53  # a larger float is no certain integer
_AS_IT_IS = ItemOptions()
_LIMITS = Limits()
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class ItemRow(NamedTuple):
    """One row as it is published."""

    line: int
    key: bytes
    value: bytes
    item: Item | User  # as a worker reads the two
    published_at: float | None  # seconds since 1970


class BadRow(NamedTuple):
    """A row that is none."""

    line: int
    reason: str
    detail: str


class ItemFile:
    """A file of items or users. Memory does not grow with its size.

    Raises EventFileError, on opening, for what cannot be opened and for columns that are missing; while rows are read,
    for damaged data.
    """

    def __init__(
        self, path: Path, options: ItemOptions = _AS_IT_IS, *, limits: Limits = _LIMITS, kind: Kind = ITEMS
    ) -> None:
        """`kind`: what the file holds."""
        self.kind = kind
        self._table = Table(path, delimiter=options.delimiter, encoding=options.encoding)
        self.name = self._table.name
        self._limits = limits
        self._zone = options.timezone or UTC
        sample = [row.values for row in islice(self._table.rows(), SAMPLE_ROWS) if not row.fault]
        if not sample:
            raise EventFileError(f"{self.name} has no row that can be read: one {kind.word} on each is needed")
        self._decimal_comma = self._table.delimiter == ";"
        self.columns: ItemColumns = find_item_columns(
            self.name, sample, options, typed=self._table.is_typed, decimal_comma=self._decimal_comma, kind=kind
        )
        self._any_attribute = self._table.is_typed and options.only is None
        self.dropped: Counter[tuple[str, str]] = Counter()  # values left out of rows that were taken: column, why

    @property
    def fraction(self) -> float:
        """How much has been read, from 0 to 1."""
        return self._table.fraction

    def rows(self) -> Generator[ItemRow | BadRow]:
        """The rows in order. `dropped` counts from 0 again. Raises EventFileError."""
        self.dropped = Counter()
        for row in self._table.rows():
            yield self._row(row)

    def _row(self, row: TableRow) -> ItemRow | BadRow:
        if row.fault:
            return BadRow(row.line, "unreadable-row", row.fault)
        dropped: list[tuple[str, str]] = []
        field = ""
        try:
            field = ID
            key = self._id(row.values)
            record = self._attributes(row.values, dropped)
            for field in (TITLE, TAGS, PUBLISHED_AT, AVAILABLE):
                self._put(record, field, row.values)
            value = _ENCODER.encode(record).encode()
        except CellError as why:
            return BadRow(row.line, f"invalid-{field}", f"{field} {why}")
        except UnicodeEncodeError:
            return BadRow(row.line, "invalid-utf8", "it holds bytes that are no UTF-8: --encoding says what it is")
        item = self.kind.parse(key, value, limits=self._limits)
        if isinstance(item, BadEvent):
            return BadRow(row.line, item.reason, item.detail)
        self.dropped.update(dropped)
        return ItemRow(row.line, key, value, item, record.get(PUBLISHED_AT))

    def _id(self, values: Mapping[str, Any]) -> bytes:
        cell = self._cell(values, ID)
        if isinstance(cell, float) and cell.is_integer() and abs(cell) < _EXACT_BELOW:
            cell = int(cell)
        if not isinstance(cell, str | int) or isinstance(cell, bool) or not (text := str(cell).strip()):
            raise CellError("is missing" if is_absent(cell) else "must be text or a whole number")
        return text.encode()

    def _put(self, record: dict[str, Any], field: str, values: Mapping[str, Any]) -> None:
        cell = self._cell(values, field)
        if is_absent(cell) and not (field == TITLE and isinstance(cell, str) and cell.strip()):
            return
        if field == TITLE:
            record[field] = str(cell).strip()
        elif field == TAGS:
            record[field] = tags_of(cell, self.columns.separator)
        elif field == PUBLISHED_AT:
            record[field] = moment_of(cell, self._zone)
        else:
            record[field] = truth_of(cell)

    def _attributes(self, values: Mapping[str, Any], dropped: list[tuple[str, str]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for column, kind in self.columns.attributes.items():
            cell = values.get(column)
            if column == VECTOR and VECTOR in self.kind.own and isinstance(cell, list):
                found[column] = cell  # a field of the record, checked as one
                continue
            try:
                attribute = attribute_of(cell, kind, decimal_comma=self._decimal_comma)
            except CellError as why:
                dropped.append((column, str(why)))
                continue
            if isinstance(attribute, str) and len(attribute.encode()) > TEXT_BYTES_MAX:
                dropped.append((column, f"is longer than {TEXT_BYTES_MAX} bytes"))
            elif attribute is not None and column in self.kind.own:
                dropped.append((column, f"has a name that is taken by a field of {self.kind.words}"))
            elif attribute is not None:
                found[column] = attribute
        if self._any_attribute:
            known = {*self.columns.attributes, *self.columns.fields.values(), *self.columns.left_out}
            known |= {path.partition(".")[0] for path in self.columns.fields.values()}
            dropped += [(name, f"is not in the first {SAMPLE_ROWS:,} rows") for name in values if name not in known]
        return found

    def _cell(self, values: Mapping[str, Any], field: str) -> Any:
        column = self.columns.fields.get(field)
        return None if column is None else at(values, column)

    def remarks(self) -> list[str]:
        """What has been left out of rows that were taken, a line each."""
        return [
            f"left out of {self.kind.words}: {count:,} values of {shown(column)!r}, each of which {why}"
            for (column, why), count in self.dropped.most_common()
        ]
