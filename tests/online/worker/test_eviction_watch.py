"""A Redis that evicts lists is told from one that was emptied, said once, and not fought."""

import logging
import time

import pytest

from online.evaluation.town import Town
from online.worker import eviction_watch
from online.worker.eviction_watch import CHECK_S, OVER_S, UNKNOWN_FACTOR, EvictionWatch
from stream.lists import Lists, ListsError, Memory, connect
from tests.online.conftest import NOW

MB = 2**20


class Redis:
    """Says what it is told to say."""

    address = "redis://r:1/0"

    def __init__(self):
        self.says = Memory("run-1", evicted=5, used_bytes=MB, bytes_max=MB, policy="allkeys-lru")
        self.stand = 0

    def memory(self):
        if self.says is None:
            raise ListsError("NOPERM")
        return self.says

    def standing(self, users):
        return min(self.stand, len(users))


class Watched:
    def __init__(self):
        self.redis, self.told, self.rooms, self.now = Redis(), [], 0, 1_000.0
        self.watch = EvictionWatch(
            self.redis,
            emit=lambda kind, text, figures: self.told.append((kind, text, figures)),
            on_room=self.has_room,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def has_room(self):
        self.rooms += 1

    def evicts(self, keys):
        self.redis.says = self.redis.says._replace(evicted=self.redis.says.evicted + keys)

    def passes(self, seconds):
        """Looks once a second."""
        for _ in range(round(seconds)):
            self.now += 1
            self.watch.check()

    @property
    def kinds(self):
        return [kind for kind, *_ in self.told]


@pytest.fixture
def watched():
    found = Watched()
    found.watch.check()
    return found


def test_what_was_evicted_before_is_no_news(watched):
    watched.passes(60)
    assert (watched.told, watched.watch.evicted, watched.watch.since) == ([], 0, None)


def test_eviction_is_reported_once_with_size_and_policy_and_counted(watched):
    for _ in range(20):
        watched.evicts(7)
        watched.passes(CHECK_S)
    ((kind, text, figures),) = watched.told
    assert kind == "evicting"
    assert "redis://r:1/0 is too small" in text
    assert "maxmemory 1.0 MiB, maxmemory-policy allkeys-lru" in text
    assert figures["policy"] == "allkeys-lru"
    assert watched.watch.figures()["evicted"] == 140
    assert watched.rooms == 0


def test_it_is_over_when_there_is_room_for_a_while_and_not_before(watched):
    watched.evicts(1)
    watched.passes(CHECK_S)
    watched.passes(600)  # it is full and evicts nothing, because nothing is written
    assert watched.kinds == ["evicting"]
    watched.redis.says = watched.redis.says._replace(bytes_max=2 * MB)
    watched.passes(OVER_S + 2 * CHECK_S)
    assert watched.kinds == ["evicting", "evicting_over"]
    assert (watched.rooms, watched.watch.since) == (1, None)


def test_room_that_is_taken_again_at_once_is_believed_less_and_less(watched):
    for _ in range(3_600):
        watched.now += 1
        if watched.watch.since is None:
            watched.evicts(1)
            watched.redis.says = watched.redis.says._replace(used_bytes=MB)
        else:
            watched.redis.says = watched.redis.says._replace(used_bytes=MB // 2)
        watched.watch.check()
    assert watched.rooms < 12


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
def test_a_redis_that_was_emptied_has_evicted_nothing(watched, policy):
    watched.redis.says = watched.redis.says._replace(used_bytes=MB // 10, policy=policy)
    assert not watched.watch.has_evicted(["a", "b"])
    assert not watched.told


def test_a_redis_without_a_limit_is_refilled_however_often_it_is_emptied(watched):
    watched.redis.says = watched.redis.says._replace(bytes_max=0)
    assert not any(watched.watch.has_evicted(["a"]) for _ in range(20))


def test_a_restarted_one_begins_to_count_anew(watched):
    watched.redis.says = Memory("run-2", 900, MB // 10, MB, "allkeys-lru")
    assert not watched.watch.has_evicted(["a"])
    watched.passes(20)
    assert (watched.told, watched.watch.evicted) == ([], 0)


def test_a_mark_that_had_to_make_room_is_no_loss_of_everything(watched):
    watched.evicts(3)
    watched.redis.stand = 2
    assert watched.watch.has_evicted(["a", "b"])
    assert watched.kinds == ["evicting"]
    assert all(watched.watch.has_evicted(["a", "b"]) for _ in range(20))
    assert watched.kinds == ["evicting"]


def test_one_that_was_emptied_while_it_evicted_is_filled_again(watched):
    watched.evicts(1)
    watched.passes(CHECK_S)
    watched.redis.says = watched.redis.says._replace(used_bytes=MB // 10)
    assert not watched.watch.has_evicted(["a"])
    watched.passes(OVER_S + 2 * CHECK_S)
    assert watched.rooms == 1


def test_without_leave_to_ask_what_still_stands_tells_them_apart(caplog):
    caplog.set_level(logging.INFO)
    watched = Watched()
    watched.redis.says = None
    watched.passes(30)
    assert caplog.text.count("NOPERM") == 1
    assert not watched.watch.has_evicted(["a"])
    watched.redis.stand = 1
    assert watched.watch.has_evicted(["a"])
    assert "+info" in watched.told[0][1]


def test_one_that_loses_everything_again_and_again_is_not_refilled_for_ever():
    watched = Watched()
    watched.redis.says = None
    assert [watched.watch.has_evicted(["a"]) for _ in range(5)] == [False, False, True, True, True]
    assert watched.kinds == ["evicting"]


def test_without_leave_to_ask_it_is_over_after_a_long_time_without_loss():
    watched = Watched()
    watched.redis.says, watched.redis.stand = None, 1
    assert watched.watch.has_evicted(["a"])
    for _ in range(20):
        watched.passes(60)
        assert watched.watch.has_evicted(["a"])
    watched.passes(OVER_S * UNKNOWN_FACTOR + CHECK_S)
    assert watched.kinds == ["evicting", "evicting_over"]


def works(loop, lists, seconds=0.0):
    """Turns with a look between them, until clicks and time are over -> how often the popular list was missing."""
    until, missing = time.monotonic() + seconds, 0
    while loop.turn() or time.monotonic() < until:
        loop.writer.check()
        missing += lists.popular() is None
    return missing


@pytest.mark.real
@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "volatile-ttl", "allkeys-random"])
def test_a_real_redis_that_is_too_small_is_reported_once_and_filled_later(
    start_redis, harness, monkeypatch, caplog, policy
):
    """It has room for some of the lists of 400 users."""
    monkeypatch.setattr(eviction_watch, "CHECK_S", 0.2)
    monkeypatch.setattr(eviction_watch, "OVER_S", 0.5)
    caplog.set_level(logging.INFO)
    server = start_redis(("--maxmemory-policy", policy), tls=False)
    client = connect(server.url)
    lists = harness.lists = Lists(connect(server.url), ttl_s=3_600)
    clicks = list(Town(users=400, items=150, seed=5, start=NOW - 172_800).clicks(1_600))
    users, latest = {click.user_id for click in clicks}, {click.user_id for click in clicks[-10:]}
    harness.publish(clicks)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 250_000)
    loop = harness.begin(harness.loop(users_held=500, list_size=60, moments_held=2_000))
    missing = works(loop, lists, seconds=1.0)
    assert not missing or policy == "allkeys-random"
    stand = set(lists.users())
    assert 0 < len(stand) < 0.8 * len(users)
    if policy == "allkeys-lru":
        assert latest <= stand
    assert caplog.text.count("evicting: ") == 1
    assert f"maxmemory-policy {policy}" in caplog.text
    assert caplog.text.count("will be written anew") <= 1
    assert loop.writer.evictions.evicted > 0
    refreshes = loop.progress.refreshes
    works(loop, lists, seconds=1.0)
    assert loop.progress.refreshes - refreshes < len(users)  # nothing is written again and again without clicks
    client.config_set("maxmemory", 0)
    works(loop, lists, seconds=5.0)
    deadline = time.monotonic() + 60
    while set(lists.users()) != users:
        works(loop, lists, seconds=0.5)
        assert time.monotonic() < deadline
    assert caplog.text.count("evicting_over: ") == 1
