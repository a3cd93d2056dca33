"""What users have hidden, in Redis: who hands out a list leaves it out, whether a worker runs or not.

| key | value | lifetime |
| --- | --- | --- |
| `nextclick:hidden:{user_id}` | JSON object: by item, until when (seconds since 1970); null: for good | `ttl_s` |

A user who has hidden nothing has no such key. Its lifetime is longer than that of lists, and it is renewed often enough
that no list of the user, nor the popular one, outlives it.
"""

import json
from collections.abc import Mapping

import redis

from stream.redis_values import VALUE_BYTES_MAX, RedisValues, parse_object

LIFETIMES = 2  # of a list: a key's own lifetime
RENEWALS = 4  # in a key's lifetime, so that what is left of it always exceeds the lifetime of a list
HIDDEN_KEY = "nextclick:hidden:"


def hidden_key(user_id: str) -> str:
    """Returns the key of what a user has hidden."""
    return HIDDEN_KEY + user_id


def hidden_at(user_id: str, value: bytes | str, at: float) -> frozenset[str]:
    """Returns the items that a user must not be shown at a time of the stream, in seconds since 1970.

    A value that is no JSON object hides nothing, with a warning in the log.
    """
    items = parse_object(ascii(hidden_key(user_id)), value) or {}
    return frozenset(item for item, until in items.items() if not isinstance(until, int | float) or until > at)


class HiddenRecords(RedisValues):
    """Writes these keys. All methods raise ListsError when Redis does not answer or refuses."""

    def __init__(self, client: redis.Redis, *, list_ttl_s: int, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        """`list_ttl_s`: lifetime of lists, in seconds."""
        super().__init__(client, value_bytes_max)
        self.ttl_s = LIFETIMES * list_ttl_s

    def write(self, hidden: Mapping[str, Mapping[str, float | None]]) -> None:
        """Writes what users have hidden in one round trip: by user and item, until when, in seconds since 1970; None:
        for good. The key of a user without such items is deleted."""
        with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
            for user_id, items in hidden.items():
                if items:
                    value = json.dumps(items, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
                    pipeline.set(hidden_key(user_id), value, ex=self.ttl_s)
                else:
                    pipeline.delete(hidden_key(user_id))
            pipeline.execute()
