"""Many calls at once: threads that share a client, tasks that are cancelled, imports that are not made."""

import asyncio
import threading
from dataclasses import replace

import pytest

from online.client import AsyncClient, Client
from tests.online.client.stub_api import PATIENT, a_list, answer, hang, hang_up


def test_threads_share_a_client(stub) -> None:
    stub.will(a_list("i1"))
    with Client(stub.url, limits=PATIENT) as client:
        wrong: list[object] = []

        def ask(name: str) -> None:
            for n in range(20):
                found = client.recommend(f"{name}-{n}")
                if (found.items, found.source) != (("i1",), "asked"):
                    wrong.append(found)

        threads = [threading.Thread(target=ask, args=(f"u{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len({one.target for one in stub.seen}) == 160
    assert len({one.connection for one in stub.seen}) <= 8 + 8  # reused; a busy machine may lose some


def test_threads_fall_back_together_and_share_one_budget(stub) -> None:
    stub.will(answer(503, {"detail": "no"}))
    with Client(stub.url, limits=replace(PATIENT, budget_ratio=0.0, budget_reserve=5), default=["d1"]) as client:
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(client.recommend("u1").source)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["default"] * 12
    assert len(stub.seen) == 12 + 5


async def _until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_call_can_be_cancelled_and_the_next_one_works(stub) -> None:
    async def run() -> None:
        async with AsyncClient(stub.url, limits=PATIENT, default=["d1"]) as client:
            stub.will(hang, a_list("i1"))
            task = asyncio.create_task(client.recommend("u1"))
            await _until(lambda: stub.seen)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.recommend("u1")).items == ("i1",)
            assert len(stub.seen) == 2  # it was not tried again
            assert not client._core.api.breakers["list"].is_open

    asyncio.run(run())


def test_a_timeout_around_a_call_is_the_callers(stub) -> None:
    async def run() -> None:
        async with AsyncClient(stub.url, limits=PATIENT, default=["d1"]) as client:
            stub.will(hang)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.recommend("u1")
            assert len(stub.seen) == 1

    asyncio.run(run())


def test_a_pause_before_a_retry_can_be_cancelled(stub) -> None:
    async def run() -> None:
        slow = replace(PATIENT, backoff_s=1e3, backoff_s_max=1e3, deadline_s=1e4)
        async with AsyncClient(stub.url, limits=slow) as client:
            stub.will(hang_up)
            client._core.api.draw = lambda: 1.0
            task = asyncio.create_task(client.recommend("u1"))
            await _until(lambda: client._core.api.budget.tokens < 10)  # a retry is decided on
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(stub.seen) == 1

    asyncio.run(run())


def test_tasks_at_once_get_their_own_lists(stub) -> None:
    stub.will(lambda handler: a_list(handler.path.split("/")[3].partition("?")[0])(handler))

    async def run() -> list[tuple[str, ...]]:
        async with AsyncClient(stub.url, limits=PATIENT) as client:
            return [one.items for one in await asyncio.gather(*(client.recommend(f"u{n}") for n in range(50)))]

    assert asyncio.run(run()) == [(f"u{n}",) for n in range(50)]


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient) == {
        "recommend", "rank", "similar", "popular", "trending", "latest", "item", "titles", "user", "click",
        "impressions", "hide", "unhide", "dislike", "close",
    }  # fmt: skip
    for name in methods(Client):
        ours, theirs = (dict(getattr(kind, name).__annotations__) for kind in (Client, AsyncClient))
        assert ours == theirs, name
        assert getattr(Client, name).__defaults__ == getattr(AsyncClient, name).__defaults__
        assert getattr(Client, name).__kwdefaults__ == getattr(AsyncClient, name).__kwdefaults__
