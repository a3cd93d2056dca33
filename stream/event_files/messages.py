"""A row as it is published: a message for the clicks topic."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

from stream.event_files.columns import COLUMNS

_IDS = ("user_id", "item_id", "event_id", "event_type")
_EXACT_MAX = 2**53  # whole numbers above are not all there are among floats
_UTC_NAMES = (" UTC", " GMT")
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Message:
    """One row as it is published. `row` counts from 1; `key` is the user id, None where there is none."""

    row: int
    key: bytes | None
    value: bytes


def message(row: int, fields: Mapping[str, Any], timezone: ZoneInfo | None = None) -> Message:
    """Publishing a row twice is harmless: without an id of its own it is known by its number and content.

    Whole numbers that are written as floats count as ids. A time as text is given the zone, where it has none.
    Raises ValueError (UnicodeEncodeError) for half a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    kept: dict[str, Any] = {}
    for name in COLUMNS:
        cell = fields.get(name)
        if cell is None:
            continue
        if name in _IDS:
            cell = _whole(cell)
            if name == "event_type" and isinstance(cell, int) and not isinstance(cell, bool):
                cell = str(cell)
        elif name == "timestamp" and isinstance(cell, str):
            cell = _with_zone(cell, timezone)
        kept[name] = cell
    value = _json(kept)
    if "event_id" not in kept:
        content = b'{"row":%d%s%s' % (row, b"," if kept else b"", value[1:])
        event_id = blake2b(content, digest_size=12).hexdigest().encode()
        value = b'%s%s"event_id":"%s"}' % (value[:-1], b"," if kept else b"", event_id)
    user_id = kept.get("user_id")
    if isinstance(user_id, int) and not isinstance(user_id, bool):
        user_id = str(user_id)
    key = user_id.encode("utf-8", "surrogateescape") if isinstance(user_id, str) and user_id else None
    return Message(row, key, value)


def number_of(text: str, *, decimal_comma: bool = False) -> int | float | str:
    """A cell as a number where it is one; otherwise as the text it is (an ISO 8601 time, or a mistake)."""
    if decimal_comma and text.count(",") == 1 and text.replace(",", "").lstrip("+-").isdecimal():
        text = text.replace(",", ".")
    try:
        return int(text) if text.isdecimal() and len(text) < 20 else float(text) if "_" not in text else text
    except ValueError:
        return text


def _whole(value: Any) -> Any:
    """An id that is a whole number as one, however it is written: 12.0 is 12."""
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, float) and abs(value) < _EXACT_MAX and value.is_integer():
        return int(value)
    return value


def _with_zone(text: str, timezone: ZoneInfo | None) -> str | float:
    """A time as text with the offset it lacks; unchanged where it has one, or is no time."""
    if text.endswith(_UTC_NAMES):
        text = text[: -len(_UTC_NAMES[0])] + "+00:00"
    if timezone is None:
        return text
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return text
    # Digits alone (2026, 20261128) may be anything.
    if moment.tzinfo is not None or "-" not in text:
        return text
    return moment.replace(tzinfo=timezone).timestamp()


def _json(fields: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(fields).encode("utf-8", "surrogateescape")
