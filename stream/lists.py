"""Lists in Redis: the names of the keys, the shape of the values, and the one place that reads and writes them.

| key | value | lifetime |
| --- | --- | --- |
| `nextclick:top:{user_id}` | JSON of `TopList`, best item first | `ttl_s` |
| `nextclick:popular` | the same, for users without a list | `ttl_s` |
| `nextclick:mark:{id}` | the number of the latest write of the worker with that id | `ttl_s` |
| `nextclick:status` | JSON object: the worker's status | as the worker sets it |
| `nextclick:history` | JSON object: the worker's figures minute by minute | a day |
| `nextclick:clicks` | JSON object: the latest clicks, and where their items stood in lists | as a status |
| `nextclick:request` | JSON object: a command's request, which the worker removes | as long as the command waits |
| `nextclick:answer:{id}` | JSON object: the worker's answer to the request with that id | a minute |

Records of items (stream/item_records.py) and what users have hidden (stream/hidden_items.py) stand beside them.

Where workers have names, because there are several:

| key | value | lifetime |
| --- | --- | --- |
| `nextclick:worker:{name}` | the status of that worker | as the worker sets it |
| `nextclick:workers` | sorted set: the workers' names, by the time of the latest status | a day |
| `nextclick:mark:{name}:{id}` | the watermark of that worker | `ttl_s` |
| `nextclick:history:{name}` | the history of that worker | a day |
| `nextclick:clicks:{name}` | that worker's latest clicks | as a status |
| `nextclick:request:{name}` | a request to that worker | as long as the command waits |
| `nextclick:answer:{id}:{name}` | that worker's answer | a minute |

In a cluster there are several watermarks, in slots of each primary: their keys end in a hash tag, `{tag}`.

A list is one string because it is read with one GET and written with one SET: a sorted set of 50 items takes many times
as long to write.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import redis
import redis.asyncio
from pydantic import BaseModel, ValidationError

from stream.fence import SCRIPT, fence_arguments
from stream.hidden_items import HIDDEN_KEY, HiddenRecords, hidden_at, hidden_key
from stream.item_records import ITEM_KEY, ItemRecords
from stream.questions import is_question_key
from stream.redis_clients import ANSWER_S_MAX, CONNECT_S_MAX, SingleClient, connect
from stream.redis_cluster import ClusterClient
from stream.redis_errors import ListsError, RedisUnavailableError, SlotsMovedError
from stream.redis_values import VALUE_BYTES_MAX, parse_object
from stream.user_ids import texts_in
from stream.worker_messages import CLICKS_KEY, REQUEST_KEY, STATUS_KEY, WORKERS_KEY, WorkerMessages

__all__ = [
    "ANSWER_S_MAX",
    "CONNECT_S_MAX",
    "REQUEST_KEY",
    "STATUS_KEY",
    "WORKERS_KEY",
    "Lists",
    "ListsError",
    "RedisUnavailableError",
    "Standing",
    "TopList",
    "Watermark",
    "WriteResult",
    "connect",
    "top_key",
]

log = logging.getLogger(__name__)

_OURS = "nextclick:*"
_TOP = "nextclick:top:"
POPULAR_KEY = "nextclick:popular"
_MARK = "nextclick:mark:"
WHOLE = ""  # the one part of a Redis that is a single server
MARKS_MAX = 64  # parts of a cluster that one write marks
SCANS_MAX = 5  # of all keys, where a cluster moves its slots meanwhile
PAGE = 1_000  # keys in one round trip
SCANNED_MAX = 50_000  # keys that `some` looks at


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

    def without(self, gone: Collection[str]) -> "TopList":
        """Returns the list without these items."""
        kept = [pair for pair in zip(self.items, self.scores, strict=False) if pair[0] not in gone]
        return self.model_copy(update={"items": [item for item, _ in kept], "scores": [score for _, score in kept]})


class Standing(NamedTuple):
    """What stands in Redis for a user, without the items that the user has hidden; None where there is no such list."""

    own: TopList | None
    popular: TopList | None
    hidden: frozenset[str] = frozenset()

    @property
    def top(self) -> TopList | None:
        """The list for the user."""
        return self.own or self.popular


class Memory(NamedTuple):
    """The memory of a Redis, as it reports it."""

    run_id: str  # of the process; its counters begin at 0 with it
    evicted: int  # keys evicted so far
    used_bytes: int
    bytes_max: int  # maxmemory; 0: no limit
    policy: str  # maxmemory-policy
    fullest: float | None = None  # share of its memory that the fullest node of a cluster uses; None: a single server

    @property
    def used_share(self) -> float:
        """Share of its memory that is used; of a cluster, by its fullest node."""
        share = self.used_bytes / self.bytes_max if self.bytes_max else 0.0
        return share if self.fullest is None else self.fullest

    @property
    def limited(self) -> bool:
        """Whether it may evict."""
        return self.bytes_max > 0 and self.policy != "noeviction"


class Watermark(NamedTuple):
    """A mark that each write leaves in Redis, by which the next one finds out whether lists were lost in between."""

    id: str  # of the worker
    number: int  # of the write, rising from 1
    parts: Collection[str] = ()  # of a cluster, that were marked before


class WriteResult(NamedTuple):
    """What became of a write."""

    previous: Mapping[str, int | None]  # by part: the watermark's number before, None if there was none
    rejected: frozenset[str] = frozenset()  # users whose list is newer in Redis


class Lists(WorkerMessages):
    """The lists of all users, on any client that redis-py's `Redis` describes (redis-server or embedded).

    `ttl_s`: seconds until a list that is not written again expires. `value_bytes_max`: most bytes of one value that are
    read, except by `page` and `take_request`, which no HTTP request reaches. `worker`: the name of this worker, where
    there are several. `fenced`: whether a list is written only if Redis holds none of a later click. All methods raise
    ListsError when Redis does not answer or refuses. A value under one of our keys that is no list counts as absent,
    with a warning in the log: the next write replaces it, and until then the user gets the popular list instead of an
    error.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        ttl_s: int,
        value_bytes_max: int = VALUE_BYTES_MAX,
        worker: str | None = None,
        fenced: bool = False,
    ) -> None:
        super().__init__(client, worker=worker, value_bytes_max=value_bytes_max)
        self.items = ItemRecords(client, ttl_s=ttl_s, value_bytes_max=value_bytes_max)
        self.hidden = HiddenRecords(client, list_ttl_s=ttl_s, value_bytes_max=value_bytes_max)
        self._ttl_s = ttl_s
        self._fenced = fenced
        self.rejected = 0  # lists that were not written because Redis held newer ones, since the start

    def write(
        self,
        lists: Mapping[str, TopList],
        popular: TopList | None = None,
        *,
        mark: Watermark | None = None,
        replacing: Collection[str] = (),
    ) -> WriteResult:
        """Writes lists, and at last the watermark, in one pipeline for each thousand lists.

        It is no transaction: each list is valid by itself, and Redis may serve readers in between. Redis keeps the
        order of writes: if the watermark is there, so are the lists (in a cluster, those of the same primary). A list
        without items is deleted instead, so that the user gets the popular one.

        With `fenced`, a user's list is rejected if Redis holds one of a later offset of the same partition, or, of
        another partition, with a later `clicked_at`. The popular list is never rejected: it depends on no partition.

        Args:
            lists: by user id.
            popular: the popular list, if it is to be written.
            mark: the watermark of this write.
            replacing: users whose list is written only if it replaces an existing one.

        Returns:
            The numbers of the watermark before, and the users whose list was rejected.
        """
        values: list[tuple[str | None, TopList]] = list(lists.items())
        if popular is not None:
            values.append((None, popular))
        previous: dict[str, int | None] = {}
        rejected: set[str] = set()
        for start in range(0, max(1, len(values)), PAGE):
            page = values[start : start + PAGE]
            parts = self._parts(mark) if mark is not None and start + PAGE >= len(values) else []
            with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
                for user_id, top in page:
                    self._put(pipeline, user_id, top, only_standing=user_id in replacing)
                for part in parts:
                    self._put_mark(pipeline, mark, part)
                answers = pipeline.execute()
            if self._fenced:
                rejected |= {user for (user, _), done in zip(page, answers, strict=False) if user and done == 0}
            previous |= {part: _number(found) for part, found in zip(parts, answers[len(page) :], strict=True)}
        self.rejected += len(rejected)
        return WriteResult(previous, frozenset(rejected))

    def _put(self, pipeline: Any, user_id: str | None, top: TopList, *, only_standing: bool) -> None:
        """Adds the command that writes one list, or the popular one (None)."""
        if user_id is None:
            pipeline.set(POPULAR_KEY, top.model_dump_json(), ex=self._ttl_s, xx=only_standing)
        elif self._fenced:
            self._put_fenced(pipeline, user_id, top, ttl_s=self._ttl_s, replacing=only_standing)
        elif top.items:
            pipeline.set(top_key(user_id), top.model_dump_json(), ex=self._ttl_s, xx=only_standing)
        else:
            pipeline.delete(top_key(user_id))

    def _put_fenced(self, pipeline: Any, user_id: str, top: TopList, *, ttl_s: int | None, replacing: bool) -> None:
        value = top.model_dump_json() if top.items else ""
        arguments = fence_arguments(
            value, offset=top.offset, clicked_at=top.clicked_at, ttl_s=ttl_s, replacing=replacing
        )
        pipeline.eval(SCRIPT, 1, top_key(user_id), *arguments)

    def _parts(self, mark: Watermark) -> list[str]:
        """The parts of Redis that are marked: each may lose its data alone."""
        if not isinstance(self._client, ClusterClient):
            return [WHOLE]
        with self._clear_errors():
            return list(dict.fromkeys([*self._client.mark_parts(), *mark.parts]))[:MARKS_MAX]

    def _put_mark(self, pipeline: Any, mark: Watermark | None, part: str) -> None:
        """Adds the command that writes the watermark of one part, and returns the one before."""
        if mark is not None:
            owner = mark.id if self.worker is None else f"{self.worker}:{mark.id}"
            key = _MARK + owner + (f":{{{part}}}" if part else "")
            pipeline.set(key, mark.number, ex=self._ttl_s, get=True)

    def holder(self, part: str) -> str:
        """Returns the address of the node that holds a part; WHOLE where Redis is a single server."""
        return self._node(f"{{{part}}}") if part else WHOLE

    def holder_of(self, user_id: str) -> str:
        """Returns the address of the node that holds a user's list; WHOLE where Redis is a single server."""
        return self._node(top_key(user_id))

    def _node(self, key: str) -> str:
        if not isinstance(self._client, ClusterClient):
            return WHOLE
        with self._clear_errors():
            host, port = self._client.node_of(key)
        return f"{host}:{port}"

    def read(self, user_id: str) -> TopList | None:
        """Returns one user's list; None if there is none, or it has no items."""
        return _own(self._list(top_key(user_id)))

    def popular(self) -> TopList | None:
        """Returns the popular list; None before the first one is written."""
        return self._list(POPULAR_KEY)

    def standing_for(self, user_id: str) -> Standing:
        """Reads what stands for one user, in one round trip."""
        return self._standing([user_id], self._values(_keys_for([user_id])))[0]

    async def read_many(self, user_ids: Sequence[str], client: redis.asyncio.Redis) -> list[Standing]:
        """Reads what stands for each of these users in one round trip of a client that `asynchronous` opened."""
        with self._clear_errors():
            values = await client.mget(_keys_for(user_ids))
        return self._standing(user_ids, values)

    def read_many_now(self, user_ids: Sequence[str]) -> list[Standing]:
        """Does what `read_many` does, and blocks."""
        with self._clear_errors():
            values = self._client.mget(_keys_for(user_ids))
        return self._standing(user_ids, values)

    def asynchronous(self) -> redis.asyncio.Redis | None:
        """Opens a client for the event loop that runs; None where Redis is no single server, or is embedded."""
        return self._client.open_asynchronous() if isinstance(self._client, SingleClient) else None

    def _standing(self, user_ids: Sequence[str], values: Sequence[Any]) -> list[Standing]:
        """What the values of `_keys_for` these users say."""
        keys = _keys_for(user_ids)
        bounded = [self._bounded(key, value) for key, value in zip(keys, values, strict=True)]
        popular = _parse(POPULAR_KEY, bounded.pop())
        count = len(user_ids)
        found = []
        for at, user_id in enumerate(user_ids):
            own, hidden = _own(_parse(keys[at], bounded[at])), bounded[count + at]
            found.append(Standing(own, popular) if hidden is None else _less_hidden(own, popular, user_id, hidden))
        return found

    def users(self) -> Iterator[str]:
        """Yields the ids of all users who have a list, each once; reads a page at a time, so that no client waits."""
        seen: set[str] = set()  # SCAN may return a key twice while others come and go
        for users in self._all_users():
            for user_id in users:
                if user_id not in seen:
                    seen.add(user_id)
                    yield user_id

    def page(self, cursor: int = 0) -> tuple[int, dict[str, TopList]]:
        """Returns some of the lists, by user id, and the cursor of the next page (0: there is none).

        A page scans about PAGE keys of any kind. Every list that exists from the first page to the last is in one or
        more pages. Raises SlotsMovedError where a cluster has moved slots since the first page: begin anew.
        """
        cursor, users = self._users(cursor)
        if not users:
            return cursor, {}
        keys = [top_key(user_id) for user_id in users]
        with self._clear_errors():
            values = self._client.mget(keys)
        parsed = {user_id: _parse(key, value) for user_id, key, value in zip(users, keys, values, strict=True)}
        return cursor, {user_id: top for user_id, top in parsed.items() if top is not None}

    def some(self, most: int) -> dict[str, TopList]:
        """Returns at most `most` of the lists, by user id, wherever a scan finds them first; it looks at no more than
        SCANNED_MAX keys of any kind. Raises SlotsMovedError as `page` does."""
        found: dict[str, TopList] = {}
        cursor = 0
        for _ in range(SCANNED_MAX // PAGE):
            cursor, users = self._users(cursor)
            users = [user_id for user_id in dict.fromkeys(users) if user_id not in found][: most - len(found)]
            keys = [top_key(user_id) for user_id in users]
            for user_id, key, value in zip(users, keys, self._values(keys) if keys else [], strict=True):
                if (top := _parse(key, value)) is not None:
                    found[user_id] = top
            if not cursor or len(found) >= most:
                break
        return found

    def forget(self, gone: Callable[[str], bool]) -> int:
        """Deletes the lists of users for whom `gone` is true, and what they have hidden. Returns how many keys that
        were. It scans all keys, a page at a time."""
        deleted = 0
        for prefix in (_TOP, HIDDEN_KEY):
            for users in self._all_users(prefix):
                keys = [prefix + user_id for user_id in users if gone(user_id)]
                if keys:
                    with self._clear_errors():
                        deleted += self._client.delete(*keys)
        return deleted

    def keys_naming(self, user_id: str) -> int:
        """Counts our keys that are a user's, or whose JSON value contains the id; lists, records of items and what
        users have hidden hold only items."""
        with self._clear_errors():
            # A scan may miss them while a cluster moves their slots.
            count = int(self._client.exists(top_key(user_id), hidden_key(user_id)))
            for key in self._client.scan_iter(match=_OURS, count=PAGE):
                name = key.decode(errors="replace") if isinstance(key, bytes) else key
                if name.startswith((_TOP, HIDDEN_KEY)) or name in (POPULAR_KEY, WORKERS_KEY):
                    continue
                if is_question_key(name) or name.startswith(ITEM_KEY):  # gone in a minute; of items alone
                    continue
                if isinstance(value := self._client.get(key), bytes):
                    count += user_id in (_users_of_clicks(name, value) if _of_clicks(name) else texts_in(value))
        return count

    def amend(self, lists: Mapping[str, TopList]) -> None:
        """Replaces existing lists, which keep their time to live; a user without a list gets none.

        A list without items is deleted, so that the user gets the popular one.
        """
        if not lists:
            return
        with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
            for user_id, top in lists.items():
                if self._fenced:
                    self._put_fenced(pipeline, user_id, top, ttl_s=None, replacing=True)
                elif top.items:
                    pipeline.set(top_key(user_id), top.model_dump_json(), xx=True, keepttl=True)
                else:
                    pipeline.delete(top_key(user_id))
            pipeline.execute()

    def standing(self, user_ids: Collection[str]) -> int:
        """Counts how many of these users have a list, empty ones included."""
        with self._clear_errors():
            return int(self._client.exists(*map(top_key, user_ids))) if user_ids else 0

    def memory(self) -> Memory:
        """Returns the memory of Redis. Raises ListsError also if its user may not send INFO."""
        if _is_embedded(self._client):
            return Memory("embedded", evicted=0, used_bytes=0, bytes_max=0, policy="noeviction")
        with self._clear_errors():
            if isinstance(self._client, ClusterClient):
                infos = list(self._client.each_primary("INFO").values())
            else:
                infos = [self._client.info()]
        try:
            nodes = [_memory(info) for info in infos]
        except (KeyError, TypeError, ValueError):
            raise ListsError(f"Redis at {self.address} does not report its memory") from None
        return nodes[0] if not isinstance(self._client, ClusterClient) else _sum(nodes)

    def check(self) -> None:
        """Checks that lists can be read, which is more than an answer to PING. Raises ListsError if they cannot."""
        self.read_many_now([""])

    def _all_users(self, prefix: str = _TOP) -> Iterator[list[str]]:
        """Pages of all users with such a key. A user may come twice; all come again where a cluster moves its slots."""
        for scan in range(1, SCANS_MAX + 1):
            try:
                cursor, users = self._users(0, prefix)
                yield users
                while cursor:
                    cursor, users = self._users(cursor, prefix)
                    yield users
            except SlotsMovedError:
                if scan == SCANS_MAX:
                    raise
                continue
            # A key moves once, from one node to another: what was missed for that is found the second time.
            if scan == 2 or not self._slots_move():
                return

    def _slots_move(self) -> bool:
        with self._clear_errors():
            return isinstance(self._client, ClusterClient) and self._client.moving

    def _users(self, cursor: int, prefix: str = _TOP) -> tuple[int, list[str]]:
        """A page of SCAN, and the cursor of the next one."""
        with self._clear_errors():
            cursor, keys = self._client.scan(cursor=cursor, match=prefix + "*", count=PAGE)
        names = [key.decode(errors="replace") if isinstance(key, bytes) else key for key in keys]
        return cursor, [name[len(prefix) :] for name in names]

    def _list(self, key: str) -> TopList | None:
        return _parse(key, self._value(key))


def _users_of_clicks(name: str, value: bytes) -> set[str]:
    """Whose latest clicks these are; their items may be named like other users."""
    found = (parse_object(name, value) or {}).get("clicks")
    rows = found if isinstance(found, list) else ()
    return {str(row.get("user_id")) for row in rows if isinstance(row, dict)}


def _of_clicks(name: str) -> bool:
    return name == CLICKS_KEY or name.startswith(CLICKS_KEY + ":")


def _keys_for(user_ids: Sequence[str]) -> list[str]:
    """The keys of users' lists, of what they have hidden, and of the popular list."""
    return [*map(top_key, user_ids), *map(hidden_key, user_ids), POPULAR_KEY]


def _less_hidden(own: TopList | None, popular: TopList | None, user_id: str, hidden: bytes | str) -> Standing:
    """The lists without what is hidden by the time of the latest click that either of them knows."""
    at = max((top.clicked_at / 1_000 for top in (own, popular) if top is not None), default=0.0)
    gone = hidden_at(user_id, hidden, at)
    return Standing(_own(own and own.without(gone)), popular and popular.without(gone), gone)


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


def _number(value: Any) -> int | None:
    """A watermark's number as Redis returned it."""
    return int(value) if value is not None and value.isdigit() else None


def _memory(info: Mapping[str, Any]) -> Memory:
    """The memory of one server, out of its INFO. Raises KeyError, TypeError or ValueError if it does not say."""
    evicted, used, most = (int(info[name]) for name in ("evicted_keys", "used_memory", "maxmemory"))
    return Memory(str(info["run_id"]), evicted, used, most, str(info["maxmemory_policy"]))


def _sum(nodes: list[Memory]) -> Memory:
    """The memory of a cluster, out of its nodes'; one that is limited is what counts."""
    fullest = max(nodes, key=lambda node: (node.limited, node.used_share))
    return Memory(
        run_id=" ".join(sorted(node.run_id for node in nodes)),
        evicted=sum(node.evicted for node in nodes),
        used_bytes=sum(node.used_bytes for node in nodes),
        bytes_max=sum(node.bytes_max for node in nodes),
        policy=fullest.policy,
        fullest=fullest.used_share,
    )


def _is_embedded(client: redis.Redis) -> bool:
    """Whether it is the embedded Redis's client. Its package is not imported to tell: it need not be installed."""
    return any(kind.__module__.partition(".")[0] == "fakeredis" for kind in type(client).__mro__)
