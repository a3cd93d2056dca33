"""Lists in Redis: the names of the keys, the shape of the values, and the one place that reads and writes them.

| key | value | lifetime |
| --- | --- | --- |
| `nextclick:top:{user_id}` | JSON of `TopList`, best item first | `ttl_s` |
| `nextclick:popular` | the same, for users without a list | `ttl_s` |
| `nextclick:mark:{id}` | the number of the latest write of the worker with that id | `ttl_s` |
| `nextclick:status` | JSON object: the worker's status | as the worker sets it |
| `nextclick:request` | JSON object: a command's request, which the worker removes | as long as the command waits |
| `nextclick:answer:{id}` | JSON object: the worker's answer to the request with that id | a minute |

A list is one string because it is read with one GET and written with one SET: a sorted set of 50 items takes many times
as long to write.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from pydantic import BaseModel, ValidationError
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from stream.addresses import REDIS_PORT, AddressError, host_and_port, redis_address
from stream.redis_errors import ListsError, RedisUnavailableError, lists_error
from stream.user_ids import texts_in

__all__ = ["Lists", "ListsError", "RedisUnavailableError", "TopList", "Watermark", "connect", "top_key"]

log = logging.getLogger(__name__)

_OURS = "nextclick:*"
_TOP = "nextclick:top:"
POPULAR_KEY = "nextclick:popular"
STATUS_KEY = "nextclick:status"
REQUEST_KEY = "nextclick:request"
_ANSWER = "nextclick:answer:"
_MARK = "nextclick:mark:"
_ANSWER_TTL_S = 60

CONNECT_S_MAX = 1.0
ANSWER_S_MAX = 2.0
_NO_OPTIONS: Mapping[str, Any] = {}
VALUE_BYTES_MAX = 4 * 2**20
PAGE = 1_000  # keys in one round trip


def top_key(user_id: str) -> str:
    """Returns the key of one user's list."""
    return _TOP + user_id


class TopList(BaseModel, frozen=True):
    """One list, best item first.

    `scores` are shares from 0 to 1: how likely each item is the next click, among all candidates that were scored.
    `version` is the model's; `offset` is "partition:next offset" of the last click that the list reflects; `clicked_at`
    and `written_at` are in milliseconds since 1970; `source` is "personal" or "popular".
    """

    items: list[str]
    scores: list[float]
    version: int
    offset: str
    clicked_at: int
    written_at: int
    source: str


class Memory(NamedTuple):
    """The memory of a Redis, as it reports it."""

    run_id: str  # of the process; its counters begin at 0 with it
    evicted: int  # keys evicted so far
    used_bytes: int
    bytes_max: int  # maxmemory; 0: no limit
    policy: str  # maxmemory-policy

    @property
    def limited(self) -> bool:
        """Whether it may evict."""
        return self.bytes_max > 0 and self.policy != "noeviction"


