"""`nextclick forget` on a live worker: asked for, done, and proved by a search of every store."""

import contextlib
import json
import sqlite3
import threading
import time

import pytest
from rich.console import Console

import online.cli
from online.commands import forget as forget_command
from online.commands.forget import ForgetError, _erase_records, forget, found_in_log
from online.config.settings import Settings
from online.worker.connections import open_lists, open_producer, open_reader, prepare_topics
from online.worker.requests import answer_request
from stream.embedded_redis import EmbeddedRedis
from stream.events import Click, encode
from stream.impressions import Impression, ShownItem, parse
from stream.impressions import encode as encode_impression
from stream.lists import Lists
from tests.online.conftest import SMALL, worker_thread

START = 1_700_000_000.0
USERS = ("u1", "u11", "xu1", "42")
WAIT_S = 120.0


def clicks(users=USERS, count=6):
    return [
        Click(user_id=user, item_id=f"i{n % 4}", timestamp=START + 60 * n, event_id=f"{user}-{n}")
        for n in range(count)
        for user in users
    ]


def publish(settings, some, broken=()):
    prepare_topics(settings)
    producer = open_producer(settings)
    for click in some:
        producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
    for key, value in broken:
        producer.send(settings.clicks_topic, key=key, value=value)
    producer.close()


BROKEN = [(b"u1", b"{"), (b"u11", b"{"), (None, b'{"user_id": "u1", "item_id": ""}'), (None, b'{"user_id": "u11"}')]


@pytest.fixture
def settings(tmp_path, free_port):
    quick = {
        "checkpoint_interval_s": 0.0,
        "status_interval_s": 0.0,
        "poll_timeout_s": 0.01,
        "forget_checkpoints_s": 0.0,
    }
    return Settings(**{"data_dir": tmp_path / "data", "embedded_redis_port": free_port, **SMALL, **quick})


def values(settings, topic):
    reader = open_reader(settings, topic)
    found = [record.value for record in reader.read()]
    reader.close()
    return found


def test_after_forgetting_no_store_names_the_user_and_all_others_are_there(settings):
    publish(settings, clicks(), BROKEN)
    with worker_thread(settings):
        proof = forget(settings, "u1", timeout_s=WAIT_S)
        assert proof.complete, proof.as_dict()
        places = " ".join(proof.found)
        for part in (
            "memory: history_clicks",
            "memory: moments",
            "checkpoint ",
            "Redis",
            "clicks.dead",
            "nextclick.events",
        ):
            assert part in places
        assert {"bytes of log.db", "topic clicks"} <= proof.found.keys()
        lists = open_lists(settings)
        assert set(lists.users()) == set(USERS) - {"u1"}
        assert forget(settings, "u1", timeout_s=WAIT_S).complete  # and again
        unknown = forget(settings, "u99", timeout_s=WAIT_S)
        assert unknown.complete
        assert (proof.known, unknown.known) == (True, False)
    kept = values(settings, settings.clicks_topic)
    assert sum(b'"u11"' in value for value in kept) == 7
    assert not any(b'"u1"' in value for value in kept)
    assert values(settings, settings.dead_letters_topic) == [b"{", b'{"user_id": "u11"}']
    everything = b"".join(path.read_bytes() for path in settings.data_dir.rglob("*") if path.is_file())
    assert b'"u1"' not in everything
    assert b'"u11"' in everything


def test_what_was_shown_to_the_user_goes_from_the_embedded_log_and_nothing_else(settings):
    prepare_topics(settings)
    item = ShownItem(item_id="i1", position=1, propensity=0.5)
    with contextlib.closing(open_producer(settings)) as producer:
        for user in ("1", "11", None):  # the other lists have a position 1
            record = Impression(
                request_id=f"r-{user}", user_id=user, timestamp=START, policy="p", version=1, explored=True,
                items=(item,),
            )  # fmt: skip
            producer.send(settings.impressions_topic, key=user and user.encode(), value=encode_impression(record))
    assert found_in_log(settings, "1")["topic nextclick.impressions"] == 1
    _erase_records(settings, "1", {})
    assert set(found_in_log(settings, "1").values()) == {0}
    kept = [parse(value).user_id for value in values(settings, settings.impressions_topic)]
    assert kept == ["11", None]


