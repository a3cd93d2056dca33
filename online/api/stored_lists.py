"""`GET /recommend/{user}` without rules, answered straight from Redis: most of what an API is asked.

What is asked for in the same turn of the event loop is read by one MGET, and while some of these are under way, what
comes meanwhile waits for the next one. So a busy API needs few round trips, and an idle one does not wait.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from types import SimpleNamespace

import redis.asyncio
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from online.api.errors import ErrorAnswers, NothingLearnedError
from online.api.metrics import Requests
from online.api.versions import V1
from stream.events import id_problem
from stream.lists import Lists, Standing

NOTHING_LEARNED = "nothing has been learned yet: start `nextclick worker` and publish clicks, then ask again"
PREFIX = f"{V1}/recommend/"
PATTERN = PREFIX + "{user:text}"  # as the metrics of requests name it
UNDER_WAY_MAX = 4  # round trips
K = 10
_ROUTE = SimpleNamespace(path=PATTERN)
_K = re.compile(rb"(?:k=([1-9][0-9]{0,5}))?")


class Recommendation(BaseModel):
    """A list as it stands in Redis, cut to `k`. Times are milliseconds since 1970; `age_ms` is since it was written."""

    user_id: str
    items: list[str]
    scores: list[float]
    version: int
    offset: str
    clicked_at: int
    written_at: int
    source: str
    age_ms: int


class ListsReader:
    """Reads lists for requests that come beside each other. For event loops only; each has connections of its own."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: redis.asyncio.Redis | None = None
        self._waiting: list[tuple[str, asyncio.Future[Standing]]] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._asked = False  # for a round trip at the end of this turn of the event loop

    async def read(self, user_id: str) -> Standing:
        """Reads what stands for a user. Raises ListsError."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # one API has one; tests have many
            self._loop, self._client = loop, self._lists.asynchronous()
            self._waiting, self._under_way, self._asked = [], set(), False
        future: asyncio.Future[Standing] = loop.create_future()
        self._waiting.append((user_id, future))
        self._ask()
        return await future

    def _ask(self) -> None:
        if self._waiting and not self._asked and len(self._under_way) < UNDER_WAY_MAX:
            assert self._loop is not None
            self._asked = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        assert self._loop is not None
        self._asked = False
        waiting, self._waiting = self._waiting, []
        task = self._loop.create_task(self._fetch(waiting))
        self._under_way.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._ask()

    async def _fetch(self, waiting: Sequence[tuple[str, asyncio.Future[Standing]]]) -> None:
        """Answers all of them, by one round trip."""
        users = list(dict.fromkeys(user for user, _ in waiting))
        try:
            if self._client is None:
                found = await run_in_threadpool(self._lists.read_many_now, users)
            else:
                found = await self._lists.read_many(users, self._client)
        except Exception as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        standing = dict(zip(users, found, strict=True))
        for user, future in waiting:
            if not future.done():  # its client may be gone
                future.set_result(standing[user])


class StoredLists:
    """Reads stored lists for the API."""

    def __init__(self, lists: Lists, requests: Requests, list_size: int) -> None:
        self._reader, self._requests, self._list_size = ListsReader(lists), requests, list_size

    async def answer(self, user_id: str, k: int) -> Response:
        """Answers a user's list, or the popular one. Raises NothingLearnedError and ListsError."""
        standing = await self._reader.read(user_id)
        if (top := standing.top) is None:
            raise NothingLearnedError(NOTHING_LEARNED)
        self._requests.served(own=standing.own is not None)
        now_ms = int(time.time() * 1_000)
        found = top.__dict__ | {"items": top.items[:k], "scores": top.scores[:k]}
        found |= {"user_id": user_id, "age_ms": max(0, now_ms - top.written_at)}
        return Response(to_json(found), media_type="application/json")

    def wanted(self, scope: Scope) -> tuple[str, int] | None:
        """Returns user and k of a request that nothing is wrong with, and that asks for a stored list; else None."""
        path: str = scope["path"]
        if scope["method"] != "GET" or not path.startswith(PREFIX):
            return None
        found, user = _K.fullmatch(scope["query_string"]), path[len(PREFIX) :]
        if found is None or id_problem(user) is not None:
            return None
        k = int(found[1] or K)
        return (user, k) if k <= self._list_size else None


class ShortCut:
    """Answers requests for stored lists before the framework looks at them; what is wrong with one, it says."""

    def __init__(self, app: ASGIApp, stored: StoredLists, errors: ErrorAnswers) -> None:
        self._app, self._stored, self._errors = app, stored, errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = self._stored.wanted(scope) if scope["type"] == "http" else None
        if wanted is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE
        try:
            response = await self._stored.answer(*wanted)
        except Exception as error:
            if (found := self._errors.of(error)) is None:
                raise
            response = found
        await response(scope, receive, send)
