"""Clicks as messages of a topic: `parse` reads one, `encode` writes one.

A message that is no click gives a value (`BadEvent`), never an exception, so that one bad message cannot stop the
stream. Times are parsed by stream/timestamps.py, and other names of fields mapped by stream/click_fields.py; `encode`
writes seconds, under our own names.

A message on the topic may also ask that a user is forgotten: `{"event_type": "nextclick.forget", "user_sha256": "...",
"timestamp": ...}`. It holds only a digest of the id (stream/user_ids.py), so that it can stay when everything else of
the user is erased; and since it stands in order among the clicks, a replay from the beginning forgets the user again.
It cannot be confused with a click: it has neither `user_id` nor `item_id`, and no click may have its event type.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field
from pydantic_core import from_json

from stream.click_fields import NEEDED, ClickFields, as_setting, at, paths_in, suggested
from stream.not_json import hint_of
from stream.redact import BOM, kind
from stream.timestamps import TimestampError, as_json, seconds_of
from stream.user_ids import is_digest

FORGET = "nextclick.forget"  # the event type
EVENT_TYPE_BYTES_MAX = 64
WHOLE_FLOATS_BELOW = 2**53  # beyond it a float is no certain integer
_DETAIL_CHARACTERS_MAX = 120
_HINT_CHARACTERS_MAX = 200
_NUMERIC = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?")  # as text
_NO_OBJECT_HINTS: dict[type, str] = {
    list: "a batch of clicks: send each as a message of its own",
    str: "if there is JSON in it, it was serialised twice",
}

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
        "invalid-timestamp",  # not finite, negative, a date by its digits, no number and no ISO 8601 with an offset
        "future-timestamp",  # later than Limits.future_s_max from now
        "invalid-event_type",
        "invalid-event_id",
        "invalid-value",
        "internal-error",  # readable, but our own code fails on it; the detail is the traceback's last line
        "invalid-forget",  # of the event type nextclick.forget, and no such event
    }
)


class Click(BaseModel, frozen=True):
    """One event of one user. `timestamp` is in seconds since 1970; with an `event_id` a redelivery is recognised."""

    user_id: str = Field(min_length=1)
    item_id: str = Field(min_length=1)
    timestamp: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="seconds since 1970; read too: milliseconds, microseconds, nanoseconds, ISO 8601 with an offset",
    )
    event_type: str = Field(default="click", min_length=1)
    event_id: str | None = Field(default=None, min_length=1)
    value: float | None = Field(default=None, allow_inf_nan=False)


class Forget(BaseModel, frozen=True):
    """A request to forget a user. `user_sha256` is `stream.user_ids.digest_of` the id; `timestamp` is the time of the
    request, in seconds since 1970."""

    user_sha256: str
    timestamp: float = Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class BadEvent:
    """Why a message is no click, or no item.

    `reason` is one of a fixed set; `detail` is a line for operators, which may quote the message; `hint` is the part of
    it that says what to do, and never quotes the message.
    """

    reason: str
    detail: str
    hint: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of `parse`: bytes of a message, seconds that a click may lie in the future, bytes of an id as UTF-8."""

    message_bytes_max: int = 65_536
    future_s_max: float = 86_400.0
    id_bytes_max: int = 256


_LIMITS = Limits()
_OUR_NAMES = ClickFields({})


