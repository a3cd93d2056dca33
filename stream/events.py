"""Clicks as they stand on a topic: `parse` reads one, `encode` writes one.

A message that is no click is a value (`BadEvent`), never an exception, so that one bad message cannot stop the stream.

Among the clicks may stand that somebody is to be forgotten: `{"event_type": "nextclick.forget", "user_sha256": "...",
"timestamp": ...}`. It names nobody (stream/people.py), so that it may stay when all else is gone; and since it stands
in order among the clicks, reading them again from the beginning forgets again. A click cannot be taken for it: it has
neither `user_id` nor `item_id`, and a click with its event type is none.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field
from pydantic_core import from_json

from stream.people import is_digest

FORGET = "nextclick.forget"  # the event type
EVENT_TYPE_BYTES_MAX = 64
_DETAIL_CHARACTERS_MAX = 200
_ISO_8601_CHARACTERS_MAX = 64

#: Every `BadEvent.reason` there is; a fixed set, so that it can be a metric's label.
REASONS = frozenset(
    {
        "tombstone",  # no value at all
        "too-large",  # longer than Limits.message_bytes_max
        "invalid-utf8",
        "malformed-json",  # also: nested too deeply, a number of thousands of digits, half a surrogate pair
        "not-an-object",
        "missing-user_id",
        "missing-item_id",
        "missing-timestamp",
        "invalid-user_id",
        "invalid-item_id",
        "invalid-timestamp",  # not finite, negative, no number and no ISO 8601 with an offset
        "future-timestamp",  # later than Limits.future_s_max from now; often milliseconds by mistake
        "invalid-event_type",
        "invalid-event_id",
        "invalid-value",
        "internal-error",  # readable, but our own code fails on it; the detail is the traceback's last line
        "invalid-forget",  # of the event type nextclick.forget, and no such event
    }
)


class Click(BaseModel, frozen=True):
    """One thing that one person did. `timestamp` is in seconds since 1970; `event_id` makes redelivery harmless."""

    user_id: str = Field(min_length=1)
    item_id: str = Field(min_length=1)
    timestamp: float = Field(ge=0, allow_inf_nan=False)
    event_type: str = Field(default="click", min_length=1)
    event_id: str | None = Field(default=None, min_length=1)
    value: float | None = Field(default=None, allow_inf_nan=False)


class Forget(BaseModel, frozen=True):
    """Everything known of somebody is to go. `user_sha256` is `stream.people.digest_of` their id; `timestamp` is when
    that was asked for, in seconds since 1970."""

    user_sha256: str
    timestamp: float = Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class BadEvent:
    """Why a message is no click, or no item. `reason` is one of a fixed set; `detail` is a line for people."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What `parse` accepts: bytes of a message, seconds that a click may lie in the future, bytes of an id as UTF-8."""

    message_bytes_max: int = 65_536
    future_s_max: float = 86_400.0
    id_bytes_max: int = 256


_LIMITS = Limits()


def parse(value: bytes | None, *, now: float | None = None, limits: Limits = _LIMITS) -> Click | Forget | BadEvent:
    """Read a message's value as a click (or as that somebody is to be forgotten), or say why it is none.

    Never raises for any bytes; pure where `now` is given.
    `now` is in seconds since 1970 (None: this computer's clock). Unknown fields are ignored, an optional field that is
    null counts as absent, and of a field given twice the last one counts. Integer ids become their decimal text.
    """
    if value is None:
        return BadEvent("tombstone", "the message has no value")
    fields = json_object(value, limits.message_bytes_max)
    if isinstance(fields, BadEvent):
        return fields
    try:
        if fields.get("event_type") == FORGET:
            return _forget(fields)
        return _click(fields, time.time() if now is None else now, limits)
    except _NoClickError as why:
        return why.event


def parse_click(value: bytes | None, *, now: float | None = None, limits: Limits = _LIMITS) -> Click | BadEvent:
    """As `parse`, for where only clicks may stand."""
    found = parse(value, now=now, limits=limits)
    return BadEvent("invalid-forget", f"{FORGET} may not stand here") if isinstance(found, Forget) else found


def encode(click: Click) -> bytes:
    """The JSON that `parse` reads; absent optional fields are left out."""
    return click.model_dump_json(exclude_none=True).encode()


def encode_forget(forget: Forget) -> bytes:
    """The JSON that `parse` reads."""
    return json.dumps({"event_type": FORGET, **forget.model_dump()}).encode()


def json_object(value: bytes, bytes_max: int) -> dict[str, Any] | BadEvent:
    """A message's value as a JSON object of at most so many bytes, or why it is none. Never raises."""
    if len(value) > bytes_max:
        return BadEvent("too-large", f"{len(value)} bytes; at most {bytes_max} are read")
    try:
        fields = from_json(value)
    except ValueError as error:
        return _no_json(value, error)
    if not isinstance(fields, dict):
        return BadEvent("not-an-object", f"a JSON object is needed, this is {kind(fields)}")
    return fields


class _NoClickError(Exception):
    """Carries a BadEvent from the field that is wrong to `parse`, and no further."""

    def __init__(self, reason: str, detail: str) -> None:
        self.event = BadEvent(reason, detail)


