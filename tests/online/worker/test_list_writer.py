"""What is written to Redis: no list without items, and what shows that Redis takes lists again."""

import time

import fakeredis
import numpy as np
import pytest
from fastapi.testclient import TestClient

from online.api.app import create_app
from online.learner.popular_fill import popular_fill
from online.worker.status import StatusReport
from stream.events import Click
from stream.lists import POPULAR_KEY, Lists, RedisUnavailableError, TopList, top_key
from tests.online.conftest import NOW

EMPTY = TopList(items=[], scores=[], version=1, offset="0:1", clicked_at=1, written_at=2, source="personal")


def clicks(*pairs, at=0):
    """Each user and item, a minute after the one before."""
    return [
        Click(user_id=user, item_id=item, timestamp=NOW - 9_000 + 60 * (at + n)) for n, (user, item) in enumerate(pairs)
    ]


FIVE = [("ada", f"i{n}") for n in range(5)]


@pytest.fixture
def redis(harness):
    """A Redis in the harness."""
    client = fakeredis.FakeRedis()
    harness.lists = Lists(client, ttl_s=3_600)
    return client


def runs(harness, **settings):
    return harness.run(**{"exclude_seen": True, **settings})


def test_who_has_clicked_everything_has_no_list_and_is_served_the_popular_one(harness, redis):
    harness.publish(clicks(*FIVE, ("bob", "i0")))
    redis.set(top_key("ada"), EMPTY.model_dump_json())
    runs(harness)
    assert not redis.exists(top_key("ada"))
    assert set(harness.lists.read("bob").items) == {"i1", "i2", "i3", "i4"}
    assert harness.lists.read("ada") is None
    assert harness.lists.popular().items


@pytest.mark.usefixtures("redis")
def test_a_new_item_comes_with_the_next_list(harness):
    harness.publish(clicks(*FIVE))
    runs(harness)
    harness.publish(clicks(("bob", "new"), ("ada", "i0"), at=10))
    runs(harness)
    assert harness.lists.read("ada").items == ["new"]


def test_a_list_that_stood_goes_when_its_owner_has_clicked_the_last_item(harness, redis):
    harness.publish(clicks(*FIVE[:4], ("bob", "i4")))
    runs(harness)
    assert harness.lists.read("ada").items == ["i4"]
    harness.publish(clicks(("ada", "i4"), at=10))
    runs(harness)
    assert not redis.exists(top_key("ada"))


@pytest.mark.usefixtures("redis")
def test_where_all_candidates_are_clicked_what_is_popular_beyond_them_is_listed(harness):
    """Candidates are the most popular items; the others, which hardly any click is on, are left."""
    popular = [f"p{n:02}" for n in range(70)]
    pairs = [("bob", item) for item in popular for _ in range(3)] + [("cy", "rare"), ("cy", "gone"), ("cy", "rarer")]
    harness.publish(clicks(*pairs, *(("ada", item) for item in popular)))
    harness.publish_item("gone", b'{"available": false}')
    loop = runs(
        harness, history_max=256, items_held=400, popularity_half_lives=(30,), abuse_filter=False, successors_held=64,
        recall_latest=1, reformer=False, users_held=8, micro_batch_max=8,
    )  # fmt: skip
    (ranking,) = loop.learner.rank(["ada"])
    seen = set(popular)
    assert ranking.items
    assert not seen & set(ranking.items)
    assert "gone" not in ranking.items
    assert not seen & set(harness.lists.read("ada").items)
    slots = loop.learner.histories.find(["ada"])
    fill = popular_fill(loop.learner, loop.learner.queries, ["ada"], slots)
    none = np.zeros((1, 12), np.int64), np.zeros((1, 12), np.float32)
    rows, scores, filled = fill.fill(*none)
    items = [loop.learner.vocabulary.item_of(row) for row in rows[0].tolist() if row]
    assert items == ["rarer", "rare"]
    assert filled.tolist() == [True]
    assert 1 >= scores[0, 0] >= scores[0, 1] > 0


@pytest.mark.usefixtures("redis")
def test_what_is_listed_instead_says_that_it_is_popular(harness, monkeypatch):
    harness.publish(clicks(*FIVE, ("bob", "i0"), ("bob", "other")))
    loop = harness.begin(harness.loop(exclude_seen=True))

    def none_left(_, lists, __):
        return np.zeros((len(lists.order), 12), np.int64), np.zeros((len(lists.order), 12), np.float32)

    monkeypatch.setattr(loop.learner.ranker, "best_rows", none_left)
    harness.drain(loop)
    assert (harness.lists.read("ada").source, harness.lists.read("ada").items) == ("popular", ["other"])


