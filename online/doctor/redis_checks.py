"""Checks of Redis: its version, its role, and whether it has room for lists or throws them away."""

from collections.abc import Iterable, Iterator, Sequence

from online.doctor.verdict import Verdict, size
from stream.redis_inspection import RedisNode

AREA = "redis"
VERSION_MIN = (6, 2)
USED_SHARE_FULL = 0.95  # of maxmemory
USED_SHARE_HIGH = 0.8


def check_nodes(nodes: Sequence[RedisNode]) -> list[Verdict]:
    """Checks each server that holds lists; what is the same of all of them is said once."""
    found = [verdict for node in nodes for verdict in _check(node)]
    return list(dict.fromkeys(found))


def _check(node: RedisNode) -> Iterable[Verdict]:
    if node.problem:
        text = f"Redis does not describe itself: {node.problem}"
        way_out = "Allow its user INFO (+info) to have version, memory and policy checked."
        return [Verdict(AREA, "server", "not checked", text, way_out)]
    return [*_version(node), *_role(node), *_memory(node)]


def _where(node: RedisNode) -> str:
    return f"{node.name}: " if node.name else ""


def _version(node: RedisNode) -> Iterator[Verdict]:
    parts = (node.version or "").split(".")[:2]
    if len(parts) < 2 or not all(part.isdigit() for part in parts):
        yield Verdict(AREA, "version", "not checked", f"{_where(node)}it does not say its version")
    elif tuple(map(int, parts)) < VERSION_MIN:
        needed = ".".join(map(str, VERSION_MIN))
        text = f"{_where(node)}it is Redis {node.version}, and nextclick needs {needed} or later"
        yield Verdict(AREA, "version", "wrong", text, "Upgrade Redis.")
    else:
        yield Verdict(AREA, "version", "ok", f"Redis {node.version}")


def _role(node: RedisNode) -> Iterator[Verdict]:
    if node.role == "slave":
        text = f"{_where(node)}it is a replica, which takes no lists"
        yield Verdict(AREA, "role", "wrong", text, "Let NEXTCLICK_REDIS_URL name the primary, or its sentinels.")


def _memory(node: RedisNode) -> Iterator[Verdict]:
    used, most, policy = node.used_bytes, node.bytes_max, node.policy
    if used is None or most is None or policy is None:
        yield Verdict(AREA, "memory", "not checked", f"{_where(node)}it does not say its memory")
        return
    if most == 0:
        yield Verdict(AREA, "memory", "ok", f"{_where(node)}no limit (maxmemory 0), {size(used)} used")
        return
    share, of = used / most, f"{_where(node)}{size(used)} of {size(most)} used"
    if policy != "noeviction" and node.evicted:
        text = f"{of}; it has thrown {node.evicted:,} keys away ({policy}): their users got the popular list"
        yield Verdict(AREA, "eviction", "wrong", text, "Raise its maxmemory, or lower NEXTCLICK_LIST_TTL_S.")
    elif policy != "noeviction":
        text = f"{of}; it throws lists away once it is full (maxmemory-policy {policy})"
        yield Verdict(AREA, "eviction", "warning", text, "Set maxmemory-policy noeviction, and room for every list.")
    if share >= USED_SHARE_HIGH:
        full = share >= USED_SHARE_FULL
        text = f"{of}: it is {'full' if full else 'nearly full'}"
        yield Verdict(AREA, "memory", "wrong" if full else "warning", text, "Raise its maxmemory.")
    elif policy == "noeviction":
        yield Verdict(AREA, "memory", "ok", of)
