"""Questions to a group of worker processes over Apache Kafka and Redis: the owner of a user's partition answers, also
after one was killed and another one has joined, and no request gets an error meanwhile."""

import asyncio
import time
from collections import Counter

import httpx
import pytest

from benchmarks.faults import SMALL
from benchmarks.group import Group
from online.api.serve import Api
from stream.questions import partition_of_key

pytestmark = pytest.mark.real

PARTITIONS = 4
SMALL_GROUP = {name: SMALL[name] for name in ("layers", "width", "heads", "rounds", "buckets", "window", "list_size")}
SMALL_GROUP |= {"topic_partitions": PARTITIONS, "session_timeout_s": 6.0, "status_interval_s": 0.1}
SMALL_GROUP |= {"ask_timeout_ms": 1_500, "group_warm_up_clicks": 50}
WAIT_S = 120.0


@pytest.fixture
def group(kafka_broker, redis_server, tmp_path):
    """Two workers that share the partitions, and clicks of some users in each of these."""
    group = Group(tmp_path, kafka_broker.bootstrap_servers, redis_server.url, rate=30.0, **SMALL_GROUP)
    try:
        group.begin("a")
        group.begin("b")
        group.start()
        group.wait(group.balanced, "both own partitions")
        group.wait(lambda: len(group.latest) >= 60, "users click")
        yield group
    finally:
        group.stop()
        for name in list(group.workers):
            group.kill(name)


@pytest.fixture
def api(group):
    api = Api(group.settings.model_copy(update={"api_port": 0}), group.lists).start()
    yield api
    api.close()


def owners(group):
    """The owner of each partition, as the workers say."""
    found = {}
    for name, status in group.statuses().items():
        found |= dict.fromkeys((status.get("group") or {}).get("owned", []), name)
    return found


def users_of(group, name):
    """Users whose partition a worker owns."""
    of = owners(group)
    return [user for user in list(group.latest) if of.get(partition_of_key(user.encode(), PARTITIONS)) == name]


def answered(group):
    """Questions that each worker has answered."""
    return {name: (status.get("questions") or {}).get("answered", 0) for name, status in group.statuses().items()}


def ask(api, users):
    """Asks for each of these users at once. Returns where the lists came from; all answers are lists."""

    async def go():
        async with httpx.AsyncClient(base_url=api.url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/v1/rank", json={"user_id": user}) for user in users))

    answers = asyncio.run(go())
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["items"] for answer in answers)
    return Counter(answer.json()["source"] for answer in answers)


def ask_until_asked(api, users):
    """Asks again and again until workers answer for all of these users."""
    deadline = time.monotonic() + WAIT_S
    while ask(api, users) != {"asked": len(users)}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_owners_answer(group, api):
    """Each worker answers for all users of its own partitions, and the others answer none of these."""
    for name in list(group.workers):
        users = users_of(group, name)[:10]
        assert users
        ask_until_asked(api, users)
        time.sleep(1.0)  # so that what was answered before is in the statuses
        before = answered(group)
        assert ask(api, users) == {"asked": len(users)}
        group.wait(lambda name=name, before=before: answered(group)[name] > before[name], f"{name} answers")
        time.sleep(0.5)
        rose = {other: count - before[other] for other, count in answered(group).items()}
        assert rose == dict.fromkeys(group.workers, 0) | {name: len(users)}


@pytest.mark.timeout(600)
def test_the_owner_of_the_partition_answers_through_a_kill_and_a_new_worker(group, api):
    assert_owners_answer(group, api)
    orphans, others = users_of(group, "a")[:20], users_of(group, "b")[:20]
    group.wait(lambda: all(group.lists.read(user) for user in [*orphans, *others]), "all have lists")
    group.kill("a")
    assert ask(api, orphans) == {"stored": len(orphans)}  # within the session timeout no other worker owns them
    assert set(ask(api, others)) <= {"asked", "stored"}
    ask_until_asked(api, others)
    ask_until_asked(api, orphans)
    group.wait(group.balanced, "b owns all")
    assert_owners_answer(group, api)
    group.begin("c")
    while not group.balanced() or "c" not in group.statuses():  # while partitions move
        ask(api, [*orphans[:5], *others[:5]])
        time.sleep(0.2)
    assert_owners_answer(group, api)
