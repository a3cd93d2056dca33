"""What everything that reads and writes our keys in Redis shares: a client, its address, and errors of one line."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from stream.addresses import REDIS_PORT, host_and_port
from stream.redis_errors import lists_error

VALUE_BYTES_MAX = 4 * 2**20

log = logging.getLogger(__name__)


class RedisValues:
    """Values of at most `value_bytes_max` bytes. All methods raise ListsError when Redis does not answer or refuses."""

    def __init__(self, client: redis.Redis, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        self._client = client
        self._value_bytes_max = value_bytes_max
        self.address = _address(client)

    @property
    def client(self) -> redis.Redis:
        """The client of Redis, for others that read and write keys of their own."""
        return self._client

    def _value(self, key: str) -> bytes | str | None:
        """Returns a value of at most `value_bytes_max` bytes; None if there is none, or it is larger."""
        with self._clear_errors():
            value = self._client.getrange(key, 0, self._value_bytes_max)
        return self._bounded(key, value)

    def _values(self, keys: Sequence[str]) -> list[bytes | str | None]:
        """The same of several keys, in one round trip."""
        with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.getrange(key, 0, self._value_bytes_max)
            return [self._bounded(key, value) for key, value in zip(keys, pipeline.execute(), strict=True)]

    def _bounded(self, key: str, value: bytes | str | None) -> bytes | str | None:
        if value is not None and len(value) > self._value_bytes_max:
            log.warning("%s in Redis holds more than %d bytes; it counts as absent", key, self._value_bytes_max)
            return None
        return value or None

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turns every error of Redis into a ListsError of one line."""
        try:
            yield
        except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
            raise lists_error(error, self.address, _secrets(self._client)) from error


def parse_object(key: str, value: bytes | str | None) -> dict[str, Any] | None:
    """Parses the JSON object of a key; None if there is none."""
    if value is None:
        return None
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        log.warning("%s in Redis holds no JSON object; it counts as absent", key)
        return None
    return parsed


def _address(client: redis.Redis) -> str:
    """Returns the address of a client as a URL without user and password."""
    if address := getattr(client, "address", None):
        return str(address)
    where = client.connection_pool.connection_kwargs
    db = where.get("db") or 0
    if "path" in where:
        return f"unix://{where['path']}" + (f"?db={db}" if db else "")
    scheme = "rediss" if "ssl_ca_certs" in where or "ssl_cert_reqs" in where else "redis"
    return f"{scheme}://{host_and_port(where.get('host', 'localhost'), where.get('port', REDIS_PORT))}/{db}"


def _secrets(client: redis.Redis) -> tuple[str, ...]:
    """What no message may show."""
    if getattr(client, "address", None):
        return tuple(getattr(client, "secrets", ()))
    password = client.connection_pool.connection_kwargs.get("password")
    return (password,) if password else ()
