"""A cell of a file of items as the value that a field takes. All functions are pure."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from typing import Any

from stream.timestamps import TimestampError, seconds_of

NUMBER, BOOLEAN, TEXT = "number", "yes or no", "text"  # kinds of a column of texts

#: What stands in files where nothing is known, lower case.
_ABSENT = frozenset({"", "na", "n/a", "nan", "null", "none", r"\n", "-"})
_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})
_WORDS = frozenset({"true", "false", "yes", "no"})  # that make a column one of truth values; 0 and 1 are numbers
# Without zeros in front: "007" is text.
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]{0,300})(?:\.[0-9]{0,300})?|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_YEARS = range(1500, 2200)


class CellError(Exception):
    """A cell that holds no value of its field; one line."""


def is_absent(cell: Any) -> bool:
    """Whether a cell says that nothing is known."""
    if isinstance(cell, str):
        return cell.strip().lower() in _ABSENT
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def number_in(text: str, *, decimal_comma: bool = False) -> float | None:
    """A text as the number that it spells; None: it spells none."""
    text = text.strip()
    if decimal_comma and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def kind_of_texts(cells: Iterable[Any], *, decimal_comma: bool = False) -> str:
    """The kind that all texts of a column are of, apart from those that say that nothing is known."""
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and not is_absent(cell)]
    if texts and all(number_in(text, decimal_comma=decimal_comma) is not None for text in texts):
        return NUMBER
    return BOOLEAN if texts and all(text.lower() in _WORDS for text in texts) else TEXT


def attribute_of(cell: Any, kind: str, *, decimal_comma: bool = False) -> bool | float | str | None:
    """A cell as an attribute's value; None: there is none. `kind`: of a column of texts; any other: the cell's own.

    Raises CellError.
    """
    if isinstance(cell, str):
        return _of_text(cell, kind, decimal_comma=decimal_comma)
    if is_absent(cell) or isinstance(cell, bool):
        return cell if isinstance(cell, bool) else None
    if isinstance(cell, date):  # also datetime
        return moment_of(cell, UTC)
    if isinstance(cell, int | float | Decimal) and math.isfinite(cell):
        return float(cell)
    raise CellError("is no single number, text or truth value")


def _of_text(cell: str, kind: str, *, decimal_comma: bool) -> bool | float | str | None:
    if kind not in (NUMBER, BOOLEAN):
        return cell.strip() or None
    if is_absent(cell):
        return None
    if kind == BOOLEAN:
        return truth_of(cell)
    number = number_in(cell, decimal_comma=decimal_comma)
    if number is None:
        raise CellError("is no number")
    return number


def truth_of(cell: Any) -> bool:
    """Raises CellError."""
    word = str(cell).strip().lower().removesuffix(".0")
    if word not in _TRUE | _FALSE:
        raise CellError(f"is neither true nor false: {str(cell)[:40]!r}")
    return word in _TRUE


def tags_of(cell: Any, separator: str) -> list[str]:
    """Tags of a list, of a text that holds a JSON list, or of one in which they are separated. Raises CellError."""
    if isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"):
        with suppress(ValueError):
            cell = json.loads(cell)
    if isinstance(cell, str):
        parts: Sequence[Any] = cell.split(separator) if separator else [cell]
    elif isinstance(cell, list | tuple):
        parts = cell
    else:
        parts = [cell]
    if not all(isinstance(part, str | int | float) for part in parts):
        raise CellError("tags must be texts")
    return list(dict.fromkeys(text for part in parts if (text := str(part).strip())))


def moment_of(cell: Any, zone: tzinfo) -> float:
    """Seconds since 1970, also before; a year alone is its first moment. `zone`: of times that have none.

    Raises CellError.
    """
    if isinstance(cell, str):
        text = cell.strip()
        if not _DATE.match(text):
            return _of_number(int(text) if text.isdecimal() and len(text) < 20 else text, zone)
        try:
            cell = datetime.fromisoformat(text.removesuffix(" UTC").removesuffix(" GMT"))
        except ValueError:
            raise CellError(f"is no ISO 8601 time: {text[:40]!r}") from None
    if isinstance(cell, date):
        moment = cell if isinstance(cell, datetime) else datetime(cell.year, cell.month, cell.day)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).timestamp()
    return _of_number(cell, zone)


def _of_number(cell: Any, zone: tzinfo) -> float:
    if isinstance(cell, int) and cell in _YEARS:
        return datetime(cell, 1, 1, tzinfo=zone).timestamp()
    try:
        return seconds_of(cell, now=math.inf, ahead_s_max=0.0)
    except TimestampError as error:
        raise CellError(error.detail.removeprefix("timestamp ")) from None
