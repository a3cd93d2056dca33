"""Whom a message is about, by a digest: so that somebody can be recognised who is not to be named any more.

The digest is the SHA-256 of the id. It names nobody, but whoever has the id can find out whether it is this one.
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
_NO_PEOPLE = ("item_id", "event_id", "event_type")  # fields whose values are other names


def digest_of(user_id: str) -> str:
    """64 hexadecimal digits."""
    return sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()


def is_digest(text: Any) -> bool:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def owner_number(digest: str) -> int:
    """63 bits of a digest, never 0: what belongs to somebody can carry it in an array."""
    return int(digest[:16], 16) >> 1 or 1


def people_in(key: bytes | None, value: bytes | None, user_path: str | None = None) -> set[str]:
    """The ids that a message may be about, however broken it is: its key; `user_id`; what stands at `user_path`, where
    users are called otherwise (stream/click_fields.py); where that cannot be read, every other value, and of what is no
    JSON every word."""
    found = set() if key is None else {key.decode(errors="replace")}
    if value is None:
        return found
    try:
        fields = from_json(value.removeprefix(BOM))
    except ValueError:
        return found | set(_words(value.decode(errors="replace")))
    if not isinstance(fields, dict):
        return found | set(_names(fields))
    at_names = [fields.get("user_id"), at(fields, user_path) if user_path else None]
    return found | ({name for name in map(_name, at_names) if name} or set(_names(fields)))


def texts_in(value: bytes) -> set[str]:
    """Every text in a JSON value; of what is no JSON every word. A number counts as none: it is a count, or a time."""
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
            waiting.extend(mine for name, mine in one.items() if name not in _NO_PEOPLE)
        elif isinstance(one, list):
            waiting.extend(one)
        elif (name := name_of(one)) is not None:
            yield name


def _words(text: str) -> Iterator[str]:
    """Quoted texts, unescaped, and what stands between blanks and punctuation."""
    for quoted in _QUOTED.findall(text):
        yield quoted[1:-1]
        try:
            yield from_json(quoted)
        except ValueError:
            continue
    yield from _WORDS.findall(text)