def test_the_command_prints_what_was_searched_and_what_remains(settings, monkeypatch, command):
    publish(settings, clicks())
    monkeypatch.setattr(online.cli, "out", Console(width=160, highlight=False))
    monkeypatch.setattr(online.cli, "_settings", lambda: settings)

    with worker_thread(settings):
        code, shown, _ = command("forget", "42", "--timeout", str(WAIT_S))
        assert code == 0, shown
        assert "forgotten: found nowhere any more" in shown
        assert "what remains" in shown
        assert "Nothing was known" not in shown
        assert "weights" in shown
        code, shown, _ = command("forget", "u11", "--json")
        assert (code, json.loads(shown)["forgotten"]) == (0, True)
        code, shown, told = command("forget", "u99")
        assert code == 0
        assert "Nothing was known of this user" in shown
        assert f"uses the click log of {settings.data_dir}" in told


def test_without_a_worker_it_is_only_asked_for_and_done_later(settings, free_port):
    publish(settings, clicks())
    with EmbeddedRedis(free_port):
        said = []
        proof = forget(settings, "u1", timeout_s=1.0, on_wait=said.append)
    assert not proof.complete
    assert "no worker runs" in proof.waits_for[0]
    assert len(said) == 1
    assert "no worker runs" in said[0]
    assert proof.found["the worker's memory and checkpoints"] is None
    with worker_thread(settings):
        assert forget(settings, "u1", timeout_s=WAIT_S).complete
        assert "u1" not in set(open_lists(settings).users())


@pytest.mark.parametrize("user", ["", "x" * 257, "\udcff"])
def test_what_is_no_user_id_is_refused_at_once(settings, user):
    with pytest.raises(ForgetError):
        forget(settings, user, timeout_s=1.0)


def test_what_is_left_is_found(settings, free_port):
    """The search is not blind: each of these is what a forgetting that did not happen would leave."""
    publish(settings, clicks(), BROKEN)
    found = forget_command.found_in_log(settings, "u1")
    assert found["topic clicks"] == 8
    assert sum(found[name] for name in found if name.startswith("bytes of")) >= 6
    assert forget_command.found_in_log(settings, "1")["topic clicks"] == 0
    number = b'{"user_id": 7, "item_id": "i", "timestamp": 1}'
    publish(settings, [], [(None, number), (None, number.replace(b"7", b"77"))])
    assert forget_command.found_in_log(settings, "7")["topic clicks"] == 1
    publish(settings, clicks(("u1",), 1))
    with EmbeddedRedis(free_port):
        proof = forget(settings, "u1", timeout_s=1.0)
        assert proof.found["topic clicks"] == 0  # the clicks of the log itself go without a worker, too
        lists = open_lists(settings)
        lists.ask({"id": "x", "user": "u1"}, 60)
        assert lists.keys_naming("u1") == 1
        assert lists.keys_naming("u11") == 0


@pytest.mark.parametrize(
    ("user", "value"),
    [
        ("7", b'{"user_id": 7.0, "item_id": "i", "timestamp": 1}'),
        ("12345678", b'{"user_id": 1.2345678E7, "item_id": "i", "timestamp": 1}'),
        ("-7", b'{"user_id": -7, "item_id": "i", "timestamp": 1}'),
        ("a/b", b'{"user_id": "a\\/b", "item_id": "i", "timestamp": 1}'),  # as PHP writes it
        ("a<b", b'{"user_id": "a\\u003cb", "item_id": "i", "timestamp": 1}'),  # as Go does
        ("u1", b'\xef\xbb\xbf{"user_id": "u1", "item_id": "i", "timestamp": 1}'),
        ("ann", b'{"user": {"id": "ann"}, "user_id": "another", "item_id": "i", "timestamp": 1}'),
    ],
)
def test_a_user_is_found_however_the_producer_writes_the_id(settings, user, value):
    settings = settings.model_copy(update={"click_fields": "user=user.id"})
    publish(settings, [], [(None, value), (None, value.replace(b"7", b"6").replace(b"a", b"c").replace(b"u1", b"u2"))])
    assert forget_command.found_in_log(settings, user)["topic clicks"] == 1


