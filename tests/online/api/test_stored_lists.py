"""Stored lists: requests that come together share a round trip, and each gets what it would get alone."""

import asyncio
from collections.abc import Sequence
from typing import Any

import fakeredis
import pytest
from fastapi.testclient import TestClient

from online.api.app import create_app
from online.api.metrics import Requests
from online.api.stored_lists import UNDER_WAY_MAX, ListsReader, StoredLists
from online.config.settings import Settings
from stream.lists import Lists, ListsError, Standing, TopList


def top(*items: str) -> TopList:
    scores = [1 / (place + 2) for place in range(len(items))]
    fields = {"version": 3, "offset": "0:7", "clicked_at": 1, "written_at": 2, "source": "personal"}
    return TopList(items=list(items), scores=scores, **fields)


class Asked:
    """Lists that note what they are asked for together, and answer when they may."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go_on: asyncio.Event | None = None
        self.error: Exception | None = None

    def asynchronous(self) -> "Asked":
        return self

    async def read_many(self, users: Sequence[str], client: Any) -> list[Standing]:
        assert client is self
        self.batches.append(list(users))
        if self.go_on is not None:
            await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return [Standing(None if user == "unknown" else top(user), top("popular")) for user in users]


def test_what_is_asked_for_together_is_read_together_and_each_user_once() -> None:
    lists = Asked()

    async def go() -> list[Standing]:
        reader = ListsReader(lists)  # type: ignore[arg-type]
        return await asyncio.gather(*(reader.read(user) for user in ("a", "b", "a", "unknown")))

    found = asyncio.run(go())
    assert lists.batches == [["a", "b", "unknown"]]
    assert [one.own and one.own.items for one in found] == [["a"], ["b"], ["a"], None]
    assert {one.popular and one.popular.items[0] for one in found} == {"popular"}


def test_only_some_round_trips_are_under_way_and_the_others_share_the_next_one() -> None:
    lists = Asked()

    async def go() -> None:
        lists.go_on = asyncio.Event()
        reader = ListsReader(lists)  # type: ignore[arg-type]
        tasks = []
        for user in range(UNDER_WAY_MAX + 5):
            tasks.append(asyncio.create_task(reader.read(str(user))))
            for _ in range(5):
                await asyncio.sleep(0)
        assert len(lists.batches) == UNDER_WAY_MAX
        lists.go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())
    assert lists.batches[UNDER_WAY_MAX:] == [[str(user) for user in range(UNDER_WAY_MAX, UNDER_WAY_MAX + 5)]]


def test_an_error_is_everybodys_who_waits_for_it_and_nobodys_after_it() -> None:
    lists = Asked()

    async def go() -> None:
        reader = ListsReader(lists)  # type: ignore[arg-type]
        lists.error = ListsError("away")
        found = await asyncio.gather(reader.read("a"), reader.read("b"), return_exceptions=True)
        assert [str(one) for one in found] == ["away", "away"]
        lists.error = None
        assert (await reader.read("a")).own == top("a")

    asyncio.run(go())


def test_a_client_that_is_gone_disturbs_nobody() -> None:
    lists = Asked()

    async def go() -> None:
        lists.go_on = asyncio.Event()
        reader = ListsReader(lists)  # type: ignore[arg-type]
        gone, stays = asyncio.create_task(reader.read("a")), asyncio.create_task(reader.read("b"))
        await asyncio.sleep(0.01)
        gone.cancel()
        lists.go_on.set()
        assert (await stays).own == top("b")

    asyncio.run(go())


@pytest.fixture
def api() -> TestClient:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write({"ada": top(*"abcdefghijklmn"), 'Z"oë/ 1': top("x")}, top("p", "q"))
    return TestClient(create_app(Settings(), lists))


@pytest.mark.parametrize("user", ["ada", "Z%22o%C3%AB%2F%201", "unknown"])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_the_short_cut_answers_as_the_route_does(api: TestClient, user: str, k: int) -> None:
    short, long = (api.get(f"/recommend/{user}?k={k}{more}") for more in ("", "&fresh=false"))
    assert (short.status_code, short.headers["content-type"]) == (200, "application/json")
    assert short.json() | {"age_ms": 0} == long.json() | {"age_ms": 0}
    assert len(short.json()["items"]) <= k
    assert 'route="/v1/recommend/{user:text}",status="200"} 2.0' in api.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("POST", "/v1/recommend/ada", b""),
        ("HEAD", "/v1/recommend/ada", b""),
        ("GET", "/v1/recommend/", b""),
        ("GET", "/v1/recommend/" + "x" * 300, b""),
        ("GET", "/v1/recommend/ada", b"k=0"),
        ("GET", "/v1/recommend/ada", b"k=51"),
        ("GET", "/v1/recommend/ada", b"k=+3"),
        ("GET", "/v1/recommend/ada", b"k=3&k=4"),
        ("GET", "/v1/recommend/ada", b"fresh=true"),
        ("GET", "/v1/popular", b""),
    ],
)
def test_whatever_else_is_asked_is_the_frameworks(method: str, path: str, query: bytes) -> None:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    stored = StoredLists(lists, Requests(lists), list_size=50)
    assert stored.wanted({"method": method, "path": path, "query_string": query}) is None
    assert stored.wanted({"method": "GET", "path": "/v1/recommend/ada", "query_string": b"k=50"}) == ("ada", 50)
