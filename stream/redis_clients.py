"""Opens a client of Redis by its URL: one server, a cluster, or a primary that sentinels know.

Each way of deployment is one entry of `OPENERS`. Clients connect when they are first used, and give up within seconds.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from stream.addresses import CLUSTER, SENTINEL, SINGLE, AddressError, RedisAddress, redis_address
from stream.redis_cluster import ClusterClient
from stream.redis_errors import ListsError

CONNECT_S_MAX = 1.0
ANSWER_S_MAX = 2.0
_NO_OPTIONS: Mapping[str, Any] = {}


class _EndedByTimeout:
    """A connection that is not used again after a timeout, as redis-py's others are not: the primary may have moved."""

    def read_response(self, *args: Any, disconnect_on_error: bool | None = True, **options: Any) -> Any:
        return super().read_response(*args, disconnect_on_error=disconnect_on_error, **options)  # type: ignore[misc]


class _PrimaryConnection(_EndedByTimeout, SentinelManagedConnection):
    pass


class _PrimaryTlsConnection(_EndedByTimeout, SentinelManagedSSLConnection):
    pass


class SingleClient(redis.Redis):
    """The client of one server, which can be asked for another one of the same server for an event loop."""

    open_asynchronous: Callable[[], redis.asyncio.Redis]


class SentinelClient(redis.Redis):
    """The client of a primary that sentinels know; each new connection asks them where it is."""

    address = ""
    secrets: tuple[str, ...] = ()


class _Waits(NamedTuple):
    """Longest waits, in seconds."""

    connect_s_max: float
    answer_s_max: float

    def options(self) -> dict[str, Any]:
        return {"socket_connect_timeout": self.connect_s_max, "socket_timeout": self.answer_s_max}


def connect(
    url: str,
    options: Mapping[str, Any] = _NO_OPTIONS,
    *,
    connect_s_max: float = CONNECT_S_MAX,
    answer_s_max: float = ANSWER_S_MAX,
) -> redis.Redis:
    """Returns a client that gives up on a dead server within seconds. It connects when it is first used.

    Args:
        url: of Redis, as stream/addresses.py describes.
        options: redis-py's own (username, password, ssl_*); they win over the URL. `sentinel_username` and
            `sentinel_password` are for the sentinels themselves.
        connect_s_max: longest wait for a connection to one server, in seconds.
        answer_s_max: longest wait for an answer of one server, in seconds.

    Raises:
        ListsError: the URL cannot be used.
    """
    try:
        address = redis_address(url)
    except AddressError as error:
        raise ListsError(f"NEXTCLICK_REDIS_URL cannot be used: {error}") from None
    return OPENERS[address.mode](address, dict(options), _Waits(connect_s_max, answer_s_max))


def _retry() -> Retry:
    """One retry: it covers a connection that a restarted server has closed, and hardly delays the error of a dead one.

    No retry after a timeout, because the next answer would be late too.
    """
    return Retry(ConstantBackoff(0.05), 1, supported_errors=(redis.ConnectionError,))


def _single(address: RedisAddress, options: dict[str, Any], waits: _Waits) -> redis.Redis:
    _without_sentinels(options)
    all_options = {**waits.options(), **address.options(), **options, "ssl": address.tls, "health_check_interval": 30}
    client = SingleClient(retry=_retry(), **all_options)
    client.open_asynchronous = partial(_asynchronous, all_options)
    return client


def _asynchronous(options: Mapping[str, Any]) -> redis.asyncio.Redis:
    retry = AsyncRetry(ConstantBackoff(0.05), 1, supported_errors=(redis.ConnectionError,))
    return redis.asyncio.Redis(retry=retry, **options)


def _cluster(address: RedisAddress, options: dict[str, Any], waits: _Waits) -> redis.Redis:
    _without_sentinels(options)
    all_options = {**address.options(), **options}
    for name in ("host", "port", "db"):
        del all_options[name]

    def open_node(host: str, port: int) -> redis.Redis:
        return redis.Redis(
            host=host, port=port, ssl=address.tls, retry=_retry(), health_check_interval=30,
            **waits.options(), **all_options,
        )  # fmt: skip

    password = all_options.get("password")
    return ClusterClient(address.nodes, open_node, address=address.shown, secrets=(password,) if password else ())


def _sentinel(address: RedisAddress, options: dict[str, Any], waits: _Waits) -> redis.Redis:
    own = _without_sentinels(options)
    all_options = {**address.options(), **options}
    for name in ("host", "port"):
        del all_options[name]
    tls = {name: value for name, value in all_options.items() if name.startswith("ssl_")}
    # Each sentinel is asked once: the next one is at hand.
    asked = {**waits.options(), **own, **tls, "ssl": address.tls, "protocol": all_options["protocol"]}
    asked["retry"] = Retry(ConstantBackoff(0.0), 0)
    sentinel = Sentinel(address.nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    client = sentinel.master_for(  # type: ignore[no-untyped-call]
        address.service, redis_class=SentinelClient,
        connection_class=_PrimaryTlsConnection if address.tls else _PrimaryConnection,
        retry=_retry(), health_check_interval=30, **waits.options(), **all_options,
    )  # fmt: skip
    client.address = address.shown
    client.secrets = tuple(filter(None, (all_options.get("password"), own.get("password"))))
    return client  # type: ignore[no-any-return]


def _without_sentinels(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the sentinels' own user and password out of the options."""
    found = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    return {name: value for name, value in found.items() if value is not None}


OPENERS: Mapping[str, Callable[[RedisAddress, dict[str, Any], _Waits], redis.Redis]] = {
    SINGLE: _single,
    CLUSTER: _cluster,
    SENTINEL: _sentinel,
}
