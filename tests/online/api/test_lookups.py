"""Items, titles, users and similar items, looked up over HTTP."""

import fakeredis
import pytest
import redis
from fastapi.testclient import TestClient

from online.api import items as items_api
from online.api.app import create_app
from online.api.items import HOLDERS_SHOWN, TITLES_MAX
from online.config.settings import Settings
from stream.item_records import ItemRecord
from stream.lists import Lists
from stream.questions import WireAnswer
from tests.online.api.test_ranking import WRITTEN, FakeWorker

KETTLE = ItemRecord(title="A kettle", tags=("kitchen",), attributes={"price": 20.0, "new": True})


@pytest.fixture
def server():
    return fakeredis.FakeServer()


@pytest.fixture
def lists(server):
    lists = Lists(fakeredis.FakeRedis(server=server), ttl_s=60)
    lists.write({"ada": WRITTEN}, WRITTEN)
    lists.write_status({"state": "running"}, 60)
    lists.items.write({"a/b lists": KETTLE, "gone": ItemRecord(available=False)})
    return lists


@pytest.fixture
def api(lists):
    app = create_app(Settings(list_size=20, ask_timeout_ms=2_000), lists)
    yield TestClient(app, raise_server_exceptions=False)
    app.state.ranking.asker.close()


@pytest.fixture
def answers(server):
    """Makes a worker that answers so."""
    workers = []

    def make(**fields):
        workers.append(FakeWorker(server, answer=lambda wire: WireAnswer(id=wire.id, **fields)))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def test_an_item_is_looked_up_without_a_worker(api):
    assert api.get("/items/a%2Fb%20lists").json() == {
        "item_id": "a/b lists", "title": "A kettle", "tags": ["kitchen"],
        "attributes": {"price": 20.0, "new": True}, "available": True,
    }  # fmt: skip
    assert not api.get("/items/gone").json()["available"]
    answer = api.get("/items/nowhere%0A")
    assert answer.status_code == 404
    assert answer.json()["detail"] == (
        r"nothing is known of item 'nowhere\n': the items topic has no record of it"
    )  # fmt: skip


def test_titles_are_those_there_are(api):
    found = api.get("/titles", params={"id": ["a/b lists", "gone", "nowhere", "a/b lists"]})
    assert found.json() == {"titles": {"a/b lists": "A kettle"}}
    assert api.get("/titles", params={"id": ["x"] * TITLES_MAX}).status_code == 200


def test_whose_lists_hold_an_item_is_found_in_some_of_them(api, lists, monkeypatch):
    lists.write({f"u{n:02}": WRITTEN.model_copy(update={"items": ["x", "b"][:: 1 if n else -1]}) for n in range(40)})
    body = api.get("/items/x/lists").json()
    assert (body["item_id"], body["looked_at"], body["lists"]) == ("x", 41, 40)
    assert len(body["users"]) == HOLDERS_SHOWN
    assert body["users"][0] == {"user_id": "u01", "rank": 1}
    assert api.get("/items/b/lists").json()["users"][0] == {"user_id": "u00", "rank": 1}
    monkeypatch.setattr(items_api, "LISTS_LOOKED_AT", 7)
    assert api.get("/items/x/lists").json()["looked_at"] == 7
    assert api.get("/items/nowhere/lists").json() == {"item_id": "nowhere", "looked_at": 7, "lists": 0, "users": []}


def test_similar_items_are_asked_of_the_worker(api, answers):
    worker = answers(items=["x"], scores=[0.5], version=4, at=9.5, known=True, dropped={"filter": 2})
    body = api.get("/similar/a%2Fb", params={"by": "near", "k": 3, "where": "price < 3", "exclude": ["y"]}).json()
    assert (body["user_id"], body["items"], body["source"]) == (None, ["x"], "asked")
    assert (body["known"], body["dropped"]) == (True, {"filter": 2})
    (wire,) = worker.asked
    assert (wire.kind, wire.item_id, wire.by, wire.k) == ("similar", "a/b", "near", 3)
    assert (wire.where, wire.exclude, wire.user_id) == ("price < 3", ["y"], None)
    api.get("/similar/a")
    assert worker.asked[-1].by == "all"


def test_without_a_worker_the_popular_list_stands_in_without_the_item_itself(api, server):
    fakeredis.FakeRedis(server=server).delete("nextclick:status")
    body = api.get("/similar/b", params={"exclude": ["c"]}).json()
    assert (body["source"], body["items"], body["known"]) == ("popular", ["a", "d"], False)
    assert body["dropped"] == {"excluded": 1}


def test_a_user_is_asked_of_the_worker(api, answers):
    click = {"item_id": "i", "timestamp": 5.5, "event_type": "buy"}
    worker = answers(user={"known": True, "clicks": 7, "history": [click]})
    assert api.get("/users/a%2Fda").json() == {
        "user_id": "a/da", "known": True, "clicks": 7, "history": [click], "hidden": [],
    }  # fmt: skip
    assert (worker.asked[0].kind, worker.asked[0].user_id) == ("user", "a/da")


def test_a_user_without_a_worker_is_unavailable_in_one_line(api, server):
    fakeredis.FakeRedis(server=server).delete("nextclick:status")
    answer = api.get("/users/ada")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["detail"] == "no worker answered in time: see /status.json, and try again"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/similar/a?by=price", "by: Input should be 'follows', 'near', 'content' or 'all'"),
        ("/similar/a?k=0", "k: "),
        ("/similar/a?k=21", "k: "),
        ("/similar/a?where=price<", "where: at character 7"),
        ("/similar/", "item: an id has 1 to 256 bytes, this one has 0"),
        ("/similar/" + "x" * 300, "item: an id has 1 to 256 bytes, this one has 300"),
        ("/items/" + "x" * 300, "item: an id has 1 to 256 bytes, this one has 300"),
        ("/items/" + "x" * 300 + "/lists", "item: an id has"),
        ("/users/", "user: an id has"),
        ("/titles", "id: Field required"),
        ("/titles?id=", "id: an id has 1 to 256 bytes, this one has 0"),
        ("/titles?" + "&".join(["id=x"] * (TITLES_MAX + 1)), "id: at most 500 items"),
    ],
)
def test_wrong_requests_are_named(api, path, line):
    answer = api.get(path)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(line)


def test_a_redis_that_is_away_is_503():
    app = create_app(Settings(ask_timeout_ms=50), Lists(redis.Redis(port=1), ttl_s=60))
    with TestClient(app, raise_server_exceptions=False) as api:
        for path in ("/items/a", "/titles?id=a", "/items/a/lists", "/users/a", "/similar/a"):
            assert api.get(path).status_code == 503, path
    app.state.ranking.asker.close()