def parse(
    value: bytes | None, *, now: float | None = None, limits: Limits = _LIMITS, names: ClickFields = _OUR_NAMES
) -> Click | Forget | BadEvent:
    """Parses a message's value as a click, or as a request to forget a user. It never raises, whatever the bytes are.

    Unknown fields are ignored, an optional field that is null counts as absent, and of a field given twice the last one
    counts. Integer ids become their decimal text, and so do floats that are integers below 2**53 (17.0 is 17); other
    ids are taken as they are, with their blanks. A `value` may be numeric text.

    Args:
        value: of the message.
        now: seconds since 1970; None: this computer's clock.
        limits: sizes and times that are accepted.
        names: paths of fields that the topic's messages name otherwise.

    Returns:
        The event, or why the message is none.
    """
    if value is None:
        return BadEvent("tombstone", "the message has no value")
    fields = json_object(value, limits.message_bytes_max)
    if isinstance(fields, BadEvent):
        return fields
    try:
        if fields.get("event_type") == FORGET:
            return _forget(fields)
        return _click(names.ours(fields) if names.paths else fields, time.time() if now is None else now, limits)
    except TimestampError as why:
        bad = BadEvent(why.reason, why.detail, why.hint)
    except _NoClickError as why:
        bad = why.event
    return _with_names(bad, fields, names) if bad.reason.startswith("missing-") else bad


def parse_click(value: bytes | None, *, now: float | None = None, limits: Limits = _LIMITS) -> Click | BadEvent:
    """Parses a click like `parse`, where a request to forget a user is not allowed."""
    event = parse(value, now=now, limits=limits)
    return BadEvent("invalid-forget", f"{FORGET} is not allowed here") if isinstance(event, Forget) else event


def encode(click: Click) -> bytes:
    """Returns the JSON that `parse` reads; absent optional fields are left out."""
    timestamp = as_json(click.timestamp)
    if isinstance(timestamp, str):  # as a number it would be read as another time
        return json.dumps(click.model_dump(exclude_none=True) | {"timestamp": timestamp}).encode()
    return click.model_dump_json(exclude_none=True).encode()


def encode_forget(forget: Forget) -> bytes:
    """Returns the JSON that `parse` reads."""
    return json.dumps({"event_type": FORGET, **forget.model_dump()}).encode()


def json_object(value: bytes, bytes_max: int) -> dict[str, Any] | BadEvent:
    """Returns a message's value as a JSON object of at most `bytes_max` bytes, or why it is none. Never raises."""
    if len(value) > bytes_max:
        return BadEvent("too-large", f"{len(value)} bytes; at most {bytes_max} are read")
    try:
        fields = from_json(value)
    except ValueError as error:
        try:
            # A byte order mark means nothing in UTF-8, and some programs write one.
            fields = from_json(value.removeprefix(BOM)) if value.startswith(BOM) else None
        except ValueError:
            fields = None
        if fields is None:
            return _no_json(value, error)
    if not isinstance(fields, dict):
        hint = _NO_OBJECT_HINTS.get(type(fields), "")
        return _bad("not-an-object", f"a JSON object is needed, this is {kind(fields)}", hint)
    return fields


