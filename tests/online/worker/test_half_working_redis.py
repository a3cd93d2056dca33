"""A Redis that answers and does not take lists: said once, never found to be back before it is, and soon when it is."""

import logging
from itertools import pairwise

import pytest

from online.config.settings import Settings
from online.worker.redis_link import RELAPSE_S, SETTLED_S, RedisLink
from stream.lists import WHOLE, ListsError, RedisUnavailableError, TopList, WriteResult

LIST = TopList(items=["i"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=2, source="personal")
TURN_S = 0.1


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


class Halfway:
    """Takes the mark always, and lists when `takes(seconds)` says so."""

    def __init__(self, clock, takes):
        self.clock, self.takes = clock, takes
        self.numbers, self.attempts, self.taken_at = {}, 0, []

    def write(self, lists, popular, *, mark, replacing=()):  # noqa: ARG002
        if lists or popular:
            self.attempts += 1
            error = self.takes(self.clock.now - 1_000.0)
            if error is not None:
                raise error
            self.taken_at.append(self.clock.now - 1_000.0)
        found, self.numbers[mark.id] = self.numbers.get(mark.id), mark.number
        return WriteResult({WHOLE: found}, frozenset())


@pytest.fixture
def run(tmp_path, caplog):
    """Looks every second and writes lists every tenth of one -> the link, the Redis, and how often its state moved."""

    def ran(takes, seconds=60.0):
        caplog.set_level(logging.INFO)
        clock = Clock()
        redis = Halfway(clock, takes)
        link = RedisLink(
            Settings(data_dir=tmp_path),
            redis,
            clock=clock,
            monotonic=clock,
            on_loss=lambda _: None,
            on_return=lambda seconds: logging.getLogger("link").info("back after %.0f s", seconds),
        )
        states = [link.away_since]
        for turn in range(round(seconds / TURN_S)):
            clock.now = 1_000.0 + turn * TURN_S
            if turn % 10 == 0 and link.due:
                link.check()
            if link.due:
                link.write({"u": LIST}, LIST)
            states.append(link.away_since)
        return link, redis, sum(one != other for one, other in pairwise(states))

    return ran


def test_a_redis_that_takes_the_mark_but_no_lists_is_reported_every_half_minute(run, caplog):
    link, redis, changes = run(lambda _: RedisUnavailableError("Redis at r is a cluster"))
    assert changes == 1
    assert link.away_since == 1_000.0
    assert link.trouble == "Redis at r is a cluster"
    first, *others = [record.message for record in caplog.records]
    assert first == "Redis at r is a cluster; learning goes on, lists will be brought up to date"
    assert len(others) == 1
    assert others[0].startswith("Redis has accepted no lists for 3")
    assert redis.attempts < 30  # with waits up to five seconds


def test_lists_are_taken_within_seconds_of_its_being_mended(run):
    link, redis, changes = run(lambda at: ListsError("no") if at < 40 else None)
    assert 40 <= redis.taken_at[0] <= 40 + 5
    assert changes == 2
    assert link.away_since is None
    assert link.trouble is None


def test_one_that_takes_lists_and_refuses_them_by_turns_does_not_flap(run, caplog):
    """Every second write is refused, then all are taken."""
    turns = iter(range(10**6))
    link, redis, changes = run(lambda at: ListsError("full") if next(turns) % 2 == 0 and at < 60 else None, 180.0)
    during = [record for record in caplog.records if "back after" in record.message or "full" in record.message]
    assert changes <= 6
    assert len(during) <= 2 * 180 / 30
    assert len([at for at in redis.taken_at if at < 60]) < 40  # the waits between attempts grow all the same
    assert link.away_since is None


def test_a_state_that_moved_is_kept_for_longer_with_each_relapse(run):
    """Refuses for a second, every fifteen seconds."""
    _, _, changes = run(lambda at: ListsError("full") if at % 15 < 1 else None, 600.0)
    assert changes <= 12


def test_what_fails_long_afterwards_is_a_new_outage(run, caplog):
    at_second = RELAPSE_S + SETTLED_S + 10
    _, _, changes = run(lambda at: ListsError("no") if at < 2 or at_second < at < at_second + 2 else None, 120.0)
    assert changes == 4
    assert caplog.text.count("learning goes on") == 2
    assert caplog.text.count("by turns") == 0


def test_other_reasons_of_the_same_outage_are_logged_once_and_bounded(run, caplog):
    seen = iter(range(10**6))
    run(lambda _: RedisUnavailableError(f"reason {next(seen) % 3}"))
    assert [caplog.text.count(f"now: reason {n}") for n in range(3)] == [0, 1, 1]
    caplog.clear()
    run(lambda _: RedisUnavailableError(f"reason {next(seen)}"))
    assert len(caplog.records) < 12


def test_reasons_that_are_never_the_same_do_not_flap_either(run, caplog):
    turns = iter(range(10**6))

    def takes(_):
        turn = next(turns)
        return ListsError(f"full by {turn}") if turn % 2 == 0 else None

    _, _, changes = run(takes, 300.0)
    assert changes < 40
    assert len(caplog.records) < 60
