"""One behaviour suite for every Redis that lists may stand in."""

import logging
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from stream.embedded_redis import EmbeddedRedis
from stream.lists import (
    POPULAR_KEY,
    REQUEST_KEY,
    STATUS_KEY,
    Lists,
    ListsError,
    TopList,
    Watermark,
    connect,
    top_key,
)

LIST = TopList(
    items=["i1", "ï2"],
    scores=[0.5, 0.25],
    version=3,
    offset="0:42",
    clicked_at=1_000,
    written_at=1_001,
    source="worker",
)
POPULAR = LIST.model_copy(update={"items": ["p1"], "scores": [1.0]})


REAL = {
    "redis-server": "redis_server",
    "cluster": "redis_cluster",
    "cluster without full coverage": "partial_redis_cluster",
    "sentinel": "redis_sentinels",
}


@pytest.fixture(
    params=["embedded", "embedded over the network", *(pytest.param(name, marks=pytest.mark.real) for name in REAL)]
)
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    if request.param in REAL:
        server = request.getfixturevalue(REAL[request.param])
        client = connect(server.url, getattr(server, "options", {}))
        client.flushall()
        yield client
        client.close()
        return
    with EmbeddedRedis() as server:
        yield server.client if request.param == "embedded" else connect(server.url)


@pytest.fixture
def lists(client: redis.Redis) -> Lists:
    return Lists(client, ttl_s=60)


def test_a_written_list_is_read_back(lists):
    lists.write({"u1": LIST})
    assert lists.read("u1") == LIST
    assert lists.read("u2") is None


def test_a_later_list_replaces_the_earlier(lists):
    lists.write({"u1": LIST})
    lists.write({"u1": POPULAR})
    assert lists.read("u1") == POPULAR


def test_the_popular_list_stands_beside_those_of_users(lists):
    assert lists.popular() is None
    lists.write({"u1": LIST}, popular=POPULAR)
    assert lists.popular() == POPULAR
    assert lists.read("u1") == LIST
    assert lists.read("unknown") is None


def test_keys_and_ttl_are_what_other_programs_rely_on(lists, client):
    lists.write({"u:1": LIST}, popular=POPULAR)
    lists.write_status({"version": 3}, ttl_s=5)
    assert (top_key("u:1"), POPULAR_KEY, STATUS_KEY) == ("nextclick:top:u:1", "nextclick:popular", "nextclick:status")
    assert TopList.model_validate_json(client.get("nextclick:top:u:1")) == LIST
    assert 55 <= client.ttl("nextclick:top:u:1") <= 60
    assert 55 <= client.ttl("nextclick:popular") <= 60
    assert 1 <= client.ttl("nextclick:status") <= 5


def test_lists_beyond_one_pipeline_are_all_written_and_all_users_found(lists):
    every_list = {f"üser {n}": LIST for n in range(2_500)}
    lists.write(every_list, popular=POPULAR)
    assert sorted(lists.users()) == sorted(every_list)


def test_nothing_to_write_is_no_error(lists):
    lists.write({})
    assert list(lists.users()) == []


def all_pages(lists):
    """All lists, page by page, and how many pages that took."""
    found, pages = {}, 0
    cursor = None
    while cursor != 0:
        cursor, some = lists.page(cursor or 0)
        found |= some
        pages += 1
    return found, pages


def test_all_lists_are_read_in_pages_and_nothing_else(lists, client):
    assert all_pages(lists)[0] == {}
    every_list = {f"üser {n}": LIST.model_copy(update={"version": n}) for n in range(2_500)}
    lists.write(every_list, popular=POPULAR)
    lists.write_status({"version": 3}, ttl_s=60)
    client.set(top_key("broken"), b"{")
    client.set(b"nextclick:top:\xff", LIST.model_dump_json())
    found, pages = all_pages(lists)
    assert found == every_list
    assert pages >= 2


def test_an_amended_list_lives_no_longer_than_the_one_before(lists, client):
    lists.write({"u1": LIST, "u2": LIST})
    client.expire(top_key("u1"), 20)
    shorter = LIST.model_copy(update={"items": ["i1"], "scores": [0.5]})
    lists.amend({"u1": shorter, "gone": shorter})
    assert all_pages(lists)[0] == {"u1": shorter, "u2": LIST}
    assert 15 <= client.ttl(top_key("u1")) <= 20


