"""Which column of a file is which field of a click: by our names, or as `--columns` says; and what others call them."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

from stream.click_fields import ALIASES, NEEDED
from stream.event_files.errors import EventFileError, shown

#: A click's fields, and the columns each is read from where nothing else is said (the first that is there).
COLUMNS = {
    "user_id": ("user_id", "user"),
    "item_id": ("item_id", "item"),
    "timestamp": ("timestamp",),
    "event_type": ("event_type",),
    "event_id": ("event_id",),
    "value": ("value", "rating"),
}
NAMES_SHOWN_MAX = 20
_UNKNOWN = "COLUMN"

# What others call them. Offered in the error, never taken without asking.
_RANKS = {name: (field, rank) for field, names in ALIASES.items() for rank, name in enumerate(names)}
_SHORT = {"user": "user_id", "item": "item_id", "rating": "value", "time": "timestamp", "ts": "timestamp"}
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_NO_ALIAS_PART = re.compile(r"[^a-z]")
# A time as it is written by hand or by machines: digits, with what stands between them. Words of three letters are
# months.
_TIME = re.compile(r"[+-]?\d[\d\s:.,/+TZ-]*(UTC|GMT|[AaPp][Mm])?|\d{1,2}[ -][A-Za-z]{3}[ -]\d{2,4}.*")


@dataclass(frozen=True)
class ReadOptions:
    """What is said of a file from outside. Columns not named go by our names; None: found in the file's content."""

    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # field: column, "": not read
    delimiter: str | None = None
    encoding: str | None = None
    timezone: ZoneInfo | None = None  # of times that have none


def parse_columns(text: str) -> dict[str, str]:
    """`user=visitorid,item=itemid,timestamp=ts` as {field: column}. Raises ValueError with one line."""
    found: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", text):
        given, equals, column = part.partition("=")
        name = given.strip().lower()
        known = _SHORT.get(name, name)
        if not equals or known not in COLUMNS:
            raise ValueError(
                f"{shown(part)!r} is none of {', '.join(f'{one}=COLUMN' for one in ('user', 'item', *[*COLUMNS][2:]))}"
            )
        if known in found:
            raise ValueError(f"{name} is given twice")
        if known in NEEDED and not column.strip():
            raise ValueError(f"{name}= names no column, and it is needed")
        found[known] = column.strip()
    return found


def folded(name: str) -> str:
    """A column's name as it is compared: without case, and what cannot be seen around it."""
    return name.strip().strip(_INVISIBLE).strip().lower()


def find_columns(names: Sequence[str], options: ReadOptions, file: str, *, numbered: bool = False) -> dict[str, int]:
    """The place in `names` of each field that is there. Raises EventFileError where a needed one is not.

    Args:
        names: the columns of the file, in order.
        options: what was said of them.
        file: the file's name, for the error.
        numbered: whether a column may also be named by its number, from 1.
    """
    found: dict[str, int] = {}
    for name, ours in COLUMNS.items():
        given = options.columns.get(name)
        if given == "":
            continue
        for wanted in ours if given is None else (given,):
            place = _place(names, wanted, name, file, exact=given is not None, numbered=numbered)
            if place is not None:
                found[name] = place
                break
        else:
            if given is not None:
                raise EventFileError(f"{file} has no column {shown(given)!r} (--columns): there are {listed(names)}")
    missing = [name for name in NEEDED if name not in found]
    if missing:
        without = " and no column ".join(_or(COLUMNS[name]) for name in missing)
        hint = suggestion(names, missing, options, set(found.values()))
        raise EventFileError(f"{file} has no column {without}: there are {listed(names)}, needed are {needed()}{hint}")
    return found


def suggestion(names: Sequence[str], missing: Iterable[str], options: ReadOptions, taken: set[int]) -> str:
    """An option ready to be pasted, as far as each missing field has a column that others call so."""
    guessed: dict[str, str] = {}
    for name in missing:
        ranked = [
            (rank[1], place)
            for place, column in enumerate(names)
            if place not in taken
            and column.isprintable()
            and (rank := _RANKS.get(_NO_ALIAS_PART.sub("", _last_part(column)))) is not None
            if rank[0] == name
        ]
        guessed[name] = names[min(ranked)[1]] if ranked else _UNKNOWN
    option = columns_option({**options.columns, **guessed})
    return f"; say which they are: {option}" if _UNKNOWN in guessed.values() else f"; did you mean {option} ?"


def columns_option(columns: Mapping[str, str]) -> str:
    """`--columns user=visitorid,...` as a shell takes it."""
    short = {"user_id": "user", "item_id": "item"}
    return "--columns " + shlex.quote(",".join(f"{short.get(name, name)}={at}" for name, at in columns.items()))


def names_are_data(names: Sequence[str]) -> bool:
    """Whether what should be a header looks like a row: it has a number or a time in it."""
    return any(is_time_like(name) for name in names)


def numbers_option(cells: Sequence[str]) -> str:
    """The columns of a file without a header by number, as far as a row shows which is the time."""
    times = [at for at, cell in enumerate(cells) if is_time_like(cell)]
    longest = max(times, key=lambda at: len(cells[at].strip()), default=len(cells) - 1)
    others = [at for at in range(len(cells)) if at != longest][:2]
    if len(others) < 2:
        return ""
    places = zip(("user", "item", "timestamp"), (*others, longest), strict=True)
    return "--columns " + ",".join(f"{name}={at + 1}" for name, at in places)


def is_time_like(cell: str) -> bool:
    """Whether a cell could be a time: a number or a date, however it is written."""
    return _TIME.fullmatch(cell.strip().strip('"').strip()) is not None


def paths_of(values: Mapping[str, Any], depth: int = 3) -> Iterable[str]:
    """The names of what an object holds, of what objects in it hold as dotted paths."""
    for name, value in values.items():
        if isinstance(value, dict) and value and depth > 1:
            yield from (f"{name}.{inner}" for inner in paths_of(value, depth - 1))
        else:
            yield name


def listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMES_SHOWN_MAX:,} more" if len(names) > NAMES_SHOWN_MAX else ""
    return repr(shown(", ".join(name[:100] for name in names[:NAMES_SHOWN_MAX]))) + more


def needed() -> str:
    return ", ".join(_or(COLUMNS[name]) for name in NEEDED)


def _place(names: Sequence[str], wanted: str, field: str, file: str, *, exact: bool, numbered: bool) -> int | None:
    """Where a column is: as it is written, else whatever the case. Raises EventFileError where several are."""
    rules: list[Callable[[str], str]] = [folded]
    if exact:
        rules.insert(0, str)
    for rule in rules:
        places = [place for place, name in enumerate(names) if rule(name) == rule(wanted)]
        if len(places) == 1:
            return places[0]
        if places:
            where = " and ".join(f"{shown(names[at])!r} (column {at + 1})" for at in places[:3])
            way_on = columns_option({field: str(places[0] + 1) if numbered else names[places[0]]})
            if not numbered and (len({names[at] for at in places}) == 1 or not names[places[0]].isprintable()):
                way_on = "rename one of them"
            raise EventFileError(f"{file} has {len(places)} columns of one name, {where}: say which, as in {way_on}")
    if numbered and exact and wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        return int(wanted) - 1
    return None


def _last_part(column: str) -> str:
    """The name at the end of a path; one that says too little for itself, as in `user.id`, with what stands before."""
    path = folded(column)
    last = path.rpartition(".")[2]
    return path if last == "id" else last


def _or(columns: Sequence[str]) -> str:
    return " or ".join(columns)
