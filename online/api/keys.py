"""Keys for the API: made here, known to the API by their hashes alone.

A key is 256 random bits. It cannot be guessed, so it is enough to keep its plain SHA-256: salt and slow
hashing are for passwords, which are guessable, and would only make each request slow.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

_RANDOM_BYTES = 32
_PREFIX = "nck_"  # so that scanners of leaked secrets, and readers, see what it is
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def make_key(name: str) -> tuple[str, str]:
    """A new key, and the entry of `NEXTCLICK_API_KEYS` that lets it in. Raises ValueError for a name that is none."""
    if not NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits, dots, dashes and underscores")
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return key, f"{name}:{_hash(key.encode())}"


class ApiKeys:
    """The keys that may ask, of entries `NAME:SHA-256`."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._hashes = dict(entry.split(":") for entry in entries)

    def __len__(self) -> int:
        return len(self._hashes)

    def name_of(self, key: bytes) -> str | None:
        """The name of the key; None where it is unknown. How long it takes says nothing about any key."""
        shown, found = _hash(key), None
        for name, known in self._hashes.items():  # all of them, whichever it is
            if hmac.compare_digest(shown, known):
                found = name
        return found


def _hash(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
