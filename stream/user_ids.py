"""User ids in messages, and their digests: so that a forgotten user is recognised although the id is not kept.

The digest is the SHA-256 of the id. It does not reveal the id, but an operator who has the id can compare it.
"""

import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from pydantic_core import from_json

from stream.click_fields import at
from stream.redact import BOM

_DIGEST = re.compile(r"[0-9a-f]{64}")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_WORDS = re.compile(r"[^\s\"'{}\[\](),:;=<>]+")
_NOT_USERS = ("item_id", "event_id", "event_type")  # fields whose values are no user ids


def digest_of(user_id: str) -> str:
    """Returns the SHA-256 of a user id, as 64 hexadecimal digits."""
    return sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()


def is_digest(text: Any) -> bool:
    """Returns whether this is the text of a digest."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def hash_of_digest(digest: str) -> int:
    """Returns 63 bits of a digest, never 0: the user's hash in int64 arrays, where 0 stands for no user."""
    return int(digest[:16], 16) >> 1 or 1


def user_ids_in(key: bytes | None, value: bytes | None, user_path: str | None = None) -> set[str]:
    """Returns the user ids that a message may hold, however broken it is.

    They are its key and the value of `user_id`. If that cannot be read, every other value counts too, and every word of
    a message that is no JSON.

    Args:
        key: of the message.
        value: of the message.
        user_path: path of the user id, if the topic's messages name it otherwise (stream/click_fields.py).
    """
    ids = set() if key is None else {key.decode(errors="replace")}
    if value is None:
        return ids
    try:
        fields = from_json(value.removeprefix(BOM))
    except ValueError:
        return ids | set(_words(value.decode(errors="replace")))
    if not isinstance(fields, dict):
        return ids | set(_names(fields))
    at_names = [fields.get("user_id"), at(fields, user_path) if user_path else None]
    return ids | ({name for name in map(_name, at_names) if name} or set(_names(fields)))


def texts_in(value: bytes) -> set[str]:
    """Returns every text in a JSON value, or every word of a value that is no JSON. Numbers (counts, times) are left
    out."""
    try:
        fields = from_json(value)
    except ValueError:
        return set(_words(value.decode(errors="replace")))
    return set(_names(fields, _text))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _name(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # as stream/events.py reads it
    is_integer = isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 1_024
    return str(value) if is_integer else None


def _names(value: Any, name_of: Callable[[Any], str | None] = _name) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting.extend(field for name, field in one.items() if name not in _NOT_USERS)
        elif isinstance(one, list):
            waiting.extend(one)
        elif (name := name_of(one)) is not None:
            yield name


def _words(text: str) -> Iterator[str]:
    """Yields quoted texts, also unescaped, and the words between blanks and punctuation."""
    for quoted in _QUOTED.findall(text):
        yield quoted[1:-1]
        try:
            yield from_json(quoted)
        except ValueError:
            continue
    yield from _WORDS.findall(text)