def test_a_list_that_is_amended_to_nothing_goes_and_the_popular_one_stays(lists):
    lists.write({"u1": LIST}, popular=POPULAR)
    lists.amend({})
    lists.amend({"u1": LIST.model_copy(update={"items": [], "scores": []})})
    assert lists.read("u1") is None
    assert lists.popular() == POPULAR


def test_status_is_what_was_written(lists):
    assert lists.status() is None
    lists.write_status({"version": 3, "lag": {"0": 1}}, ttl_s=60)
    assert lists.status() == {"version": 3, "lag": {"0": 1}}


def test_a_value_that_is_no_list_counts_as_absent_and_is_logged(lists, client, caplog):
    client.set(top_key("u1"), b"\xff{")
    client.set(STATUS_KEY, b"[]")
    lists.write({}, popular=POPULAR)
    with caplog.at_level(logging.WARNING):
        assert lists.read("u1") is None
        assert lists.popular() == POPULAR
        assert lists.status() is None
    assert "nextclick:top:u1" in caplog.text
    assert "nextclick:status" in caplog.text


def test_a_key_of_another_type_is_one_clear_line(lists, client):
    client.lpush(top_key("u1"), "x")
    with pytest.raises(ListsError, match=r"^Redis at redis(\+cluster|\+sentinel)?://\S+ refuses: .*WRONGTYPE") as error:
        lists.read("u1")
    assert "\n" not in str(error.value)