def _click(fields: Mapping[str, Any], now: float, limits: Limits) -> Click:
    event_id = fields.get("event_id")
    return Click(
        user_id=_id("user_id", fields.get("user_id"), limits.id_bytes_max),
        item_id=_id("item_id", fields.get("item_id"), limits.id_bytes_max),
        timestamp=_seconds(fields.get("timestamp"), now + limits.future_s_max),
        event_type=_event_type(fields.get("event_type")),
        event_id=None if event_id is None else _id("event_id", event_id, limits.id_bytes_max),
        value=_value(fields.get("value")),
    )


def _forget(fields: Mapping[str, Any]) -> Forget:
    named = [name for name in ("user_id", "item_id") if fields.get(name) is not None]
    if named:
        raise _NoClickError("invalid-forget", f"{FORGET} has no {named[0]}: no click may have that event type")
    if not is_digest(fields.get("user_sha256")):
        raise _NoClickError("invalid-forget", "user_sha256 must be 64 hexadecimal digits, lower case")
    # It may lie in the future: it must work whatever clock it was written by.
    return Forget(user_sha256=fields["user_sha256"], timestamp=_seconds(fields.get("timestamp"), math.inf))


def _id(name: str, value: Any, bytes_max: int) -> str:
    """An id as text: a string, or an integer in decimal."""
    if value is None:
        raise _NoClickError(f"missing-{name}", f"{name} is missing or null")
    if isinstance(value, int) and not isinstance(value, bool):
        # A decimal digit holds 3.3 bits. Checked before str(), which takes quadratic time and refuses long numbers.
        value = str(value) if value.bit_length() <= 4 * bytes_max else "9" * (bytes_max + 1)
    if not isinstance(value, str):
        raise _NoClickError(f"invalid-{name}", f"{name} must be a string or an integer, this is {kind(value)}")
    length = len(value.encode())
    if not 1 <= length <= bytes_max:
        size = "empty" if length == 0 else "too long"
        raise _NoClickError(f"invalid-{name}", f"{name} is {size}: it must have 1 to {bytes_max} bytes")
    return value


def id_problem(value: str) -> str | None:
    """Why nothing can have this id; None: it may."""
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        return "an id is UTF-8 text, this one is not"
    bytes_max = _LIMITS.id_bytes_max
    return None if 1 <= length <= bytes_max else f"an id has 1 to {bytes_max} bytes, this one has {length}"


def _seconds(value: Any, latest: float) -> float:
    """A time in seconds since 1970 from a number of seconds or from ISO 8601 with an offset, at most `latest`."""
    if value is None:
        raise _NoClickError("missing-timestamp", "timestamp is missing or null")
    seconds = _seconds_of_iso_8601(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise _NoClickError("invalid-timestamp", f"timestamp must be a number or ISO 8601, this is {kind(value)}")
    # Compared before it becomes a float: an integer of a thousand digits does not fit one.
    if not seconds >= 0 or seconds == math.inf:
        raise _NoClickError("invalid-timestamp", "timestamp is negative or not finite")
    if seconds > latest:
        hint = "; milliseconds?" if seconds <= 1_000 * latest else ""
        raise _NoClickError("future-timestamp", f"timestamp lies too far in the future{hint}: {_short(value)}")
    return float(seconds)


def _seconds_of_iso_8601(text: str) -> float:
    """A leap second counts as the first second of the next day, as POSIX has it: those since 1970 know of none."""
    leap = text[16:19] == ":60"
    try:
        if len(text) > _ISO_8601_CHARACTERS_MAX:
            raise ValueError
        moment = datetime.fromisoformat(text[:16] + ":59" + text[19:] if leap else text)
    except ValueError:
        raise _NoClickError("invalid-timestamp", f"timestamp is no ISO 8601 time: {_short(text)}") from None
    if moment.tzinfo is None:
        raise _NoClickError("invalid-timestamp", f"timestamp has no offset from UTC (as in +00:00): {_short(text)}")
    seconds = moment.timestamp() + leap
    if leap and int(seconds) % 86_400:
        raise _NoClickError("invalid-timestamp", f"leap seconds end a day in UTC: {_short(text)}")
    return seconds


def _event_type(value: Any) -> str:
    if value is None:
        return "click"
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= EVENT_TYPE_BYTES_MAX:
        raise _NoClickError("invalid-event_type", f"event_type must be 1 to {EVENT_TYPE_BYTES_MAX} bytes of text")
    return value


def _value(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _NoClickError("invalid-value", f"value must be a finite number or null, this is {kind(value)}")
    return number


def _no_json(value: bytes, error: ValueError) -> BadEvent:
    try:
        value.decode()
    except UnicodeDecodeError as why:
        return BadEvent("invalid-utf8", f"{why.reason} at byte {why.start}")
    return BadEvent("malformed-json", str(error)[:_DETAIL_CHARACTERS_MAX])


def kind(value: Any) -> str:
    """What people call a JSON value."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    names = {type(None): "null", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names[type(value)]


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of hundreds of digits"
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."
