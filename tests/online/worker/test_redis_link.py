"""The way to Redis, with a redis-server that is full, read-only, hangs, or was emptied."""

import time

import pytest

from benchmarks.proxy import Proxy
from online.config.settings import Settings
from online.worker.redis_link import RedisLink
from stream.lists import Lists, ListsError, TopList, WriteResult, connect

LIST = TopList(items=["i"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=2, source="personal")


class Owner:
    """Notes what a link tells."""

    def __init__(self, lists, tmp_path, **others):
        self.lost, self.returns = [], 0
        self.ahead_s = 0.0  # of the computer's monotonic clock
        settings = Settings(data_dir=tmp_path, **{"retry_s_min": 1e-6, "retry_s_max": 1e-6, **others})
        self.link = RedisLink(
            settings, lists, clock=lambda: 1_000.0, on_loss=self.lost.append, on_return=self.has_returned,
            monotonic=lambda: time.monotonic() + self.ahead_s,
        )  # fmt: skip

    def has_returned(self, _):
        self.returns += 1


class Memory:
    """A Redis whose answers are listed: a number, None, or an error."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def write(self, *_, mark, replacing=()):  # noqa: ARG002
        answer = self.answers.pop(0) if self.answers else mark.number - 1
        if isinstance(answer, Exception):
            raise answer
        return WriteResult({"": answer})


def comes_back(owner):
    """Writes until it is taken: each attempt is due only a little later than the one before."""
    deadline = time.monotonic() + 30
    while not owner.link.write({"u": LIST}, None):
        assert time.monotonic() < deadline
    return True


def test_what_is_refused_is_not_done_and_what_follows_is_once_it_answers(tmp_path):
    owner = Owner(Memory(None, ListsError("full"), ListsError("full")), tmp_path)
    assert owner.link.write({"u": LIST}, None)
    assert not owner.link.write({"u": LIST}, None)
    assert owner.link.away_since == 1_000.0
    assert comes_back(owner)
    assert owner.link.away_since is None
    assert (owner.returns, owner.lost) == (1, [])


def test_an_unavailable_redis_is_asked_seldom(tmp_path):
    memory = Memory(*[ListsError("no Redis answers")] * 9)
    owner = Owner(memory, tmp_path, retry_s_min=3_600, retry_s_max=3_600)
    for _ in range(9):
        owner.link.write({}, None)
    assert len(memory.answers) == 8


def test_an_outage_is_logged_once(tmp_path, caplog):
    owner = Owner(Memory(*[ListsError("no Redis answers")] * 5), tmp_path)
    comes_back(owner)
    assert [record.message for record in caplog.records] == [
        "no Redis answers; learning goes on, lists will be brought up to date"
    ]


@pytest.mark.real
def test_a_full_or_read_only_redis_is_waited_for_and_an_emptied_one_is_noticed(redis_server, tmp_path, caplog):
    client = connect(redis_server.url)
    client.flushall()
    owner = Owner(Lists(client, ttl_s=60), tmp_path)
    assert owner.link.write({"a": LIST}, LIST)
    for refuse, allow in (
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        (("ACL", "SETUSER", "default", "-set"), ("ACL", "SETUSER", "default", "+set")),
    ):
        client.execute_command(*refuse)
        try:
            assert not owner.link.write({"a": LIST}, None), refuse
            assert owner.link.away_since is not None
        finally:
            client.execute_command(*allow)
        assert comes_back(owner), refuse
    assert (owner.returns, owner.lost) == (4, [])
    assert caplog.text.count("learning goes on") == 4
    assert "nextclick:" not in caplog.text  # whose list it was, and what stood in it
    client.flushall()
    assert owner.link.check()
    assert owner.lost == [None]
    assert owner.link.check()
    assert owner.lost == [None]


@pytest.mark.real
def test_a_redis_that_restarts_empty_at_once_is_noticed_at_the_next_write(redis_server, tmp_path):
    owner = Owner(Lists(connect(redis_server.url), ttl_s=60), tmp_path)
    owner.link.write({"a": LIST}, LIST)
    owner.lost.clear()
    redis_server.kill()
    redis_server.start()
    assert owner.link.write({"b": LIST}, LIST)
    assert owner.lost == [None]


@pytest.mark.real
def test_a_network_that_is_cut_is_found_out_and_what_is_owed_goes_through_afterwards(redis_server, tmp_path):
    with Proxy(int(redis_server.url.split(":")[2].split("/")[0])) as proxy:
        owner = Owner(Lists(connect(f"redis://127.0.0.1:{proxy.port}/0"), ttl_s=60), tmp_path)
        assert owner.link.write({"a": LIST}, LIST)
        proxy.cut(on=True)
        assert not owner.link.write({"a": LIST}, LIST)
        assert not owner.link.due  # an attempt took seconds to fail: the next one waits in proportion
        proxy.cut(on=False)
        owner.ahead_s += 600.0
        assert owner.link.due
        assert owner.link.write({"a": LIST}, LIST)
        proxy.delay_s = 0.1
        assert owner.link.write({"a": LIST}, LIST)
        assert not owner.link.due  # slow: as much time for other work