def test_several_writers_and_readers_at_once(client):
    lists, failures = Lists(client, ttl_s=60), []

    def write_and_read(name: str) -> None:
        try:
            for n in range(50):
                lists.write({name: LIST.model_copy(update={"version": n})})
                assert lists.read(name).version == n
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write_and_read, args=(f"u{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@given(
    items=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
    scores=st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    offset=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_the_json_of_a_list_reads_back_equal(items, scores, offset):
    top = LIST.model_copy(update={"items": items, "scores": scores, "offset": offset})
    assert TopList.model_validate_json(top.model_dump_json()) == top


def test_a_redis_that_is_not_there_is_named_soon_without_its_password(free_port):
    port = free_port
    lists = Lists(connect(f"redis://somebody:s3cret@127.0.0.1:{port}/2"), ttl_s=60)
    began = time.monotonic()
    for attempt in (
        lists.check,
        lambda: lists.write({"u1": LIST}),
        lambda: lists.read("u1"),
        lambda: list(lists.users()),
    ):
        with pytest.raises(ListsError, match=f"no Redis answers at redis://127.0.0.1:{port}/2: start it") as error:
            attempt()
        assert "s3cret" not in str(error.value)
        assert "\n" not in str(error.value)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("url", ["http://somebody:s3cret@host/", "redis://somebody:s3cret@host:port/", "", "localhost"])
def test_an_invalid_url_is_refused_without_showing_it(url):
    with pytest.raises(ListsError, match="NEXTCLICK_REDIS_URL") as error:
        connect(url)
    assert "s3cret" not in str(error.value)


def test_the_embedded_redis_frees_its_port_and_names_a_taken_one(free_port):
    port = free_port
    first = EmbeddedRedis(port).start()
    assert first.url == f"redis://127.0.0.1:{port}/0"
    with pytest.raises(ListsError, match=f"127.0.0.1:{port}"):
        EmbeddedRedis(port).start()
    first.close()
    first.close()
    with pytest.raises(ListsError, match="not running"):
        _ = first.client
    with EmbeddedRedis(port) as second:
        Lists(connect(second.url), ttl_s=1).check()


def test_what_the_process_writes_other_clients_of_the_embedded_redis_read():
    with EmbeddedRedis() as server:
        Lists(server.client, ttl_s=60).write({"u1": LIST})
        assert Lists(connect(server.url), ttl_s=60).read("u1") == LIST


@pytest.mark.real
def test_a_client_outlives_a_redis_that_is_restarted(redis_server):
    lists = Lists(connect(redis_server.url), ttl_s=60)
    lists.write({"u1": LIST})
    redis_server.kill()
    with pytest.raises(ListsError, match="no Redis answers"):
        lists.read("u1")
    redis_server.start()
    assert lists.read("u1") is None
    lists.write({"u1": LIST})
    assert lists.read("u1") == LIST


@pytest.mark.real
def test_a_full_redis_is_one_clear_line(redis_server):
    client = connect(redis_server.url)
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(ListsError, match="maxmemory") as error:
            Lists(client, ttl_s=60).write({"u1": LIST})
        assert "\n" not in str(error.value)
    finally:
        client.config_set("maxmemory", "0")


def test_a_request_is_taken_once_and_expires_if_no_worker_takes_it(lists, client):
    assert lists.take_request() is None
    assert lists.ask({"id": "a", "rollback": 3}, ttl_s=30)
    assert 0 < client.ttl(REQUEST_KEY) <= 30
    assert not lists.ask({"id": "b"}, ttl_s=30)
    assert lists.take_request() == {"id": "a", "rollback": 3}
    assert lists.take_request() is None
    assert not lists.withdraw_request()
    assert lists.ask({"id": "c"}, ttl_s=30)
    assert lists.withdraw_request()
    assert lists.take_request() is None


def test_an_answer_waits_for_who_asked(lists, client):
    assert lists.answer_to("a") is None
    lists.answer("a", {"version": 4})
    assert lists.answer_to("a") == {"version": 4}
    assert lists.answer_to("b") is None
    (key,) = client.keys("nextclick:answer:*")
    assert 0 < client.ttl(key) <= 60


@pytest.mark.parametrize("value", ["", "no json", "[]", "7"])
def test_an_invalid_request_is_dropped(lists, client, value, caplog):
    client.set(REQUEST_KEY, value)
    assert lists.take_request() is None
    assert not client.exists(REQUEST_KEY)
    assert "counts as absent" in caplog.text


def test_a_value_that_is_larger_than_wanted_is_not_read(client, caplog):
    lists = Lists(client, ttl_s=60, value_bytes_max=1_000)
    Lists(client, ttl_s=60).write({"u1": LIST.model_copy(update={"items": ["x" * 1_000]}), "u2": LIST})
    client.set(STATUS_KEY, b'{"state": "' + b"x" * 1_000_000 + b'"}')
    assert lists.read("u1") is None
    assert lists.status() is None
    assert lists.read("u2") == LIST
    assert [record.message.partition(" in Redis")[0] for record in caplog.records] == ["nextclick:top:u1", STATUS_KEY]


def test_each_write_returns_the_watermarks_before_it(lists):
    first = lists.write({"u1": LIST}, mark=Watermark("w", 1)).previous
    assert first
    assert set(first.values()) == {None}
    assert lists.write({}, mark=Watermark("w", 2, tuple(first))).previous == dict.fromkeys(first, 1)
    assert set(lists.write({}, mark=Watermark("other", 1)).previous.values()) == {None}
    assert lists.write({"u1": LIST}).previous == {}


def test_what_a_user_has_hidden_is_left_out_of_what_stands_for_the_user(lists, client):
    lists.write(
        {"u1": LIST, "u2": LIST}, popular=POPULAR.model_copy(update={"items": ["p1", "i1"], "scores": [1, 0.5]})
    )
    lists.hidden.write({"u1": {"i1": None, "ï2": 0.5}, "ü 3": {"p1": 2.0}, "u4": {}})
    first, second, third, fourth = lists.read_many_now(["u1", "u2", "ü 3", "u4"])
    assert (first.own.items, first.own.scores, first.popular.items) == (["ï2"], [0.25], ["p1"])
    assert (first.hidden, first.top) == ({"i1"}, first.own)  # the other was hidden until before the latest click
    assert (second.own, second.hidden) == (LIST, frozenset())
    assert (third.own, third.top.items, third.top.scores) == (None, ["i1"], [0.5])
    assert fourth.top.items == ["p1", "i1"]
    assert [lists.standing_for(user) for user in ("u1", "u2", "ü 3", "u4")] == [first, second, third, fourth]
    assert 115 <= client.ttl("nextclick:hidden:u1") <= 120  # of lists: 60
    lists.hidden.write({"u1": {}})
    assert lists.standing_for("u1").own == LIST


@pytest.mark.parametrize("value", [b"[]", b"{", b"\xff", b"7"])
def test_what_does_not_say_what_is_hidden_hides_nothing_and_is_warned_of(lists, client, value, caplog):
    lists.write({"u1": LIST})
    client.set("nextclick:hidden:u1", value)
    assert lists.standing_for("u1").own == LIST
    assert "nextclick:hidden:u1" in caplog.text


def test_what_a_user_has_hidden_is_forgotten_with_the_user(lists):
    lists.hidden.write({f"u{n}": {"u7": None} for n in range(12)})
    assert lists.keys_naming("u7") == 1  # the items are no users
    lists.write({"u7": LIST})
    assert lists.keys_naming("u7") == 2
    assert lists.forget(lambda user: user == "u7") == 2
    assert lists.keys_naming("u7") == 0
    assert lists.standing_for("u6").hidden == {"u7"}
    assert list(lists.users()) == []


def test_the_latest_clicks_name_their_users_and_not_items_of_the_same_name(client):
    lists = Lists(client, ttl_s=60, worker="b")
    assert lists.clicks() is None
    lists.write_clicks({"clicks": [{"user_id": "u1", "item_id": "u2"}]}, 60)
    assert lists.clicks() == Lists(client, ttl_s=60).clicks("b")
    assert [lists.keys_naming(user) for user in ("u1", "u2")] == [1, 0]


def test_users_with_a_list_are_counted_and_forgotten(lists):
    every_list = {f"u{n}": LIST for n in range(1_200)}
    lists.write(every_list, popular=POPULAR)
    assert lists.standing([*every_list, "gone"]) == 1_200
    assert lists.standing([]) == 0
    assert lists.keys_naming("u7") == 1
    assert lists.forget(lambda user: user.startswith("u1")) == 311
    assert sorted(lists.users()) == sorted(user for user in every_list if not user.startswith("u1"))
    assert lists.keys_naming("u1") == 0
    assert lists.popular() == POPULAR


def test_only_lists_that_stand_are_replaced_where_that_is_asked(lists):
    lists.write({"u1": LIST})
    lists.write({"u1": POPULAR, "u2": POPULAR}, replacing=["u1", "u2"])
    assert (lists.read("u1"), lists.read("u2")) == (POPULAR, None)


def test_memory_is_reported(lists, request):
    if "network" in request.node.callspec.params["client"]:
        with pytest.raises(ListsError, match="info"):  # its own worker need not ask
            lists.memory()
        return
    memory = lists.memory()
    assert memory.run_id
    assert memory.evicted == 0
    assert not memory.limited
    assert memory.used_share == 0.0


# --- several workers ---


def test_named_workers_have_statuses_and_marks_of_their_own(client):
    one, two, command = (Lists(client, ttl_s=60, worker=name) for name in ("w-1", "w-2", None))
    assert command.read_statuses() == {}
    one.write_status({"version": 1}, ttl_s=60)
    two.write_status({"version": 2}, ttl_s=60)
    assert command.status() is None
    assert one.status() == {"version": 1}
    assert two.read_statuses() == command.read_statuses() == {"w-1": {"version": 1}, "w-2": {"version": 2}}
    client.delete("nextclick:worker:w-1")  # as its time to live does
    assert command.read_statuses() == {"w-2": {"version": 2}}
    assert 0 < client.ttl("nextclick:worker:w-2") <= 60
    one.write({}, mark=Watermark("same", 7))
    assert set(two.write({}, mark=Watermark("same", 1)).previous.values()) == {None}
    assert command.keys_naming("u1") == 0  # the set of names is no JSON, and does no harm


def test_a_request_reaches_the_worker_it_is_for_and_no_other(client):
    one, two, command = (Lists(client, ttl_s=60, worker=name) for name in ("w-1", "w-2", None))
    assert command.ask({"id": "a"}, 30, "w-1")
    assert not command.ask({"id": "b"}, 30, "w-1")
    assert two.take_request() is None
    assert command.take_request() is None
    assert one.take_request() == {"id": "a"}
    one.answer("a", {"done": 1})
    assert command.answer_to("a", "w-2") is None
    assert command.answer_to("a") is None
    assert command.answer_to("a", "w-1") == {"done": 1}
    assert command.ask({"id": "c"}, 30, "w-2")
    assert command.withdraw_request("w-2")
    assert two.take_request() is None


# --- fenced writes ---


@pytest.fixture
def fenced(client, request):
    if "embedded" in request.node.callspec.params["client"]:
        pytest.importorskip("lupa")  # by which the embedded Redis runs scripts
    return Lists(client, ttl_s=60, worker="w", fenced=True)


def at(offset, clicked_at=1_000, item="i"):
    return LIST.model_copy(update={"offset": offset, "clicked_at": clicked_at, "items": [item], "scores": [0.5]})


@pytest.mark.parametrize(
    ("standing", "ours", "rejected"),
    [
        (None, at("0:1"), False),
        (at("0:9"), at("0:10"), False),
        (at("0:10"), at("0:9"), True),
        (at("0:9"), at("0:9", item="new"), False),  # a refresh
        (at("0:9", 2_000), at("0:10", 1_000), False),  # the partition's order decides, not clocks
        (at("0:9", 2_000), at("1:5", 1_000), True),
        (at("0:9", 2_000), at("1:5", 2_000), False),
        (at("0:9", 2_000), at("10:5", 3_000), False),
        (at("1:9", -5), at("11:5", -6), True),
        (at("0:999999999999"), at("0:1000000000000"), False),
        (at("0:9", item='"offset":"0:99","clicked_at":99'), at("0:10"), False),
        (at("0:9", item="x" * 5_000), at("0:8"), True),
    ],
)
def test_a_list_is_rejected_where_a_newer_one_stands(fenced, client, standing, ours, rejected):
    if standing is not None:
        Lists(client, ttl_s=60).write({"u1": standing})
    done = fenced.write({"u1": ours, "u2": at("0:1")}, popular=POPULAR, mark=Watermark("w", 1))
    assert done.rejected == ({"u1"} if rejected else set())
    assert set(done.previous.values()) == {None}
    assert fenced.read("u1") == (standing if rejected else ours)
    assert fenced.read("u2") == at("0:1")
    assert fenced.popular() == POPULAR
    assert fenced.rejected == int(rejected)
    assert 0 < client.ttl(top_key("u2")) <= 60


@pytest.mark.parametrize("value", ["", "{", '"offset":"0:99"', "\xff" * 300])
def test_what_is_no_list_rejects_nothing(fenced, client, value):
    client.set(top_key("u1"), value)
    client.lpush(top_key("u2"), value)
    assert fenced.write({"u1": at("0:1"), "u2": at("0:1")}).rejected == set()
    assert fenced.read("u1") == fenced.read("u2") == at("0:1")


def test_a_fenced_write_replaces_deletes_and_amends_as_another_does(fenced, client):
    nothing = at("0:2").model_copy(update={"items": [], "scores": []})
    fenced.write({"u1": at("0:1"), "u2": at("0:1"), "u4": at("0:5")})
    done = fenced.write({"u1": at("0:2"), "u3": at("0:2"), "u2": nothing, "u4": nothing}, replacing=["u1", "u3"])
    assert done.rejected == {"u4"}
    assert [fenced.read(user) for user in ("u1", "u2", "u3", "u4")] == [at("0:2"), None, None, at("0:5")]
    client.expire(top_key("u1"), 20)
    fenced.amend({"u1": at("0:1", item="old"), "u3": at("0:2")})
    assert fenced.read("u1") == at("0:2")
    fenced.amend({"u1": at("0:2", item="amended")})
    assert fenced.read("u1") == at("0:2", item="amended")
    assert fenced.read("u3") is None
    assert 15 <= client.ttl(top_key("u1")) <= 20
    assert fenced.rejected == 1


def test_more_lists_than_one_pipeline_are_fenced_one_by_one(fenced, client):
    Lists(client, ttl_s=60).write({f"u{n}": at("0:5") for n in range(0, 2_500, 5)})
    done = fenced.write({f"u{n}": at("0:4") for n in range(2_500)})
    assert done.rejected == {f"u{n}" for n in range(0, 2_500, 5)}
    assert fenced.rejected == 500


def test_what_one_worker_sends_is_set_and_del_in_one_pipeline_and_no_script(monkeypatch):
    sent = []

    def execute(self):
        sent.append([args for args, _ in self.command_stack])
        return [None] * len(self.command_stack)

    monkeypatch.setattr(redis.client.Pipeline, "execute", execute)
    lists = Lists(redis.Redis(), ttl_s=60)
    nothing = LIST.model_copy(update={"items": [], "scores": []})
    lists.write({"u1": LIST, "u2": LIST, "u3": nothing}, POPULAR, mark=Watermark("w", 4), replacing=["u2"])
    value = LIST.model_dump_json()
    assert sent == [
        [
            ("SET", "nextclick:top:u1", value, "EX", 60),
            ("SET", "nextclick:top:u2", value, "XX", "EX", 60),
            ("DEL", "nextclick:top:u3"),
            ("SET", "nextclick:popular", POPULAR.model_dump_json(), "EX", 60),
            ("SET", "nextclick:mark:w", 4, "GET", "EX", 60),
        ]
    ]
