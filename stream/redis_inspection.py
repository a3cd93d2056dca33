"""Looks at Redis from outside: each of its servers that holds lists. Nothing is written."""

import time
from dataclasses import dataclass
from typing import Any

from stream.redis_cluster import ClusterClient
from stream.redis_errors import ListsError
from stream.redis_values import RedisValues

_FIELDS = {  # of INFO -> of RedisNode
    "redis_version": "version",
    "role": "role",
    "used_memory": "used_bytes",
    "maxmemory": "bytes_max",
    "maxmemory_policy": "policy",
    "evicted_keys": "evicted",
}


@dataclass(frozen=True)
class RedisNode:
    """One server, as it describes itself. A field is None where it does not say."""

    name: str  # "" of a single server; else host and port
    clock_ahead_s: float | None = None  # its clock against this computer's, in seconds
    version: str | None = None
    role: str | None = None  # master or slave
    used_bytes: int | None = None
    bytes_max: int | None = None  # 0: no limit
    policy: str | None = None
    evicted: int | None = None
    problem: str = ""  # why it does not describe itself, one line


class RedisInspection(RedisValues):
    """Looks at the servers behind a client."""

    def nodes(self) -> list[RedisNode]:
        """Returns the servers that hold lists: one, or all primaries of a cluster. Raises ListsError."""
        self._value("nextclick:popular")  # what TIME does not show: the user's rights, a cluster's slots
        with self._clear_errors():
            asked_at = time.time()
            times = self._each("TIME")
            now = (asked_at + time.time()) / 2
        ahead = {name: _seconds(found) - now for name, found in times.items()}
        try:
            with self._clear_errors():
                infos = self._each("INFO")
        except ListsError as error:
            return [RedisNode(name, clock_ahead_s=ahead_s, problem=str(error)) for name, ahead_s in ahead.items()]
        return [_node(name, infos.get(name), ahead_s) for name, ahead_s in ahead.items()]

    def _each(self, command: str) -> dict[str, Any]:
        if isinstance(self._client, ClusterClient):
            return {f"{host}:{port}": answer for (host, port), answer in self._client.each_primary(command).items()}
        return {"": self._client.execute_command(command)}  # type: ignore[no-untyped-call]


def _seconds(found: Any) -> float:
    seconds, micros = found
    return int(seconds) + int(micros) / 1e6


def _node(name: str, info: Any, ahead_s: float) -> RedisNode:
    try:
        found: dict[str, Any] = {field: info.get(key) for key, field in _FIELDS.items()}
        for field in ("used_bytes", "bytes_max", "evicted"):
            found[field] = None if found[field] is None else int(found[field])
    except (AttributeError, TypeError, ValueError):
        return RedisNode(name, clock_ahead_s=ahead_s, problem="its answer to INFO cannot be read")
    return RedisNode(name, clock_ahead_s=ahead_s, **found)
