"""Where a list comes from while the API gives none: the lists in Redis, then a default.

Redis is only read. `where` goes by attributes of items, which the lists in Redis do not have: a call with it gets
nothing from there, rather than what it asked to leave out.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from online.client.answers import DEFAULT, REDIS, Recommendations
from online.client.calls import Call
from online.client.limits import Limits
from online.client.retries import CircuitBreaker

if TYPE_CHECKING:
    import redis

    from stream.lists import Lists, TopList

_REDIS_FAILURES_MAX = 3  # in a row, until it is left alone for a while


class Fallback:
    """The lists in the Redis at `redis_url`, if there is one, and `default`."""

    def __init__(
        self, redis_url: str | None, redis_options: Mapping[str, Any], default: Iterable[str], limits: Limits
    ) -> None:
        self._default = tuple(default)
        self._redis, self._lists = None, None
        if redis_url is not None:
            self._redis, self._lists = _open(redis_url, redis_options, limits.redis_s)
        self._breaker = CircuitBreaker(failures_max=_REDIS_FAILURES_MAX, open_s=limits.open_s)

    def may_read(self, call: Call) -> bool:
        """Returns whether Redis may have a list for this call, and is worth asking now."""
        return self._lists is not None and call.where is None and self._breaker.admit()

    def read(self, call: Call) -> tuple[Recommendations | None, str]:
        """Reads Redis for a call that it may have a list for. It waits for Redis.

        Returns:
            The list, or None where there is none, and what went wrong ("": nothing).
        """
        from stream.lists import ListsError, Standing  # noqa: PLC0415 - it imports redis

        assert self._lists is not None
        try:
            if call.user_id and _is_text(call.user_id):
                standing = self._lists.standing_for(call.user_id)
            else:
                standing = Standing(None, self._lists.popular())
        except ListsError as error:
            self.failed()
            return None, str(error)
        self._breaker.succeeded()
        if standing.top is None:
            return None, "Redis holds no list yet"
        return _of_list(call, standing.top, known=standing.own is not None, hidden=standing.hidden), ""

    def failed(self) -> None:
        """Notes that Redis gave no answer."""
        self._breaker.failed()

    def default(self, call: Call) -> Recommendations:
        """Returns the call's own default; else its candidates as given, or the client's default, where they may be."""
        if call.default is not None:
            items = call.default
        elif call.where is not None:
            items = ()  # whether these are what was asked for cannot be told here
        else:
            items = self._default if call.candidates is None else call.candidates
        left = [item for item in dict.fromkeys(items) if item not in call.exclude]
        return Recommendations(items=tuple(left[: max(0, call.k)]), source=DEFAULT, user_id=call.user_id)

    def close(self) -> None:
        """Closes the connections to Redis."""
        if self._redis is not None:
            self._redis.close()


def _open(url: str, options: Mapping[str, Any], waits_s: float) -> tuple["redis.Redis", "Lists"]:
    from stream.lists import Lists, ListsError, connect  # noqa: PLC0415 - it imports redis, which not every site needs

    try:
        client = connect(url, options, connect_s_max=waits_s, answer_s_max=waits_s)
    except ListsError as error:
        raise ValueError(f"redis_url: {error}") from None
    return client, Lists(client, ttl_s=1)  # which is for writing: nothing is written here


def _of_list(call: Call, top: "TopList", *, known: bool, hidden: Collection[str]) -> Recommendations | None:
    """The list as the call wants it; None where nothing is left of it. `hidden`: what its user has hidden."""
    scores = dict(zip(top.items, top.scores, strict=False))
    order = list(scores)
    if call.candidates is not None:
        given = dict.fromkeys(call.candidates)
        order = [item for item in order if item in given]
        order += [item for item in given if item not in scores]
    chosen = [item for item in order if item not in call.exclude and item not in hidden][: max(0, call.k)]
    if not chosen:
        return None
    return Recommendations(
        items=tuple(chosen),
        scores=tuple(scores.get(item, 0.0) for item in chosen),
        source=REDIS,
        user_id=call.user_id,
        version=top.version,
        age_ms=max(0, int(time.time() * 1_000) - top.written_at),
        known=known,
    )


def _is_text(user_id: str) -> bool:
    """Whether it can be part of a key."""
    try:
        return bool(user_id.encode())
    except UnicodeEncodeError:
        return False