def test_empty_lists_of_earlier_versions_go_and_are_never_served(harness, redis):
    harness.publish(clicks(*FIVE, ("bob", "i0")))
    runs(harness)
    redis.set(top_key("old"), EMPTY.model_dump_json())
    assert harness.lists.read("old") is None
    runs(harness)
    assert not redis.exists(top_key("old"))
    assert redis.exists(top_key("bob"))


def test_the_popular_list_is_served_for_an_empty_one(harness, redis):
    harness.publish(clicks(*FIVE))
    loop = runs(harness)
    redis.set(top_key("ada"), EMPTY.model_dump_json())
    answer = TestClient(create_app(loop.settings, harness.lists)).get("/recommend/ada")
    assert (answer.status_code, answer.json()["source"]) == (200, "popular")
    assert len(answer.json()["items"]) == 5


class Picky(Lists):
    """A Redis that takes everything but lists of users, for as long as `away`; it counts what it is asked."""

    away = False
    asked: list[int]
    fake: fakeredis.FakeRedis

    def write(self, lists, popular=None, *, mark=None, replacing=()):
        self.asked.append(len(lists))
        if self.away and lists:
            raise RedisUnavailableError("refused")
        return super().write(lists, popular, mark=mark, replacing=replacing)


@pytest.fixture
def picky(harness):
    client = fakeredis.FakeRedis()
    harness.lists = Picky(client, ttl_s=3_600)
    harness.lists.asked, harness.lists.fake = [], client
    return harness.lists


def test_with_no_list_behind_one_is_written_to_see_whether_redis_takes_it(harness, picky):
    harness.publish(clicks(*FIVE, ("bob", "i0")))
    loop = harness.begin(harness.loop())
    while loop.turn():
        pass
    loop.writer.stale.clear()
    picky.away = True
    assert not loop.writer.link.write({"ada": picky.read("ada")}, None)
    for _ in range(50):
        loop.writer.check()
        loop.turn()
        assert loop.writer.redis_waits_since is not None
        assert not loop.writer.link.taking
    picky.away = False
    deadline = time.monotonic() + 30
    while loop.writer.redis_waits_since is not None:
        loop.turn()
        assert time.monotonic() < deadline
    assert picky.asked[-1] == 2


def test_an_attempt_is_with_few_lists_however_many_are_behind(harness, picky):
    harness.publish(clicks(*((f"u{n}", f"i{n % 7}") for n in range(60))))
    loop = harness.begin(harness.loop(refresh_lists_max=50))
    picky.away = True
    while loop.turn():
        pass
    picky.asked.clear()
    for _ in range(20):
        loop.turn()
        time.sleep(0.001)
    assert set(picky.asked) == {8}
    assert loop.writer.behind == 60


def test_while_redis_evicts_lists_that_aged_only_replace_those_that_stand(harness, picky):
    harness.publish(clicks(*FIVE, *(("bob", f"i{n}") for n in range(3)), ("cy", "i1")))
    loop = harness.begin(harness.loop())
    while loop.turn():
        pass
    client = picky.fake
    client.delete(top_key("ada"), top_key("bob"), POPULAR_KEY)
    loop.writer.evictions.since = NOW
    written = picky.read("cy").written_at
    loop.writer.stale |= {"ada": False, "cy": False, "bob": True}  # whether it is a click that their lists lack
    loop.writer.clock = lambda: NOW + 7
    loop.writer.check()
    loop.turn()
    assert sorted(picky.users()) == ["bob", "cy"]
    assert picky.read("cy").written_at > written
    assert picky.popular() is not None
    assert not loop.writer.stale


def test_an_evicted_mark_does_not_cause_every_list_to_be_written_again(harness, picky):
    harness.publish(clicks(*((f"u{n}", f"i{n % 7}") for n in range(40))))
    loop = harness.begin(harness.loop())
    while loop.turn():
        pass
    for key in picky.fake.keys("nextclick:mark:*"):
        picky.fake.delete(key)
    loop.writer.evictions.has_evicted = lambda users: len(users) > 0
    loop.writer.check()
    assert (loop.writer.stale, loop.writer.popular_stale) == ({}, True)
    loop.writer.evictions.has_evicted = lambda _: False
    for key in picky.fake.keys("nextclick:mark:*"):
        picky.fake.delete(key)
    loop.writer.check()
    assert len(loop.writer.stale) == 40


def test_a_refused_list_stands_in_the_status_with_its_reason(harness, picky):
    harness.publish(clicks(*FIVE))
    loop = harness.begin(harness.loop())
    picky.away = True
    while loop.turn():
        pass
    status = StatusReport(loop).describe("running")
    assert status["redis"] == "waiting"
    assert status["waits_for"] == ["refused"]
    assert loop.writer.link.answers  # so it is told there what is the matter
