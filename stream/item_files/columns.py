"""Which column of a file of items, or of users, is which field: as `--columns` says, else by what others call them.

What is guessed is guessed from the first rows, and shown before anything is published.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

from stream.click_fields import at
from stream.event_files.columns import folded, listed
from stream.event_files.errors import EventFileError, shown
from stream.item_files.cells import is_absent, kind_of_texts
from stream.item_files.kinds import ID, ITEMS, PUBLISHED_AT, TAGS, Kind
from stream.items import ATTRIBUTES_MAX, NAME_BYTES_MAX

SEPARATORS = ("|", ";", ",")  # of tags; in this order where several are equally frequent
TYPED = "as it is"  # the kind of a column whose values have types

_NO_LETTER = re.compile(r"[^a-z]")


@dataclass(frozen=True)
class ItemOptions:
    """What is said of a file from outside; None: guessed."""

    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # field: column, "": not read
    only: tuple[str, ...] | None = None  # columns that become attributes; None: all that are no field
    tag_separator: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    timezone: ZoneInfo | None = None  # of times that have none; None: UTC


@dataclass(frozen=True)
class ItemColumns:
    """How rows are read."""

    fields: Mapping[str, str]  # field: column
    attributes: Mapping[str, str]  # column: kind of its values
    separator: str  # of tags in text; "": each is one tag
    left_out: tuple[str, ...] = ()  # columns beyond the limits of attributes
    kind: Kind = ITEMS

    def lines(self) -> list[str]:
        """What was said or guessed, a line each."""
        found = [f"{name}: column {shown(column)!r}" for name, column in self.fields.items()]
        if TAGS in self.fields and self.separator:
            found[list(self.fields).index(TAGS)] += f", separated by {self.separator!r}"
        attributes = ", ".join(
            shown(column) if kind == TYPED else f"{shown(column)} ({kind})" for column, kind in self.attributes.items()
        )
        found.append(f"attributes: {attributes or 'none'}")
        if self.left_out:
            left_out = ", ".join(map(shown, self.left_out))
            found.append(f"not read: {left_out} ({self.kind.one} has {ATTRIBUTES_MAX} attributes)")
        return found


def parse_item_columns(text: str, kind: Kind = ITEMS) -> dict[str, str]:
    """`id=sku,title=name,tags=` as {field: column}. Raises ValueError with one line."""
    found: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", text):
        given, equals, column = part.partition("=")
        name = {kind.word: ID, f"{kind.word}_id": ID}.get(given.strip().lower(), given.strip().lower())
        if not equals or name not in kind.names:
            raise ValueError(f"{shown(part)!r} is none of {', '.join(f'{one}=COLUMN' for one in kind.names)}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        if name == ID and not column.strip():
            raise ValueError("id= names no column, and it is needed")
        found[name] = column.strip()
    return found


def parse_only(text: str) -> tuple[str, ...]:
    """`price,brand` as columns; an empty text: none."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def find_item_columns(
    name: str,
    sample: Sequence[Mapping[str, Any]],
    options: ItemOptions,
    *,
    typed: bool,
    decimal_comma: bool,
    kind: Kind = ITEMS,
) -> ItemColumns:
    """Decides how rows are read.

    Args:
        name: of the file, for errors.
        sample: its first rows.
        options: what was said.
        typed: whether values have types; else the kind of a column is that of all its texts in the sample.
        decimal_comma: whether numbers may have one.
        kind: of records.

    Raises:
        EventFileError: a column that was named, or that of the id, is not there.
    """
    names = list(dict.fromkeys(column for row in sample for column in row))
    fields = _fields(name, names, sample, options, kind)
    taken = {*fields.values(), *(path.partition(".")[0] for path in fields.values() if path not in names)}
    others = [column for column in names if column not in taken]
    if options.only is not None:
        for column in options.only:
            if column not in names:
                raise EventFileError(f"{name} has no column {shown(column)!r} (--only): there are {listed(names)}")
        others = [column for column in others if column in options.only]
    fitting = [column for column in others if column and len(column.encode()) <= NAME_BYTES_MAX]
    room = ATTRIBUTES_MAX - (PUBLISHED_AT in fields)
    kept = fitting[:room]
    kinds = {
        column: TYPED if typed else kind_of_texts([row.get(column) for row in sample], decimal_comma=decimal_comma)
        for column in kept
    }
    separator = options.tag_separator
    if separator is None:
        separator = _separator(sample, fields[TAGS]) if TAGS in fields else ""
    return ItemColumns(fields, kinds, separator, tuple(column for column in others if column not in kept), kind)


def _fields(
    name: str, names: Sequence[str], sample: Sequence[Mapping[str, Any]], options: ItemOptions, kind: Kind
) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in kind.names:
        given = options.columns.get(one)
        if given == "":
            continue
        column = _guessed(kind.names[one], names, found) if given is None else _named(given, names, sample)
        if column is not None:
            found[one] = column
        elif given is not None:
            raise EventFileError(f"{name} has no column {shown(given)!r} (--columns): there are {listed(names)}")
    if ID not in found:
        raise EventFileError(
            f"{name} has no column that is known to hold the {kind.words}' ids: there are {listed(names)}; say which "
            "it is, as in --columns id=COLUMN"
        )
    return found


def _named(given: str, names: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    """A column as it is written, else whatever the case, else a path into objects."""
    for column in (given, *(one for one in names if folded(one) == folded(given))):
        if column in names or any(at(row, column) is not None for row in sample):
            return column
    return None


def _guessed(known: Sequence[str], names: Sequence[str], taken: Mapping[str, str]) -> str | None:
    letters = {_NO_LETTER.sub("", folded(column)): column for column in reversed(names)}
    return next((letters[alias] for alias in known if alias in letters and letters[alias] not in taken.values()), None)


def _separator(sample: Sequence[Mapping[str, Any]], column: str) -> str:
    """What stands in most of the cells; "": none of them in any."""
    texts = [cell for row in sample if isinstance(cell := at(row, column), str) and not is_absent(cell)]
    seen = Counter(separator for text in texts for separator in SEPARATORS if separator in text)
    return max(SEPARATORS, key=lambda separator: seen[separator]) if seen else ""
