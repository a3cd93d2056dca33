"""The routes that the dashboard is drawn from: history, requests of the API itself, dead letters."""

from pathlib import Path
from typing import Any

import fakeredis
import pytest
from fastapi.testclient import TestClient

from online.api import dead_letters
from online.api.app import create_app
from online.api.dead_letters import LETTERS_MAX
from online.api.keys import make_key
from online.config.settings import Settings
from online.worker.history import FIELDS
from stream.dead_letters import DeadLetters
from stream.events import BadEvent
from stream.lists import Lists, ListsError
from stream.log import LogProducer
from stream.source import Record

KEY, ENTRY = make_key("shop")
ROUTES = ("/v1/history.json", "/v1/requests.json", "/v1/dead-letters", "/v1/clicks/latest")


def client(lists: Lists | None = None, **given: Any) -> TestClient:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60) if lists is None else lists
    return TestClient(create_app(Settings(ask_timeout_ms=1, **given), lists), raise_server_exceptions=False)


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_is_needed_where_there_are_keys(tmp_path: Path, path: str) -> None:
    api = client(api_keys=(ENTRY,), data_dir=tmp_path)
    assert api.get(path).status_code == 401
    assert api.get(path, headers={"X-API-Key": KEY}).status_code == 200
    assert api.get(path.removeprefix("/v1"), headers={"X-API-Key": KEY}).status_code == 404


def test_the_history_has_each_worker_s_minutes() -> None:
    redis = fakeredis.FakeRedis()
    assert client(Lists(redis, ttl_s=60)).get("/v1/history.json").json()["workers"] == []
    Lists(redis, ttl_s=60).write_history({name: [1, 2] for name in FIELDS}, 60)
    named = Lists(redis, ttl_s=60, worker="b")
    named.write_status({"state": "running"}, 60)
    named.write_history({name: [3, None] for name in FIELDS}, 60)
    found = client(Lists(redis, ttl_s=60)).get("/v1/history.json").json()["workers"]
    assert found == [
        {"worker": None, "minutes": [dict.fromkeys(FIELDS, 1.0), dict.fromkeys(FIELDS, 2.0)]},
        {"worker": "b", "minutes": [dict.fromkeys(FIELDS, 3.0)]},
    ]


def test_a_user_of_redis_who_may_not_read_names_sees_the_only_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write_history({name: [1] for name in FIELDS}, 60)

    def refused(*_: Any, **__: Any) -> Any:
        raise ListsError("this user may not do zrange")

    monkeypatch.setattr(lists, "read_names", refused)
    assert [one["worker"] for one in client(lists).get("/v1/history.json").json()["workers"]] == [None]


def test_a_redis_that_is_away_is_said() -> None:
    server = fakeredis.FakeServer()
    api = client(Lists(fakeredis.FakeRedis(server=server), ttl_s=60))
    server.connected = False
    assert api.get("/v1/history.json").status_code == 503
    assert api.get("/v1/requests.json").status_code == 200


def test_requests_are_counted_by_route_with_errors_and_times() -> None:
    api = client()
    for path in ("/v1/popular", "/v1/recommend/ada", "/v1/recommend/ada?k=0", "/nothing", "/healthz"):
        api.get(path)
    body = api.get("/v1/requests.json").json()
    routes = {one["route"]: one for one in body["routes"]}
    counted = {name: (one["requests"], one["refused"], one["failed"]) for name, one in routes.items()}
    assert counted["/v1/recommend/{user:text}"] == (2, 1, 1)  # nothing has been learned
    assert counted["none"] == (1, 1, 0)
    assert counted["/healthz"] == (1, 0, 0)
    for one in routes.values():
        assert len(one["counts"]) == len(body["seconds"]) + 1
        assert sum(one["counts"]) == one["requests"]


