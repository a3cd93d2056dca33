"""A client of Redis Cluster that waits no longer than the client of one server does.

redis-py's own `RedisCluster` connects when it is made, asks for COMMAND, and after a timeout in a pipeline sends each
of its commands again one by one: a thousand lists for a node that hangs would take minutes. Here a pipeline is split by
node; what the slots' map had wrong (MOVED, ASK) is sent again, and a node that does not answer is an error at once, as
with one server. The map is read anew after any such error.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

SLOTS = 16_384
REDIRECTIONS_MAX = 4  # of one command, before the cluster counts as unavailable
MARK_STEP = 256  # every so many slots there is one that a node's watermark prefers, so that it seldom changes its name
MARKS_PER_NODE = 2
_NODE_BITS = 16  # of a cursor: which node it belongs to
_MAP_BITS = 32  # and which map of slots

Node = tuple[str, int]  # host and port
OpenNode = Callable[[str, int], redis.Redis]


class Command(NamedTuple):
    """A command as redis-py has it."""

    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def slot(self) -> int:
        """The slot of its first key."""
        at = 3 if str(self.args[0]).upper() in ("EVAL", "EVALSHA") else 1
        return slot_of(self.args[at])


class SlotMap:
    """Which primary holds each slot."""

    def __init__(self, ranges: Iterable[tuple[int, int, Node]]) -> None:
        """`ranges`: first and last slot, and the primary."""
        self.ranges = sorted(ranges)
        self.primaries: list[Node] = sorted({node for _, _, node in self.ranges})
        self._of: list[Node | None] = [None] * SLOTS
        for first, last, node in self.ranges:
            self._of[first : last + 1] = [node] * (last + 1 - first)
        self.number = hash(tuple(self.ranges)) & (2**_MAP_BITS - 1)

    def node(self, slot: int) -> Node:
        """The primary of a slot. Raises ClusterDownError if the slot has none."""
        node = self._of[slot]
        if node is None:
            raise ClusterDownError("CLUSTERDOWN Hash slot not served")
        return node

    def mark_slots(self) -> dict[Node, list[int]]:
        """Slots in which a node's watermarks stand: the first that are multiples of MARK_STEP, else its first one."""
        found: dict[Node, list[int]] = {}
        for node in self.primaries:
            mine = [(first, last) for first, last, holder in self.ranges if holder == node]
            round_slots = [
                slot for first, last in mine for slot in range(-(-first // MARK_STEP) * MARK_STEP, last + 1, MARK_STEP)
            ]
            found[node] = round_slots[:MARKS_PER_NODE] or [mine[0][0]]
        return found


class ClusterClient(redis.Redis):
    """What Lists needs of redis-py's client, on a cluster. Safe in several threads.

    Commands of one key go to the primary of its slot; `exists`, `delete`, `mget`, `scan` and `keys` to all of them.
    """

    def __init__(
        self, nodes: Sequence[Node], open_node: OpenNode, *, address: str = "", secrets: tuple[str, ...] = ()
    ) -> None:
        """
        Args:
            nodes: where the map of slots is asked for first.
            open_node: opens the client of one node; it connects when it is first used.
            address: for messages.
            secrets: what messages must not show.
        """
        self.address, self.secrets = address, secrets
        self._first = tuple(nodes)
        self._open_node = open_node
        self._clients: dict[Node, redis.Redis] = {}
        self._map: SlotMap | None = None
        self._suspect: Node | None = None  # did not answer last
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<ClusterClient({self.address})>"

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # --- commands ---

    def execute_command(self, *args: Any, **options: Any) -> Any:
        (result,) = self.run([Command(args, options)])
        if isinstance(result, Exception):
            raise result
        return result

    def pipeline(  # type: ignore[override]
        self,
        transaction: Any = False,
        shard_hint: Any = None,  # noqa: ARG002 - redis-py has it
    ) -> "ClusterPipeline":
        if transaction:
            raise redis.exceptions.RedisClusterException("a transaction cannot span the nodes of a cluster")
        return ClusterPipeline(self)

    def exists(self, *keys: Any) -> int:
        return sum(self._each("EXISTS", keys))

    def delete(self, *keys: Any) -> int:
        return sum(self._each("DEL", keys))

    def mget(self, keys: Any, *args: Any) -> list[Any]:
        return self._each("GET", [*keys, *args])

    def scan(self, cursor: int = 0, match: Any = None, count: Any = None, *_: Any, **__: Any) -> tuple[int, list[Any]]:
        """A page of one node's keys, and the cursor of the next page, also of the next node; 0: there is none.

        Raises ClusterDownError if slots have moved since the first page, because keys may have moved past the scan.
        """
        slots = self._slots() if cursor else self.refresh()
        mark, place, cursor = cursor & (2**_MAP_BITS - 1), cursor >> _MAP_BITS, 0
        index, cursor = place & (2**_NODE_BITS - 1), place >> _NODE_BITS
        if (mark and mark != slots.number) or index >= len(slots.primaries):
            raise MapChangedError("slots have moved while keys were scanned")
        node = slots.primaries[index]
        try:
            cursor, keys = self._client(node).scan(cursor=cursor, match=match, count=count)
        except (redis.ConnectionError, redis.TimeoutError):
            self._map, self._suspect = None, node
            raise
        if not cursor:
            index += 1
            if index == len(slots.primaries):
                if self.refresh().number != slots.number:
                    raise MapChangedError("slots have moved while keys were scanned")
                return 0, keys
        return (((cursor << _NODE_BITS) | index) << _MAP_BITS) | slots.number, keys

    def scan_iter(self, match: Any = None, count: Any = None, *_: Any, **__: Any) -> Iterator[Any]:
        cursor = 0
        while True:
            cursor, keys = self.scan(cursor, match, count)
            yield from keys
            if not cursor:
                return

    def keys(self, pattern: Any = "*", **_: Any) -> list[Any]:
        return list(self.scan_iter(pattern))

    def each_primary(self, *args: Any) -> dict[Node, Any]:
        """Sends a command to each primary. Returns the answers."""
        answers = {}
        for node in self.refresh().primaries:
            try:
                answers[node] = _execute(self._client(node), *args)
            except (redis.ConnectionError, redis.TimeoutError):
                self._map, self._suspect = None, node
                raise
        return answers

    @property
    def moving(self) -> bool:
        """Whether a slot is being moved, so that a scan may have missed keys."""
        answers = self.each_primary("CLUSTER NODES").values()
        return any(node["migrations"] for nodes in answers for node in nodes.values())

    def flushall(self, *_: Any, **__: Any) -> bool:
        return all(self.each_primary("FLUSHALL").values())

    def mark_parts(self) -> list[str]:
        """Hash tags, at least one for each primary, under which watermarks stand: a primary may lose its data alone."""
        return [tag_of(slot) for slots in self._slots().mark_slots().values() for slot in slots]

    def node_of(self, key: str) -> Node:
        """The primary that holds a key, by the latest map."""
        return self._slots().node(slot_of(key))

    # --- by node ---

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Runs commands, those of one node in their order. Returns their results; what a node refuses is one of them.

        Raises redis.ConnectionError or redis.TimeoutError at the first node that does not answer.
        """
        results: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        for _ in range(1 + REDIRECTIONS_MAX):
            self._run_by_node(commands, left, results)
            for at in left:
                # Its slot is being moved, and this key has already been. (To redis-py MOVED is a kind of ASK.)
                if isinstance(results[at], AskError) and not isinstance(results[at], MovedError):
                    results[at] = self._ask(commands[at], results[at])
                if isinstance(results[at], ClusterDownError):
                    self._map = None
            left = [at for at in left if isinstance(results[at], AskError | TryAgainError)]
            if not left:
                break
            self.refresh()
        return results

    def _run_by_node(self, commands: Sequence[Command], chosen: Sequence[int], results: list[Any]) -> None:
        by_node: dict[Node, list[int]] = {}
        try:
            slots = self._slots()
            for at in chosen:
                by_node.setdefault(slots.node(commands[at].slot), []).append(at)
        except ClusterDownError:
            self._map = None
            raise
        for node, mine in by_node.items():
            try:
                answers = self._run_on(node, [commands[at] for at in mine])
            except (redis.ConnectionError, redis.TimeoutError):
                self._map, self._suspect = None, node  # a replica may take over, or another node the slots
                raise
            for at, answer in zip(mine, answers, strict=True):
                results[at] = answer

    def _run_on(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        with self._client(node).pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command.args, **command.options)  # type: ignore[no-untyped-call]
            return list(pipeline.execute(raise_on_error=False))

    def _ask(self, command: Command, told: AskError) -> Any:
        asking = Command(("ASKING",), {})
        return self._run_on((told.host or self._first[0][0], told.port), [asking, command])[1]

    def _each(self, name: str, keys: Iterable[Any]) -> list[Any]:
        """One command for each key; raises the first error."""
        results = self.run([Command((name, key), {}) for key in keys])
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    # --- the map of slots ---

    def _slots(self) -> SlotMap:
        return self._map or self.refresh()

    def refresh(self) -> SlotMap:
        """Reads the map of slots anew, of the first node that answers. Raises its error if none does."""
        error: Exception | None = None
        known = dict.fromkeys([*list(self._clients), *self._first])
        for node in sorted(known, key=lambda node: node == self._suspect):
            try:
                self._map = SlotMap(_ranges(_execute(self._client(node), "CLUSTER SLOTS"), node))
            except (redis.ConnectionError, redis.TimeoutError) as failed:
                error = error or failed
                continue
            return self._map
        raise error or redis.ConnectionError("no node of the cluster is known")

    def _client(self, node: Node) -> redis.Redis:
        with self._lock:
            if node not in self._clients:
                self._clients[node] = self._open_node(*node)
            return self._clients[node]


class ClusterPipeline(redis.Redis):
    """Commands that are sent together, split by node."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client
        self._commands: list[Command] = []

    def __enter__(self) -> "ClusterPipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self._commands = []

    def close(self) -> None:
        self._commands = []

    def execute_command(self, *args: Any, **options: Any) -> "ClusterPipeline":
        self._commands.append(Command(args, options))
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Returns the results in order. Raises the first error of a command, unless told not to."""
        commands, self._commands = self._commands, []
        results = self._client.run(commands)
        if raise_on_error:
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results


def _execute(client: redis.Redis, *args: Any) -> Any:
    return client.execute_command(*args)  # type: ignore[no-untyped-call]


class MapChangedError(ClusterDownError):
    """Slots have moved in the middle of a scan, which has to begin anew."""


def slot_of(key: bytes | str) -> int:
    """The slot of a key."""
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


def tag_of(slot: int) -> str:
    """A hash tag whose keys stand in a slot."""
    return _tags()[slot]


_TAGS: dict[int, str] = {}


def _tags() -> Mapping[int, str]:
    """For each slot a short hash tag."""
    number = 0
    while len(_TAGS) < SLOTS:
        text = f"{number:x}"
        _TAGS.setdefault(key_slot(text.encode()), text)
        number += 1
    return _TAGS


def _ranges(answer: Any, asked: Node) -> Iterator[tuple[int, int, Node]]:
    """First slot, last slot and primary, out of the answer to CLUSTER SLOTS."""
    for first, last, (host, port, *_), *_ in answer:
        name = host.decode() if isinstance(host, bytes) else host
        yield int(first), int(last), (name if name and name != "?" else asked[0], int(port))
