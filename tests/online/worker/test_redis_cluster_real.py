"""A real cluster whose nodes are killed, hang, are emptied or give their slots away, and a primary that fails over."""

import signal
import threading
import time

import pytest
import redis

from benchmarks._redis_cluster import Sentinels, running, until
from online.config.settings import Settings
from online.worker.redis_link import RedisLink
from stream.lists import Lists, ListsError, RedisUnavailableError, TopList, Watermark, connect, top_key
from stream.redis_cluster import slot_of

pytestmark = pytest.mark.real

LIST = TopList(items=["i"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=2, source="personal")
USERS = [f"u{n}" for n in range(300)]
LISTS = dict.fromkeys(USERS, LIST)


class Owner:
    """Writes lists as a worker does, and notes what its link tells."""

    def __init__(self, url, tmp_path, **waits):
        self.lists = Lists(connect(url, **waits), ttl_s=600)
        self.lost, self.returns = set(), 0
        settings = Settings(data_dir=tmp_path, retry_s_min=0.02, retry_s_max=0.1)
        self.link = RedisLink(
            settings, self.lists, clock=time.time, on_loss=self.note, on_return=self.has_returned
        )  # fmt: skip
        self.link.on_node_loss = lambda stood_there: self.note(filter(stood_there, USERS))

    def note(self, users):
        self.lost |= set(USERS if users is None else users)

    def has_returned(self, _):
        self.returns += 1

    def write(self):
        return self.link.write(LISTS, LIST)

    def write_until_taken(self, seconds=20):
        deadline = time.monotonic() + seconds
        while not self.write():
            assert time.monotonic() < deadline, self.link.trouble
            time.sleep(0.02)

    def on(self, cluster, number):
        """Users whose list stands on one node."""
        return {user for user in USERS if self.lists.holder_of(user) == f"127.0.0.1:{cluster.nodes[number].port}"}


@pytest.fixture(params=["redis_cluster", "partial_redis_cluster"])
def cluster(request):
    one = request.getfixturevalue(request.param)
    one.flush()
    yield one
    one.wait()


@pytest.fixture
def owner(cluster, tmp_path):
    owner = Owner(cluster.url, tmp_path, connect_s_max=0.3, answer_s_max=0.5)
    assert owner.write()
    return owner


def restart(cluster, number):
    cluster.nodes[number].start()
    cluster.wait()


def test_lists_are_spread_and_each_primary_has_a_watermark_of_its_own(cluster, owner):
    assert all(owner.on(cluster, number) for number in range(3))
    parts = owner.lists.write({}, mark=Watermark("w", 1)).previous
    assert {owner.lists.holder(part) for part in parts} == {f"127.0.0.1:{node.port}" for node in cluster.nodes}
    assert owner.write()
    assert owner.lost == set()


@pytest.mark.parametrize("number", [0, 2])
def test_a_primary_that_was_emptied_is_noticed_and_its_lists_alone_are_lost(cluster, owner, number):
    theirs = owner.on(cluster, number)
    cluster.admin(number).flushall()
    assert owner.link.check()
    assert owner.lost == theirs
    owner.lost.clear()
    assert owner.link.check()
    assert owner.lost == set()


def test_a_primary_that_was_killed_and_came_back_empty_is_an_outage_that_ends(cluster, owner, caplog):
    theirs = owner.on(cluster, 1)
    cluster.nodes[1].kill()
    began = time.monotonic()
    assert not owner.write()
    assert time.monotonic() - began < 5
    assert owner.link.away_since is not None
    assert owner.link.trouble.startswith(("no Redis answers at redis+cluster://", "Redis at redis+cluster://"))
    restart(cluster, 1)
    owner.write_until_taken()
    assert owner.link.away_since is None
    assert owner.lost == theirs
    assert sum("learning goes on" in record.message for record in caplog.records) == 1
    assert "u1" not in caplog.text


def test_a_primary_that_hangs_costs_one_wait_and_loses_nothing(cluster, owner):
    cluster.pause(1)
    try:
        began = time.monotonic()
        assert not owner.write()
        assert time.monotonic() - began < 4  # not one wait for each of its lists
    finally:
        cluster.resume(1)
    owner.write_until_taken()
    assert owner.lost == set()


def test_readers_of_the_other_primaries_go_on_where_full_coverage_is_not_required(partial_redis_cluster, tmp_path):
    owner = Owner(partial_redis_cluster.url, tmp_path, connect_s_max=0.3, answer_s_max=0.5)
    partial_redis_cluster.flush()
    assert owner.write()
    theirs, others = owner.on(partial_redis_cluster, 2), owner.on(partial_redis_cluster, 0)
    partial_redis_cluster.nodes[2].kill()
    try:
        assert all(owner.lists.read(user) == LIST for user in others)
        with pytest.raises(RedisUnavailableError):
            owner.lists.read(next(iter(theirs)))
    finally:
        restart(partial_redis_cluster, 2)


def test_a_client_that_is_new_needs_one_living_node_to_find_the_others(partial_redis_cluster):
    partial_redis_cluster.nodes[0].kill()
    try:
        began = time.monotonic()
        client = connect(partial_redis_cluster.url, connect_s_max=0.3, answer_s_max=0.5)
        lists = Lists(client, ttl_s=60)
        first = next(user for user in USERS if lists.holder_of(user).endswith(str(partial_redis_cluster.nodes[1].port)))
        lists.write({first: LIST})
        assert lists.read(first) == LIST
        assert time.monotonic() - began < 3
    finally:
        restart(partial_redis_cluster, 0)


def test_slots_that_move_lose_nothing_and_are_found(cluster, owner):
    slots = sorted({slot_of(top_key(user)) for user in USERS[:40]} | {0, 256, 5_462, 5_632})
    homes = {slot: cluster.number_of(slot) for slot in slots}
    for slot in slots:
        cluster.move(slot, (homes[slot] + 1) % 3)
    assert all(owner.lists.read(user) == LIST for user in USERS)  # MOVED is followed
    assert owner.write()
    assert owner.write()
    assert owner.lost == set()
    assert sorted(owner.lists.users()) == sorted(USERS)
    theirs = owner.on(cluster, 1)
    cluster.admin(1).flushall()  # the marks' slots have moved meanwhile
    assert owner.link.check()
    assert owner.lost == theirs
    for slot in slots:
        cluster.move(slot, homes[slot])


def test_in_the_middle_of_a_move_lists_are_found_at_either_node(cluster, owner):
    user = USERS[3]
    slot = slot_of(top_key(user))
    home = cluster.number_of(slot)
    to = (home + 1) % 3
    cluster.begin_move(slot, to)
    try:
        assert owner.lists.read(user) == LIST  # still here
        cluster.move_keys(slot, home, to)
        newer = LIST.model_copy(update={"version": 2})
        assert owner.lists.read(user) == LIST  # ASK
        fenced = Lists(connect(cluster.url), ttl_s=60, fenced=True)
        assert fenced.write({user: newer}).rejected == set()
        assert owner.lists.read(user) == newer
        assert owner.lists.standing(USERS) == len(USERS)
        assert owner.lists.forget(lambda one: one == user) == 1
        assert owner.lists.keys_naming(user) == 0
        assert owner.link.check()
        assert owner.lost == set()
    finally:
        cluster.end_move(slot, to)
        cluster.move(slot, home)


def test_a_scan_during_which_slots_move_begins_anew(cluster, owner):
    cursor, _ = owner.lists.page()
    assert cursor
    slot = slot_of(top_key(USERS[0]))
    home = cluster.number_of(slot)
    cluster.move(slot, (home + 1) % 3)
    try:
        owner.lists._client.refresh()
        with pytest.raises(ListsError, match="moved slots"):
            owner.lists.page(cursor)
        assert sorted(owner.lists.users()) == sorted(USERS)
    finally:
        cluster.move(slot, home)


REFUSALS = {
    "full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "is full"),
    "too few replicas": (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
        "too few replicas",
    ),
    "no writes": ("ACL SETUSER default -set", "ACL SETUSER default +set", "NOPERM"),
}


@pytest.fixture
def patient_cluster(redis_cluster):
    """A cluster that gives up no node that a busy machine gives no time: CLUSTERDOWN would be an outage of its own."""
    admins = [redis_cluster.admin(number) for number in range(len(redis_cluster.nodes))]
    before = [admin.config_get("cluster-node-timeout")["cluster-node-timeout"] for admin in admins]
    for admin in admins:
        admin.config_set("cluster-node-timeout", 60_000)
    yield redis_cluster
    for admin, timeout_ms in zip(admins, before, strict=True):
        admin.config_set("cluster-node-timeout", timeout_ms)


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_primary_that_refuses_is_one_line_until_it_is_mended(patient_cluster, tmp_path, reason, caplog):
    redis_cluster = patient_cluster
    refuse, allow, says = REFUSALS[reason]
    redis_cluster.flush()
    owner = Owner(redis_cluster.url, tmp_path)
    assert owner.write()
    redis_cluster.admin(1).execute_command(*refuse.split())
    try:
        for _ in range(3):
            assert not owner.write()
            time.sleep(0.15)
    finally:
        redis_cluster.admin(1).execute_command(*allow.split())
    # What threads of earlier tests log meanwhile is none of it.
    (line,) = [record.message for record in caplog.records if record.thread == threading.get_ident()]
    assert says in line
    assert "u1" not in line
    owner.write_until_taken()
    assert owner.lost == set()


def test_the_fullest_primary_counts_and_evictions_are_summed(redis_cluster):
    lists = Lists(connect(redis_cluster.url), ttl_s=60)
    admin = redis_cluster.admin(2)
    used = int(admin.info("memory")["used_memory"])
    admin.config_set("maxmemory", 2 * used)
    admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        memory = lists.memory()
        assert memory.limited
        assert memory.bytes_max == 2 * used
        assert memory.policy == "allkeys-lru"
        assert 0.3 < memory.used_share < 0.8
        assert memory.used_bytes > 2 * used
    finally:
        admin.config_set("maxmemory", 0)
        admin.config_set("maxmemory-policy", "noeviction")


def test_a_redis_that_is_no_cluster_is_named(redis_server):
    url = redis_server.url.replace("redis://", "redis+cluster://")
    with pytest.raises(ListsError, match="is no cluster: check NEXTCLICK_REDIS_URL"):
        Lists(connect(url), ttl_s=60).check()


# --- sentinel ---


def test_after_a_failover_the_new_primary_takes_lists_within_seconds(tmp_path, request):
    program = request.getfixturevalue("redis_sentinels").redis[0]._command[0]
    with running(Sentinels(program, tmp_path / "s")) as servers:
        owner = Owner(servers.url, tmp_path, connect_s_max=0.3, answer_s_max=0.5)
        assert owner.write()
        before = servers.primary()
        until(lambda: redis.Redis(port=servers.redis[1 - before].port).dbsize() >= len(USERS), "it is replicated")
        servers.redis[before].signal(signal.SIGSTOP)
        assert not owner.write()
        assert owner.link.trouble.startswith(("no Redis answers at redis+sentinel://", "the sentinels at"))
        owner.write_until_taken()
        assert servers.primary() != before
        assert owner.lost == set()
        servers.redis[before].signal(signal.SIGCONT)  # it is told to be a replica
        owner.write_until_taken()
        assert all(owner.lists.read(user) == LIST for user in USERS[:20])


def test_a_switch_of_roles_is_followed_though_the_old_primary_still_answers(tmp_path, request):
    program = request.getfixturevalue("redis_sentinels").redis[0]._command[0]
    with running(Sentinels(program, tmp_path / "s")) as servers:
        owner = Owner(servers.url, tmp_path)
        assert owner.write()
        before = servers.primary()
        servers.asked().sentinel_failover(servers.service)
        until(lambda: servers.primary() != before, "it has failed over")
        owner.write_until_taken()
        assert redis.Redis(port=servers.redis[1 - before].port).dbsize() >= len(USERS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": ("/lists", "/other")}, "know no primary of that service"),
        ({"options": {"sentinel_password": "planted-wrong"}}, "NEXTCLICK_REDIS_SENTINEL_USERNAME and _PASSWORD"),
        ({"options": {}}, "NEXTCLICK_REDIS_SENTINEL_USERNAME and _PASSWORD"),
        ({"url": ("planted-1", "planted-wrong")}, "user or password is wrong"),
    ],
)
def test_what_is_wrong_with_sentinels_is_one_line_without_a_password(redis_sentinels, change, says):
    url = redis_sentinels.url.replace(*change.get("url", ("", "")))
    with pytest.raises(ListsError, match=says) as error:
        Lists(connect(url, change.get("options", redis_sentinels.options)), ttl_s=60).check()
    assert "planted" not in str(error.value)
    assert "\n" not in str(error.value)


def test_sentinels_that_are_not_there_are_named_soon(free_port):
    began = time.monotonic()
    with pytest.raises(RedisUnavailableError, match=r"no sentinel answers at redis\+sentinel://127\.0\.0\.1:"):
        Lists(connect(f"redis+sentinel://:planted@127.0.0.1:{free_port}/lists"), ttl_s=60).check()
    assert time.monotonic() - began < 10
