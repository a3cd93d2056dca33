"""Users as they stand on their topic: `parse` reads a record, `encode` writes one.

The topic is compacted and keyed by user: the latest record of a key is all there is to say about the user. A record
without a value, a tombstone, deletes it. `tags` and attributes, which are all other fields with one number, text or
truth value, say which users are alike; limits are those of items (stream/items.py).
"""

from pydantic import BaseModel, Field
from pydantic_core import to_json

from stream.events import BadEvent, Limits, json_object
from stream.items import attributes_in, key_text, wrong_tags

#: Every `BadEvent.reason` there is of a user, beside those that say why a value is no JSON object.
REASONS = frozenset(
    {
        "missing-key",
        "invalid-key",  # no UTF-8, empty, or longer than Limits.id_bytes_max
        "too-large",
        "invalid-utf8",
        "malformed-json",
        "not-an-object",
        "invalid-tags",
        "internal-error",
    }
)
FIELDS = frozenset({"tags"})  # those that are no attributes

_LIMITS = Limits()


class User(BaseModel, frozen=True):
    """What is known of a user beside clicks. With neither tags nor attributes: nothing any more."""

    user_id: str = Field(min_length=1)
    tags: tuple[str, ...] = ()
    attributes: dict[str, bool | float | str] = {}  # by name, in the order of the record


def parse(key: bytes | None, value: bytes | None, *, limits: Limits = _LIMITS) -> User | BadEvent:
    """Reads a record as a user, or says why it is none. Never raises for any bytes; pure.

    The key is the user's id as text. Fields are read as those of items are; a tombstone is a user of whom nothing is
    known.
    """
    user_id = key_text(key, limits.id_bytes_max, "a user")
    if isinstance(user_id, BadEvent):
        return user_id
    if value is None:
        return User(user_id=user_id)
    fields = json_object(value, limits.message_bytes_max)
    if isinstance(fields, BadEvent):
        return fields
    if (bad := wrong_tags(fields.get("tags"))) is not None:
        return bad
    return User(user_id=user_id, tags=fields.get("tags") or (), attributes=attributes_in(fields, FIELDS))


def encode(user: User) -> bytes:
    """The value that `parse` reads under the user's id as the key."""
    return to_json(user.attributes | ({"tags": user.tags} if user.tags else {}))
