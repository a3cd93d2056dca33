"""What users say of items, beside their clicks: `parse` reads a record of the feedback topic, `encode` writes one.

A record is keyed by its user, so that the records of one user stay in order; of one item the latest record counts. The
topic is not compacted: a user has a record for each item. Like the topic of clicks it may hold requests to forget a
user (`stream.events.Forget`), so that a worker that reads it from its beginning forgets the user again.
"""

import json
import math
import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from stream import events
from stream.events import FORGET, BadEvent, Forget, Limits, id_problem, json_object
from stream.timestamps import TimestampError, as_json, seconds_of

Kind = Literal["hide", "unhide", "dislike"]
_LIMITS = Limits()

#: Every `BadEvent.reason` there is of feedback, beside those that say why a value is no JSON object.
REASONS = frozenset(
    {
        "tombstone",
        "too-large",
        "invalid-utf8",
        "malformed-json",
        "not-an-object",
        *(f"{what}-{name}" for what in ("missing", "invalid") for name in ("user_id", "item_id", "kind", "timestamp")),
        "invalid-until",
        "future-timestamp",
        "invalid-forget",
        "internal-error",
    }
)


def _as_text(value: Any) -> Any:
    """A whole number as the text that it is as an id, as of a click."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 512 else value


def _checked(value: str) -> str:
    if (problem := id_problem(value)) is not None:
        raise ValueError(problem)
    return value


_Id = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked)]


class Feedback(BaseModel):
    """What a user says of an item: not to show it (`hide`), to show it again (`unhide`), or a `dislike`.

    `until` is when a hidden item comes back, in seconds since 1970; None: never; of a dislike: after
    NEXTCLICK_DISLIKE_DAYS. `timestamp` is when the user said so, in seconds since 1970.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    user_id: _Id
    item_id: _Id
    kind: Kind
    until: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    timestamp: float = Field(ge=0, allow_inf_nan=False)


def parse(value: bytes | None, *, now: float | None = None, limits: Limits = _LIMITS) -> Feedback | Forget | BadEvent:
    """Reads a record, or says why it is none: the reason names the field. Never raises, whatever the bytes are.

    Times are read as those of clicks (stream/timestamps.py). Unknown fields are ignored.

    Args:
        value: of the message.
        now: seconds since 1970, which `timestamp` may exceed by `limits.future_s_max`; None: this computer's clock.
        limits: sizes and times that are accepted.
    """
    if value is None:
        return BadEvent("tombstone", "the message has no value")
    fields = json_object(value, limits.message_bytes_max)
    if isinstance(fields, BadEvent):
        return fields
    if fields.get("event_type") == FORGET:
        return _forget(value, limits)
    fields = {name: one for name, one in fields.items() if one is not None}
    field = "timestamp"
    try:
        if "timestamp" in fields:
            at = time.time() if now is None else now
            fields["timestamp"] = seconds_of(fields["timestamp"], now=at, ahead_s_max=limits.future_s_max)
        field = "until"
        if "until" in fields:
            fields["until"] = seconds_of(fields["until"], now=0.0, ahead_s_max=math.inf)
        return Feedback.model_validate(fields)
    except TimestampError as why:
        reason = why.reason if field == "timestamp" else "invalid-until"
        return BadEvent(reason, why.detail.replace("timestamp", field, 1), why.hint)
    except ValidationError as error:
        return _bad(error.errors(include_url=False, include_input=False)[0])


def encode(feedback: Feedback) -> bytes:
    """The JSON that `parse` reads; what is absent is left out."""
    fields = feedback.model_dump(exclude_none=True)
    times = {name: as_json(fields[name]) for name in ("until", "timestamp") if name in fields}
    return json.dumps(fields | times).encode()


def _forget(value: bytes, limits: Limits) -> Forget | BadEvent:
    found = events.parse(value, limits=limits)
    assert not isinstance(found, events.Click)  # no click has that event type
    return found


def _bad(error: ErrorDetails) -> BadEvent:
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return BadEvent(f"missing-{name}", f"{name} is missing or null")
    message = str(error["msg"]).removeprefix("Value error, ")
    return BadEvent(f"invalid-{name}", f"{name}: {message[0].lower()}{message[1:]}"[:240])