def test_where_fields_are_called_otherwise_they_are_forgotten_too(settings):
    settings = settings.model_copy(update={"click_fields": "user_id=who.id,item_id=what,timestamp=ts"})
    theirs = [
        json.dumps({"who": {"id": user}, "user_id": "x", "what": f"i{n % 4}", "ts": 1_000 * (START + 60 * n)}).encode()
        for n in range(6)
        for user in ("u1", "u11", 42)
    ]
    bad = [b'{"who": {"id": "u1"}, "user_id": "x", "what": 7}', b'{"who": {"id": "u11"}, "user_id": "x", "what": 7}']
    publish(settings, clicks(("u2", "u1"), 2), [(None, value) for value in [*theirs, *bad]])
    found = forget_command.found_in_log(settings, "u1")
    assert found["topic clicks"] == 9
    assert sum(found[name] for name in found if name.startswith("bytes of")) >= 9
    with worker_thread(settings) as lists:
        assert forget(settings, "u1", timeout_s=WAIT_S).complete
        assert forget(settings, "42", timeout_s=WAIT_S).complete
        assert set(lists.users()) == {"u2", "u11"}
    left = values(settings, settings.clicks_topic)
    assert not any(b'"u1"' in value or b'"id": 42' in value for value in left)
    assert values(settings, settings.dead_letters_topic) == bad[1:]


def test_clicks_that_come_after_forgetting_are_found_and_reported(settings):
    publish(settings, clicks(("u1", "u11")))
    with worker_thread(settings):
        assert forget(settings, "u1", timeout_s=WAIT_S).complete
        publish(settings, clicks(("u1",), 3))
        assert forget(settings, "u1", timeout_s=WAIT_S).complete
        assert sqlite3.connect(settings.log_path).execute("SELECT count(*) FROM records").fetchone()[0] > 6


# --- several workers ---


def test_with_several_workers_the_proof_covers_each_and_names_who_is_silent(lists_of_workers):
    lists = lists_of_workers
    proof = forget_command.Proof()
    request = {"forget": "digest", "after": [], "search": True}
    forget_command._ask(lists, request, 1.0, proof)
    assert proof.found == {
        "w-1: memory: histories": 0,
        "w-1: checkpoint 3": 0,
        "w-2: memory: histories": 1,
        "w-3: the worker's memory and checkpoints": None,
    }
    assert proof.waits_for[0] == "w-2: clicks before the request"
    assert "worker w-3 did not take the request" in proof.waits_for[1]
    assert not proof.complete


@pytest.fixture
def lists_of_workers(free_port):
    answers = {
        "w-1": {"waits_for": [], "memory": {"histories": 0}, "checkpoints": {"3": 0}},
        "w-2": {"waits_for": ["clicks before the request"], "memory": {"histories": 1}},
    }
    stop = threading.Event()
    with EmbeddedRedis(free_port) as server:
        workers = [Lists(server.client, ttl_s=60, worker=name) for name in ("w-1", "w-2", "w-3")]

        def answer():
            while not stop.is_set():
                for one in workers[:2]:
                    answer_request(one, {"forget": lambda _, one=one: answers[one.worker]})
                time.sleep(0.005)

        for one in workers:
            one.write_status({"state": "running"}, ttl_s=60)
        thread = threading.Thread(target=answer)
        thread.start()
        yield Lists(server.client, ttl_s=60)
        stop.set()
        thread.join()