@pytest.fixture
def letters(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path)
    producer = LogProducer(settings.log_path)
    box = DeadLetters(producer, settings.dead_letters_topic)
    for offset in range(3):
        record = Record(
            topic="clicks", partition=0, offset=offset, timestamp_ms=1, key=b"k", value=b"\xff<b>" + b"x" * 5_000
        )
        box.put(record, BadEvent("malformed-json" if offset else "wrong-type", f"line {offset}\x1b[31m" + "y" * 900))
    producer.flush()
    producer.close()
    return settings


def test_dead_letters_are_shown_by_reason_and_cut(letters: Settings) -> None:
    api = client(data_dir=letters.data_dir)
    body = api.get("/v1/dead-letters").json()
    assert (body["looked_at"], body["reasons"]) == (3, {"malformed-json": 2, "wrong-type": 1})
    assert sorted(one["offset"] for one in body["latest"]) == [0, 1, 2]
    assert all(len(one["begins_with"]) < 200 and len(one["detail"]) <= 500 for one in body["latest"])
    assert all("\x1b" not in one["detail"] + one["begins_with"] for one in body["latest"])
    one = api.get("/v1/dead-letters?reason=wrong-type").json()["latest"]
    assert [(found["offset"], found["reason"], found["redriven"]) for found in one] == [(0, "wrong-type", False)]
    assert len(api.get("/v1/dead-letters?limit=2").json()["latest"]) == 2
    assert api.get("/v1/dead-letters?reason=none").json()["latest"] == []


@pytest.mark.parametrize("query", ["limit=0", f"limit={LETTERS_MAX + 1}", "limit=x", "reason=", f"reason={'x' * 101}"])
def test_a_wrong_question_names_the_field(tmp_path: Path, query: str) -> None:
    answer = client(data_dir=tmp_path).get(f"/v1/dead-letters?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(query.partition("=")[0])


def test_where_there_is_no_log_there_are_no_letters_and_none_is_made(tmp_path: Path) -> None:
    api = client(data_dir=tmp_path / "none")
    assert api.get("/v1/dead-letters").json() == {"looked_at": 0, "reasons": {}, "latest": []}
    assert not (tmp_path / "none").exists()


def test_they_are_read_for_one_request_at_a_time(letters: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    api, answers = client(data_dir=letters.data_dir), []

    def slow(*_: Any) -> Any:
        monkeypatch.undo()
        answers.append(api.get("/v1/dead-letters").status_code)
        return dead_letters.Letters(looked_at=0, reasons={}, latest=[])

    monkeypatch.setattr(dead_letters, "_found", slow)
    assert api.get("/v1/dead-letters").status_code == 200
    assert answers == [503]
    assert api.get("/v1/dead-letters").status_code == 200


def test_a_broker_that_is_away_is_said() -> None:
    answer = client(kafka_bootstrap_servers="127.0.0.1:9").get("/v1/dead-letters")
    assert (answer.status_code, "the broker" in answer.json()["detail"]) == (503, True)


# --- the latest clicks ---


def clicked(user: str, at: int, rank: int | None = 0) -> dict[str, Any]:
    return {"at": at, "user_id": user, "item_id": "i", "event_type": "click", "rank": rank}


def test_the_latest_clicks_of_all_workers_are_joined_newest_first() -> None:
    redis = fakeredis.FakeRedis()
    api = client(Lists(redis, ttl_s=60))
    assert api.get("/v1/clicks/latest").json() | {"now": 0} == {"now": 0, "shown": False, "ranks": 0, "clicks": []}
    told = {"a": [clicked("u3", 30, 1), clicked("u1", 10, None)], "b": [clicked("u2", 20)]}
    for name, clicks in told.items():
        named = Lists(redis, ttl_s=60, worker=name)
        named.write_status({"state": "running"}, 60)
        named.write_clicks({"ranks": 10, "clicks": clicks}, 60)
    Lists(redis, ttl_s=60).write_clicks({"ranks": 10, "clicks": [{"of": "another version"}]}, 60)
    found = api.get("/v1/clicks/latest").json()
    assert (found["shown"], found["ranks"]) == (True, 10)
    assert found["clicks"] == [clicked("u3", 30, 1), clicked("u2", 20)]  # as many as one tells
