"""The rows of a file of JSON lines: an object on each line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from stream.click_fields import at
from stream.event_files.columns import COLUMNS, ReadOptions, find_columns, folded, needed, paths_of
from stream.event_files.errors import EventFileError
from stream.event_files.messages import Message, message

_LINES_SEARCHED_FOR_FIELDS = 100
_NAMES_SEARCHED_MAX = 10_000
_WAY_ON = "`jq -c '.[]?' FILE` or `jq -c . FILE` makes such lines"


class JsonRows:
    """The rows of one file. `names` (of the column that each field is read from) are known from the first one on."""

    def __init__(self, name: str, options: ReadOptions) -> None:
        self._name, self._options = name, options
        self.names: dict[str, str] = {}

    def check_fields(self, lines: Iterable[str]) -> None:
        """A file in which no early object has a needed field is the wrong file, not a broken row."""
        names: dict[str, None] = {}
        searched = [line.strip() for line in islice(lines, _LINES_SEARCHED_FOR_FIELDS)]
        for line in searched:
            for path in islice(paths_of(_object(line) or {}), _NAMES_SEARCHED_MAX):
                names[path] = None
        if not names:
            first = next(filter(None, searched), "")
            array = first == "[" or first.startswith(("[{", "[ {"))
            why = "holds one JSON array" if array else "holds no JSON object in its first lines"
            raise EventFileError(f"{self._name} {why}: it needs an object on each line, with {needed()}; {_WAY_ON}")
        found = find_columns(list(names), self._options, self._name)
        self.names = {field: list(names)[place] for field, place in found.items()}

    def messages(self, lines: Iterable[str], skip: int) -> Iterator[Message]:
        """The rows after the first `skip`, in order."""
        row = 0
        for line in lines:
            text = line.strip(" \t\r\n")
            if not text:
                continue
            row += 1
            if row > skip:
                yield self._message(row, text)

    def _message(self, row: int, text: str) -> Message:
        """An object with its fields under our names; anything else as it stands."""
        values = _object(text)
        if values is not None:
            try:
                return message(row, self._fields(values), self._options.timezone)
            except (ValueError, RecursionError):  # half a surrogate pair, which JSON can spell and UTF-8 cannot
                pass
        return Message(row, None, text.encode("utf-8", "surrogateescape"))

    def _fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Each object by its own names, since those of one file need not have the same ones."""
        lower: dict[str, Any] = {}
        for name, value in values.items():
            lower.setdefault(folded(name), value)
        fields: dict[str, Any] = {}
        for field, ours in COLUMNS.items():
            given = self._options.columns.get(field)
            if given is None:
                found = next((lower[name] for name in ours if name in lower), None)
            elif given == "":
                continue
            else:
                found = at(values, self.names.get(field, given))
            if found is not None:
                fields[field] = found
        return fields


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object on a line; None where there is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
