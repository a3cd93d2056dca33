"""Impressions: what was shown to whom, where, and how likely that was: `parse` reads a record, `encode` writes one.

One record is one list that was shown. It is what `nextclick evaluate-policy` reads: the propensity of an item is the
probability with which the policy showed it at its position, given the items above it. `reward` is absent when the list
is shown; a program that joins clicks to impressions writes it later, 0 for an item that was not clicked.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stream.events import WHOLE_FLOATS_BELOW, BadEvent, Limits, json_object
from stream.timestamps import TimestampError, seconds_of

ITEMS_MAX = 1_000
_TEXT_BYTES_MAX = 256
_LIMITS = Limits()

#: Every `BadEvent.reason` there is of an impression, beside those that say why a value is no JSON object.
REASONS = frozenset(
    {
        "tombstone",
        "too-large",
        "invalid-utf8",
        "malformed-json",
        "not-an-object",
        *(f"{what}-{name}" for what in ("missing", "invalid") for name in ("request_id", "timestamp", "policy")),
        *(f"{what}-{name}" for what in ("missing", "invalid") for name in ("version", "items", "explored")),
        "invalid-user_id",
        "future-timestamp",
    }
)


def _whole(value: Any) -> Any:
    """An integer that is written as 5.0; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE_FLOATS_BELOW else value


def _id(value: Any) -> Any:
    """A whole number as the text that it is as an id, as of a click."""
    value = _whole(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 512 else value


def _short(value: str) -> str:
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("it is no UTF-8 text") from None
    if length > _TEXT_BYTES_MAX:
        raise ValueError(f"it must have 1 to {_TEXT_BYTES_MAX} bytes, it has {length:,}")
    return value


_Text = Annotated[str, Field(min_length=1, max_length=_TEXT_BYTES_MAX)]
_Id = Annotated[_Text, BeforeValidator(_id)]
_Whole = Annotated[int, BeforeValidator(_whole)]
_STRICT = ConfigDict(strict=True, frozen=True, extra="ignore")


class ShownItem(BaseModel):
    """One item of a list. `position` counts from 1; `propensity` is above 0, so that it can be divided by; None: it is
    not known, and the record tells nothing of other policies."""

    model_config = _STRICT

    item_id: _Id
    position: _Whole = Field(ge=1, le=ITEMS_MAX)
    propensity: float | None = Field(default=None, gt=0, le=1)
    explored: bool = False
    reward: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> "ShownItem":
        _short(self.item_id)
        return self


class Impression(BaseModel):
    """One list that was shown. `timestamp` is in seconds since 1970; a visitor without an account has no `user_id`."""

    model_config = _STRICT

    request_id: _Id
    user_id: _Id | None = None
    timestamp: float = Field(ge=0, allow_inf_nan=False)
    policy: _Text
    version: _Whole = Field(ge=0, description="of the model")
    explored: bool = Field(description="whether any slot could have been drawn")
    items: tuple[ShownItem, ...] = Field(min_length=1, max_length=ITEMS_MAX)

    @model_validator(mode="after")
    def _check(self) -> "Impression":
        for name in ("request_id", "user_id", "policy"):
            text = getattr(self, name)
            if text is not None:
                try:
                    _short(text)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        for name, values in (
            ("position", [item.position for item in self.items]),
            ("item_id", [item.item_id for item in self.items]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"items: a {name} stands twice in the list")
        return self


def parse(
    value: bytes | None, *, now: float | None = None, limits: Limits = _LIMITS, bytes_max: int = 1 << 20
) -> Impression | BadEvent:
    """Reads a record, or says why it is none: the reason names the field. Never raises, whatever the bytes are.

    Args:
        value: of the message.
        now: seconds since 1970, which a timestamp may exceed by `limits.future_s_max`; None: any time is taken.
        limits: times that are accepted.
        bytes_max: of the record; a list is longer than a click.
    """
    if value is None:
        return BadEvent("tombstone", "the message has no value")
    fields = json_object(value, bytes_max)
    return fields if isinstance(fields, BadEvent) else parse_fields(fields, now=now, limits=limits)


def parse_fields(
    given: Mapping[str, Any], *, now: float | None = None, limits: Limits = _LIMITS
) -> Impression | BadEvent:
    """Reads a record that is no text any more; the rest as `parse`."""
    fields = dict(given)
    try:
        if fields.get("timestamp") is not None:
            ahead = math.inf if now is None else limits.future_s_max
            fields["timestamp"] = seconds_of(fields["timestamp"], now=now or 0.0, ahead_s_max=ahead)
        if isinstance(fields.get("items"), list):
            fields["items"] = tuple(fields["items"])
        return Impression.model_validate({name: one for name, one in fields.items() if one is not None})
    except TimestampError as why:
        return BadEvent(why.reason, why.detail, why.hint)
    except ValidationError as error:
        return _bad(error.errors(include_url=False, include_input=False)[0])


def encode(impression: Impression) -> bytes:
    """The JSON that `parse` reads; what is absent is left out."""
    return impression.model_dump_json(exclude_none=True).encode()


def _bad(error: ErrorDetails) -> BadEvent:
    path, message = list(error["loc"]), str(error["msg"]).removeprefix("Value error, ")
    if not path:  # of the whole: the message names the field
        name, _, message = message.partition(": ")
        path = [name]
    where = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).removeprefix(".")
    missing = error["type"] == "missing"
    reason = f"{'missing' if missing and len(path) == 1 else 'invalid'}-{path[0]}"
    message = "is missing or null" if missing else message[0].lower() + message[1:]
    return BadEvent(reason, f"{where}: {message}"[:240])