class Watermark(NamedTuple):
    """A mark that each write leaves in Redis, by which the next one finds out whether lists were lost in between."""

    id: str  # of the worker
    number: int  # of the write, rising from 1


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
        options: redis-py's own (username, password, ssl_*); they win over the URL.
        connect_s_max: longest wait for a connection, in seconds.
        answer_s_max: longest wait for an answer, in seconds.

    Raises:
        ListsError: the URL cannot be used.
    """
    try:
        address = redis_address(url)
    except AddressError as error:
        raise ListsError(f"NEXTCLICK_REDIS_URL cannot be used: {error}") from None
    all_options = {**address.options(), **options}
    # One retry: it covers a connection that a restarted server has closed, and hardly delays the error of a dead one.
    # No retry after a timeout, because the next answer would be late too.
    return redis.Redis(
        ssl=address.tls,
        socket_connect_timeout=connect_s_max,
        socket_timeout=answer_s_max,
        retry=Retry(ConstantBackoff(0.05), 1, supported_errors=(redis.ConnectionError,)),
        health_check_interval=30,
        **all_options,
    )


class Lists:
    """The lists of all users, on any client that redis-py's `Redis` describes (redis-server or embedded).

    `ttl_s`: seconds until a list that is not written again expires. `value_bytes_max`: most bytes of one value that are
    read, except by `page` and `take_request`, which no HTTP request reaches. All methods raise ListsError when Redis
    does not answer or refuses. A value under one of our keys that is no list counts as absent, with a warning in the
    log: the next write replaces it, and until then the user gets the popular list instead of an error.
    """

    def __init__(self, client: redis.Redis, *, ttl_s: int, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._value_bytes_max = value_bytes_max
        self.address = _address(client)

    def write(
        self,
        lists: Mapping[str, TopList],
        popular: TopList | None = None,
        *,
        mark: Watermark | None = None,
        replacing: Collection[str] = (),
    ) -> int | None:
        """Writes lists, and at last the watermark, in one pipeline for each thousand lists.

        It is no transaction: each list is valid by itself, and Redis may serve readers in between. Redis keeps the
        order of writes: if the watermark is there, so are the lists. A list without items is deleted instead, so that
        the user gets the popular one.

        Args:
            lists: by user id.
            popular: the popular list, if it is to be written.
            mark: the watermark of this write.
            replacing: users whose list is written only if it replaces an existing one.

        Returns:
            The number of the watermark before; None if there was none.
        """
        values = [(top_key(user_id), top, user_id in replacing) for user_id, top in lists.items()]
        if popular is not None:
            values.append((POPULAR_KEY, popular, False))
        previous = None
        for start in range(0, max(1, len(values)), PAGE):
            with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
                for key, top, only_standing in values[start : start + PAGE]:
                    if top.items or key == POPULAR_KEY:
                        pipeline.set(key, top.model_dump_json(), ex=self._ttl_s, xx=only_standing)
                    else:
                        pipeline.delete(key)
                if mark is not None and start + PAGE >= len(values):
                    pipeline.set(_MARK + mark.id, mark.number, ex=self._ttl_s, get=True)
                answers = pipeline.execute()
                previous = answers[-1] if mark is not None else None
        return int(previous) if previous is not None and previous.isdigit() else None

    def read(self, user_id: str) -> TopList | None:
        """Returns one user's list; None if there is none, or it has no items."""
        return _own(self._list(top_key(user_id)))

    def popular(self) -> TopList | None:
        """Returns the popular list; None before the first one is written."""
        return self._list(POPULAR_KEY)

    def users(self) -> Iterator[str]:
        """Yields the ids of all users who have a list, each once; reads a page at a time, so that no client waits."""
        seen: set[str] = set()  # SCAN may return a key twice while others come and go
        cursor = 0
        while True:
            cursor, users = self._users(cursor)
            for user_id in users:
                if user_id not in seen:
                    seen.add(user_id)
                    yield user_id
            if cursor == 0:
                return

    def page(self, cursor: int = 0) -> tuple[int, dict[str, TopList]]:
        """Returns some of the lists, by user id, and the cursor of the next page (0: there is none).

        A page scans about PAGE keys of any kind. Every list that exists from the first page to the last is in one or
        more pages.
        """
        cursor, users = self._users(cursor)
        if not users:
            return cursor, {}
        keys = [top_key(user_id) for user_id in users]
        with self._clear_errors():
            values = self._client.mget(keys)
        parsed = {user_id: _parse(key, value) for user_id, key, value in zip(users, keys, values, strict=True)}
        return cursor, {user_id: top for user_id, top in parsed.items() if top is not None}

    def forget(self, gone: Callable[[str], bool]) -> int:
        """Deletes the lists of users for whom `gone` is true. Returns how many. It scans all keys, a page at a time."""
        cursor, deleted = 0, 0
        while True:
            cursor, users = self._users(cursor)
            keys = [top_key(user_id) for user_id in users if gone(user_id)]
            if keys:
                with self._clear_errors():
                    deleted += self._client.delete(*keys)
            if cursor == 0:
                return deleted

    def keys_naming(self, user_id: str) -> int:
        """Counts our keys that are a user's, or whose JSON value contains the id; values of lists hold only items."""
        count = 0
        with self._clear_errors():
            for key in self._client.scan_iter(match=_OURS, count=PAGE):
                name = key.decode(errors="replace") if isinstance(key, bytes) else key
                if name.startswith(_TOP) or name == POPULAR_KEY:
                    count += name == top_key(user_id)
                elif isinstance(value := self._client.get(key), bytes):
                    count += user_id in texts_in(value)
        return count

    def amend(self, lists: Mapping[str, TopList]) -> None:
        """Replaces existing lists, which keep their time to live; a user without a list gets none.

        A list without items is deleted, so that the user gets the popular one.
        """
        if not lists:
            return
        with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
            for user_id, top in lists.items():
                if top.items:
                    pipeline.set(top_key(user_id), top.model_dump_json(), xx=True, keepttl=True)
                else:
                    pipeline.delete(top_key(user_id))
            pipeline.execute()

    def write_status(self, status: Mapping[str, Any], ttl_s: int) -> None:
        """Writes the worker's status. It expires after `ttl_s` seconds, so that a dead worker is noticed."""
        value = json.dumps(status, allow_nan=False)
        with self._clear_errors():
            self._client.set(STATUS_KEY, value, ex=ttl_s)

    def status(self) -> dict[str, Any] | None:
        """Returns the worker's latest status; None if there is none."""
        return _object(STATUS_KEY, self._value(STATUS_KEY))

    def ask(self, request: Mapping[str, Any], ttl_s: int) -> bool:
        """Writes a request (it has an `id`) that expires after `ttl_s` seconds. Returns False if another one waits."""
        with self._clear_errors():
            return bool(self._client.set(REQUEST_KEY, json.dumps(request, allow_nan=False), ex=ttl_s, nx=True))

    def take_request(self) -> dict[str, Any] | None:
        """Takes a command's request out of Redis; None if there is none."""
        with self._clear_errors():
            value = self._client.getdel(REQUEST_KEY)
        return _object(REQUEST_KEY, value)

    def withdraw_request(self) -> bool:
        """Withdraws a request. Returns whether the worker had not taken it yet."""
        with self._clear_errors():
            return bool(self._client.delete(REQUEST_KEY))

    def answer(self, request_id: str, answer: Mapping[str, Any]) -> None:
        """Writes the answer to a request; it expires after a minute."""
        with self._clear_errors():
            self._client.set(_ANSWER + request_id, json.dumps(answer, allow_nan=False), ex=_ANSWER_TTL_S)

    def answer_to(self, request_id: str) -> dict[str, Any] | None:
        """Returns the answer to a request; None as long as there is none."""
        return _object(_ANSWER + request_id, self._value(_ANSWER + request_id))

    def standing(self, user_ids: Collection[str]) -> int:
        """Counts how many of these users have a list, empty ones included."""
        with self._clear_errors():
            return int(self._client.exists(*map(top_key, user_ids))) if user_ids else 0

    def memory(self) -> Memory:
        """Returns the memory of Redis. Raises ListsError also if its user may not send INFO."""
        if _is_embedded(self._client):
            return Memory("embedded", evicted=0, used_bytes=0, bytes_max=0, policy="noeviction")
        with self._clear_errors():
            info = self._client.info()
        try:
            evicted, used, most = (int(info[name]) for name in ("evicted_keys", "used_memory", "maxmemory"))
            return Memory(str(info["run_id"]), evicted, used, most, str(info["maxmemory_policy"]))
        except (KeyError, TypeError, ValueError):
            raise ListsError(f"Redis at {self.address} does not report its memory") from None

    def check(self) -> None:
        """Checks that lists can be read, which is more than an answer to PING. Raises ListsError if they cannot."""
        self._value(top_key(""))
        self._value(POPULAR_KEY)

    def _users(self, cursor: int) -> tuple[int, list[str]]:
        """A page of SCAN, and the cursor of the next one."""
        with self._clear_errors():
            cursor, keys = self._client.scan(cursor=cursor, match=_TOP + "*", count=PAGE)
        names = [key.decode(errors="replace") if isinstance(key, bytes) else key for key in keys]
        return cursor, [name[len(_TOP) :] for name in names]

    def _list(self, key: str) -> TopList | None:
        return _parse(key, self._value(key))

    def _value(self, key: str) -> bytes | str | None:
        """Returns a value of at most `value_bytes_max` bytes; None if there is none, or it is larger."""
        with self._clear_errors():
            value = self._client.getrange(key, 0, self._value_bytes_max)
        if len(value) > self._value_bytes_max:
            log.warning("%s in Redis holds more than %d bytes; it counts as absent", key, self._value_bytes_max)
            return None
        return value or None

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turns every error of Redis into a ListsError of one line."""
        try:
            yield
        except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
            password = self._client.connection_pool.connection_kwargs.get("password")
            raise lists_error(error, self.address, [password] if password else []) from error


def _own(top: TopList | None) -> TopList | None:
    """Returns a list if it has items; else None, so that the user gets the popular one."""
    return top if top is not None and top.items else None


def _parse(key: str, value: bytes | str | None) -> TopList | None:
    if value is None:
        return None
    try:
        return TopList.model_validate_json(value)
    except ValidationError:
        log.warning("%s in Redis holds no list; it counts as absent", key)
        return None


def _object(key: str, value: bytes | str | None) -> dict[str, Any] | None:
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
    where = client.connection_pool.connection_kwargs
    db = where.get("db") or 0
    if "path" in where:
        return f"unix://{where['path']}" + (f"?db={db}" if db else "")
    scheme = "rediss" if "ssl_ca_certs" in where or "ssl_cert_reqs" in where else "redis"
    return f"{scheme}://{host_and_port(where.get('host', 'localhost'), where.get('port', REDIS_PORT))}/{db}"


def _is_embedded(client: redis.Redis) -> bool:
    """Whether it is the embedded Redis's client. Its package is not imported to tell: it need not be installed."""
    return any(kind.__module__.partition(".")[0] == "fakeredis" for kind in type(client).__mro__)