class _NoClickError(Exception):
    """Carries a BadEvent from the wrong field to `parse`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.event = BadEvent(reason, detail)


def _bad(reason: str, detail: str, hint: str = "") -> BadEvent:
    return BadEvent(reason, f"{detail}; {hint}" if hint else detail, hint)


def _with_names(bad: BadEvent, message: Mapping[str, Any], names: ClickFields) -> BadEvent:
    """Adds a hint to a missing field: the message may have it under another name."""
    field = bad.reason.removeprefix("missing-")
    missing = [name for name in NEEDED if at(message, names.paths.get(name, name)) is None]
    suggestions = suggested(paths_in(message), missing)
    configured = f"NEXTCLICK_CLICK_FIELDS says that it is {names.paths[field]}" if field in names.paths else ""
    setting = as_setting({name: path for name, path in names.paths.items() if name not in missing} | suggestions)
    suggestion = f"is it {suggestions[field]}? For a topic, set {setting}" if field in suggestions else ""
    hint = "; ".join(part for part in (configured, suggestion) if part)
    return _bad(bad.reason, bad.detail, hint if len(hint) <= _HINT_CHARACTERS_MAX else "")


def _click(fields: Mapping[str, Any], now: float, limits: Limits) -> Click:
    event_type, event_id, value = fields.get("event_type"), fields.get("event_id"), fields.get("value")
    return Click(
        user_id=_id("user_id", fields.get("user_id"), limits.id_bytes_max),
        item_id=_id("item_id", fields.get("item_id"), limits.id_bytes_max),
        timestamp=seconds_of(fields.get("timestamp"), now=now, ahead_s_max=limits.future_s_max),
        event_type="click" if event_type is None else _event_type(event_type),
        event_id=None if event_id is None else _id("event_id", event_id, limits.id_bytes_max),
        value=None if value is None else _value(value),
    )


def _forget(fields: Mapping[str, Any]) -> Forget:
    named = [name for name in ("user_id", "item_id") if fields.get(name) is not None]
    if named:
        raise _NoClickError("invalid-forget", f"{FORGET} has no {named[0]}: no click may have that event type")
    if not is_digest(fields.get("user_sha256")):
        raise _NoClickError("invalid-forget", "user_sha256 must be 64 hexadecimal digits, lower case")
    # It may lie in the future: it must work whatever the clock of the computer that wrote it.
    timestamp = seconds_of(fields.get("timestamp"), now=0.0, ahead_s_max=math.inf)
    return Forget(user_sha256=fields["user_sha256"], timestamp=timestamp)


def _id(name: str, value: Any, bytes_max: int) -> str:
    """Returns an id as text: a string, or an integer in decimal."""
    text = value if isinstance(value, str) else _id_of_number(name, value, bytes_max)
    length = len(text) if text.isascii() else len(text.encode())
    if not 1 <= length <= bytes_max:
        size = "empty" if length == 0 else "too long"
        raise _NoClickError(f"invalid-{name}", f"{name} is {size}: it must have 1 to {bytes_max} bytes")
    return text


def _id_of_number(name: str, value: Any, bytes_max: int) -> str:
    if value is None:
        raise _NoClickError(f"missing-{name}", f"{name} is missing or null")
    if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE_FLOATS_BELOW:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _NoClickError(f"invalid-{name}", f"{name} must be a string or an integer, this is {kind(value)}")
    # A decimal digit holds 3.3 bits. Checked before str(), which takes quadratic time and refuses long numbers.
    return str(value) if value.bit_length() <= 4 * bytes_max else "9" * (bytes_max + 1)


def id_problem(value: str) -> str | None:
    """Returns why this is no valid id; None if it is valid."""
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        return "an id is UTF-8 text, this one is not"
    bytes_max = _LIMITS.id_bytes_max
    return None if 1 <= length <= bytes_max else f"an id has 1 to {bytes_max} bytes, this one has {length}"


def _event_type(value: Any) -> str:
    if not isinstance(value, str):
        raise _NoClickError("invalid-event_type", f"event_type must be text, this is {kind(value)}")
    if not 1 <= len(value.encode()) <= EVENT_TYPE_BYTES_MAX:
        size = "too long" if value else "empty; leave it out or set it to null for a click"
        raise _NoClickError(
            "invalid-event_type", f"event_type must have 1 to {EVENT_TYPE_BYTES_MAX} bytes, it is {size}"
        )
    if value == FORGET:
        raise _NoClickError("invalid-forget", f"no click may have the event type {FORGET}")
    return value


def _value(value: Any) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value) if not isinstance(value, str) or _NUMERIC.fullmatch(value.strip()) else math.nan
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        what = "text that is no number" if isinstance(value, str) else kind(value)
        raise _NoClickError("invalid-value", f"value must be a finite number or null, this is {what}")
    return number


def _no_json(value: bytes, error: ValueError) -> BadEvent:
    """Returns why a value is no JSON, and what it may be instead."""
    hint = hint_of(value, str(error))
    try:
        value.decode()
    except UnicodeDecodeError as why:
        return _bad("invalid-utf8", f"{why.reason} at byte {why.start}", hint or "is it Avro or Protobuf?")
    return _bad("malformed-json", str(error)[:_DETAIL_CHARACTERS_MAX], hint)
