"""Questions to a worker process over a real Redis: it is killed on the way, and no request gets an error."""

import asyncio
import signal
import time
from collections import Counter

import httpx
import pytest

from benchmarks.end_to_end import Worker
from online.api.serve import Api
from online.config.settings import load_settings
from online.worker.connections import open_lists, open_producer, prepare_topics
from stream.events import encode
from stream.lists import connect

pytestmark = pytest.mark.real


def wait_for_learned(lists, count):
    deadline = time.monotonic() + 120
    while (lists.status() or {}).get("learned", 0) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def ask(url, users, count, at_once):
    """Each connection has a client of its own: a pool of hundreds takes a minute to share out a thousand requests."""

    async def by_one(first):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return [
                await client.post("/rank", json={"user_id": users[n % len(users)]})
                for n in range(first, count, at_once)
            ]

    of_each = await asyncio.gather(*(by_one(first) for first in range(at_once)))
    return [answer for answers in of_each for answer in answers]


def sources_of(answers):
    assert {answer.status_code for answer in answers} == {200}
    return Counter(answer.json()["source"] for answer in answers)


@pytest.mark.timeout(300)
def test_a_killed_worker_and_a_slow_redis_cost_no_answer(redis_server, tmp_path, town_clicks):
    connect(redis_server.url).flushall()
    given = {
        "data_dir": tmp_path / "data",
        "redis_url": redis_server.url,
        "ask_timeout_ms": 2_000,
        "status_interval_s": 0.1,
    }
    worker = Worker({f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}, tmp_path / "worker.log")
    settings = load_settings(**given, api_port=0)
    prepare_topics(settings)
    producer = open_producer(settings)
    for click in town_clicks[:150]:
        producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
    producer.close()
    users = list(dict.fromkeys(click.user_id for click in town_clicks[:150]))
    worker.start()
    lists = open_lists(settings)
    wait_for_learned(lists, 150)
    api = Api(settings, lists).start()
    try:
        assert sources_of(asyncio.run(ask(api.url, users, 200, 50)))["asked"] >= 150
        sources_of(asyncio.run(ask(api.url, users, 1_000, 300)))
        worker.end(signal.SIGKILL)
        assert sources_of(asyncio.run(ask(api.url, users, 60, 30))) == {"stored": 60}
        connect(redis_server.url).execute_command("CLIENT", "PAUSE", "600", "WRITE")
        assert sources_of(asyncio.run(ask(api.url, users, 60, 30))) == {"stored": 60}
        worker.start()
        deadline = time.monotonic() + 120
        while "asked" not in sources_of(asyncio.run(ask(api.url, users, 5, 5))):
            assert time.monotonic() < deadline
    finally:
        api.close()
        worker.end(signal.SIGTERM)
