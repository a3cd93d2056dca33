"""Items as they stand on their topic: `parse` reads one, `encode` writes one.

The topic is compacted and keyed by item: the latest record of a key is all there is to say about the item. A record
without a value, a tombstone, withdraws it. `available` decides whether lists may hold the item; `title`, `tags` and
attributes, which are all other fields with one number, text or truth value, are what filters go by (docs/filters.md);
these and `vector` are used in ranking (docs/content.md).
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, Field
from pydantic_core import to_json

from stream.events import BadEvent, Limits, json_object
from stream.redact import kind

#: Every `BadEvent.reason` there is of an item, beside those that say why a value is no JSON object.
REASONS = frozenset(
    {
        "missing-key",
        "invalid-key",  # no UTF-8, empty, or longer than Limits.id_bytes_max
        "too-large",  # longer than Limits.message_bytes_max, which bounds every field
        "invalid-utf8",
        "malformed-json",
        "not-an-object",
        "invalid-title",
        "invalid-tags",
        "invalid-available",
        "invalid-vector",
        "internal-error",  # readable, but our own code fails on it; the detail is the traceback's last line
    }
)


FIELDS = frozenset({"title", "tags", "available", "vector"})  # those that are no attributes
ATTRIBUTES_MAX = 64  # of an item; the first ones count
NAME_BYTES_MAX = 64  # of an attribute; others are ignored, like the values below
TEXT_BYTES_MAX = 256  # of an attribute's value


class Item(BaseModel, frozen=True):
    """One thing that can be recommended. One that is not `available` stands in no list."""

    item_id: str = Field(min_length=1)
    title: str | None = None
    tags: tuple[str, ...] = ()
    available: bool = True
    vector: tuple[float, ...] | None = None
    attributes: dict[str, bool | float | str] = {}  # by name, in the order of the record


_LIMITS = Limits()


def parse(key: bytes | None, value: bytes | None, *, limits: Limits = _LIMITS) -> Item | BadEvent:
    """Read a record as an item, or say why it is none. Never raises for any bytes; pure.

    The key is the item's id as text. A field that is null counts as absent. Fields that are not in `FIELDS` are
    attributes, or ignored where they hold a list, an object, a number that is not finite as a float, or a long text. A
    tombstone is an item that is not available.
    """
    item_id = key_text(key, limits.id_bytes_max, "an item")
    if isinstance(item_id, BadEvent):
        return item_id
    if value is None:
        return Item(item_id=item_id, available=False)
    fields = json_object(value, limits.message_bytes_max)
    if isinstance(fields, BadEvent):
        return fields
    bad = _first_wrong(fields)
    if bad is not None:
        return bad
    given = {name: fields[name] for name in ("title", "tags", "available", "vector") if fields.get(name) is not None}
    return Item(item_id=item_id, **given, attributes=attributes_in(fields, FIELDS))


def encode(item: Item) -> bytes:
    """The value that `parse` reads under the item's id as the key; what is absent is left out."""
    own = item.model_dump(mode="json", exclude={"item_id", "attributes"}, exclude_none=True)
    return to_json(item.attributes | own)


def attributes_in(fields: Mapping[str, Any], others: Collection[str]) -> dict[str, bool | float | str]:
    """The attributes of a record, by name: its fields, without `others`, that hold one value."""
    found: dict[str, bool | float | str] = {}
    for name, value in fields.items():
        if name in others or not name or len(name.encode()) > NAME_BYTES_MAX or len(found) == ATTRIBUTES_MAX:
            continue
        if isinstance(value, bool) or (isinstance(value, str) and len(value.encode()) <= TEXT_BYTES_MAX):
            found[name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
            found[name] = float(value)
    return found


def key_text(key: bytes | None, bytes_max: int, whose: str) -> str | BadEvent:
    """The id that is a record's key. `whose`: "an item", for errors."""
    if key is None:
        return BadEvent("missing-key", f"the record has no key; {whose}'s key is its id")
    if not 1 <= len(key) <= bytes_max:
        return BadEvent("invalid-key", f"the key has {len(key)} bytes: {whose}'s id must have 1 to {bytes_max}")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        return BadEvent("invalid-key", f"the key is no UTF-8 text: {error.reason} at byte {error.start}")


def _first_wrong(fields: Mapping[str, Any]) -> BadEvent | None:
    title, tags, available, vector = (fields.get(name) for name in ("title", "tags", "available", "vector"))
    if title is not None and not isinstance(title, str):
        return BadEvent("invalid-title", f"title must be text or null, this is {kind(title)}")
    if (bad := wrong_tags(tags)) is not None:
        return bad
    if available is not None and not isinstance(available, bool):
        return BadEvent("invalid-available", f"available must be true, false or null, this is {kind(available)}")
    if vector is not None and not (_is_list(vector, int | float) and all(map(_is_finite, vector))):
        return BadEvent("invalid-vector", "vector must be a list of finite numbers, or null")
    return None


def wrong_tags(tags: Any) -> BadEvent | None:
    """Why a record's `tags` are none; None: they are, or there are none."""
    if tags is not None and not _is_list(tags, str):
        return BadEvent("invalid-tags", "tags must be a list of texts, or null")
    return None


def _is_list(value: Any, of: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, of) and not isinstance(one, bool) for one in value)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that fits no float
        return False
