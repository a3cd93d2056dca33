"""What workers and commands tell each other through Redis: statuses, requests and answers.

A worker without a name is the only one; named ones may be many, each with keys of its own.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from stream.redis_values import VALUE_BYTES_MAX, RedisValues, parse_object

STATUS_KEY = "nextclick:status"
REQUEST_KEY = "nextclick:request"
WORKERS_KEY = "nextclick:workers"
HISTORY_KEY = "nextclick:history"
CLICKS_KEY = "nextclick:clicks"
_WORKER = "nextclick:worker:"
_ANSWER = "nextclick:answer:"
_ANSWER_TTL_S = 60
_WORKERS_TTL_S = 86_400  # of names in WORKERS_KEY, after a worker's latest status


class WorkerMessages(RedisValues):
    """Statuses, requests and answers. `worker`: the name of this worker; None: the only one, or no worker."""

    def __init__(
        self, client: redis.Redis, *, worker: str | None = None, value_bytes_max: int = VALUE_BYTES_MAX
    ) -> None:
        super().__init__(client, value_bytes_max)
        self.worker = worker

    def write_status(self, status: Mapping[str, Any], ttl_s: int) -> None:
        """Writes the worker's status. It expires after `ttl_s` seconds, so that a dead worker is noticed."""
        value = json.dumps(status, allow_nan=False)
        with self._clear_errors():
            if self.worker is None:
                self._client.set(STATUS_KEY, value, ex=ttl_s)
                return
            # A set of names, because a scan for their keys would pass all users' lists.
            now = int(time.time())
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.set(_WORKER + self.worker, value, ex=ttl_s)
                pipeline.zadd(WORKERS_KEY, {self.worker: now})
                pipeline.zremrangebyscore(WORKERS_KEY, "-inf", now - _WORKERS_TTL_S)
                pipeline.expire(WORKERS_KEY, _WORKERS_TTL_S)
                pipeline.execute()

    def status(self) -> dict[str, Any] | None:
        """Returns the latest status of this worker, or of the only one; None if there is none."""
        key = STATUS_KEY if self.worker is None else _WORKER + self.worker
        return parse_object(key, self._value(key))

    def write_history(self, history: Mapping[str, Any], ttl_s: int) -> None:
        """Writes the course of this worker's figures. It expires after `ttl_s` seconds."""
        with self._clear_errors():
            self._client.set(_history_key(self.worker), json.dumps(history, allow_nan=False), ex=ttl_s)

    def history(self, worker: str | None = None) -> dict[str, Any] | None:
        """Returns what a worker wrote as its history; None if there is none. `worker`: its name; None: this one's, or
        that of the only one."""
        key = _history_key(worker or self.worker)
        return parse_object(key, self._value(key))

    def write_clicks(self, clicks: Mapping[str, Any], ttl_s: int) -> None:
        """Writes this worker's latest clicks. They expire after `ttl_s` seconds."""
        with self._clear_errors():
            self._client.set(_clicks_key(self.worker), json.dumps(clicks, allow_nan=False), ex=ttl_s)

    def clicks(self, worker: str | None = None) -> dict[str, Any] | None:
        """Returns what a worker wrote as its latest clicks; None if there is nothing. `worker`: as for `history`."""
        key = _clicks_key(worker or self.worker)
        return parse_object(key, self._value(key))

    def sign_off(self) -> None:
        """Withdraws this worker's name: it has stopped in order, so no one needs to miss it. Its last status stays
        until it expires."""
        if self.worker is not None:
            with self._clear_errors():
                self._client.zrem(WORKERS_KEY, self.worker)

    def read_names(self) -> dict[str, int]:
        """Returns the names of workers that have not signed off, in their order, with the times of their latest
        statuses in seconds since 1970. A name is forgotten a day after its worker's latest status."""
        with self._clear_errors():
            found: Any = self._client.zrange(WORKERS_KEY, 0, -1, withscores=True)
        return dict(sorted((_text(name), int(at)) for name, at in found))

    def read_statuses(self, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """Returns the statuses of all named workers that are alive, by name and in its order. `names`: as `read_names`
        has returned them."""
        names = self.read_names() if names is None else names
        found = {name: parse_object(_WORKER + name, self._value(_WORKER + name)) for name in names}
        return {name: status for name, status in found.items() if status is not None}

    def ask(self, request: Mapping[str, Any], ttl_s: int, worker: str | None = None) -> bool:
        """Writes a request (it has an `id`) that expires after `ttl_s` seconds. Returns False if another one waits.

        `worker`: the name of the worker it is for; None: the only one.
        """
        with self._clear_errors():
            return bool(self._client.set(_request_key(worker), json.dumps(request, allow_nan=False), ex=ttl_s, nx=True))

    def take_request(self, worker: str | None = None) -> dict[str, Any] | None:
        """Takes a request out of Redis; None if there is none. `worker`: whose; None: this worker's."""
        key = _request_key(worker or self.worker)
        with self._clear_errors():
            value = self._client.getdel(key)
        return parse_object(key, value)

    def withdraw_request(self, worker: str | None = None) -> bool:
        """Withdraws a request. Returns whether the worker had not taken it yet."""
        with self._clear_errors():
            return bool(self._client.delete(_request_key(worker)))

    def answer(self, request_id: str, answer: Mapping[str, Any]) -> None:
        """Writes this worker's answer to a request; it expires after a minute."""
        with self._clear_errors():
            value = json.dumps(answer, allow_nan=False)
            self._client.set(_answer_key(request_id, self.worker), value, ex=_ANSWER_TTL_S)

    def answer_to(self, request_id: str, worker: str | None = None) -> dict[str, Any] | None:
        """Returns a worker's answer to a request; None as long as there is none."""
        key = _answer_key(request_id, worker)
        return parse_object(key, self._value(key))


def _request_key(worker: str | None) -> str:
    return REQUEST_KEY if worker is None else f"{REQUEST_KEY}:{worker}"


def _history_key(worker: str | None) -> str:
    return HISTORY_KEY if worker is None else f"{HISTORY_KEY}:{worker}"


def _clicks_key(worker: str | None) -> str:
    return CLICKS_KEY if worker is None else f"{CLICKS_KEY}:{worker}"


def _answer_key(request_id: str, worker: str | None) -> str:
    return _ANSWER + request_id if worker is None else f"{_ANSWER}{request_id}:{worker}"


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
