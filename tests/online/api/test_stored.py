"""Lists in Redis are filtered without a worker by what Redis holds of their items."""

import fakeredis
import pytest
from fastapi.testclient import TestClient

from online.api.app import create_app
from online.api.stored import filtered_list
from online.config.settings import Settings
from online.filters.evaluate import compiled
from online.learner.learner import Learner
from stream.item_records import ItemRecord
from stream.items import Item
from stream.lists import Lists, ListsError, TopList

ITEMS = {
    "a": ItemRecord(title="A red kettle", tags=("kitchen", "red"), attributes={"price": 30.0, "new": True}),
    "b": ItemRecord(title="A cup", tags=("kitchen",), attributes={"price": 5.0, "new": False}),
    "c": ItemRecord(tags=("garden",), attributes={"price": 8.0}),
    "d": ItemRecord(tags=("kitchen",), attributes={"price": 2.0}, available=False),
}
TOP = TopList(
    items=["a", "b", "c", "d", "e"], scores=[0.5, 0.4, 0.3, 0.2, 0.1], version=3, offset="0:1", clicked_at=1,
    written_at=2, source="personal",
)  # fmt: skip


@pytest.fixture
def lists():
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write({"ada": TOP}, TOP.model_copy(update={"items": ["c", "a"], "scores": [0.6, 0.4]}))
    lists.items.write(ITEMS)
    lists.items.mark_complete(4)
    return lists


@pytest.fixture
def api(lists):
    return TestClient(create_app(Settings(ask_timeout_ms=50, list_size=20), lists))


@pytest.mark.parametrize(
    ("where", "items"),
    [
        ("price < 10", ["b", "c"]),
        ("not new", ["b"]),
        ("not (price < 10)", ["a"]),
        ("missing(price)", ["e"]),
        ('tags any ("kitchen") and title contains "KETTLE"', ["a"]),
        ('tags none ("kitchen")', ["c", "e"]),
        ("colour == 'red'", []),
        ("available", ["a", "b", "c", "e"]),
    ],
)
def test_a_filter_holds_for_a_stored_list(api, where, items):
    body = api.post("/rank", json={"user_id": "ada", "where": where}).json()
    assert (body["source"], body["items"], body["filtered"]) == ("stored", items, True)
    assert body["scores"] == [dict(zip(TOP.items, TOP.scores, strict=True))[item] for item in items]
    left_out = 4 - len(items)
    assert body["dropped"] == {"unavailable": 1} | ({"filter": left_out} if left_out else {})


def test_the_popular_list_is_filtered_too(api):
    assert api.get("/trending", params={"where": "price > 10"}).json()["items"] == ["a"]
    assert api.get("/recommend/eve", params={"where": "price < 10"}).json()["items"] == ["c"]


def test_tags_are_capped_and_what_cannot_be_done_is_said(lists):
    found = filtered_list(lists, TOP, {"k": 5, "max_per_tag": 1})
    assert (found.items, found.filtered) == (["a", "c", "e"], True)
    assert filtered_list(lists, TOP, {"k": 5, "max_per_tag": 2}).items == ["a", "b", "c", "e"]
    assert not filtered_list(lists, TOP, {"k": 5, "diversity": 0.5}).filtered


def test_given_candidates_obey_availability_the_filter_and_the_site_s_rule(lists):
    fields = {"k": 5, "candidates": ["e", "d", "a", "z", "b"], "exclude": ["b"], "where": "missing(title) or price > 1"}
    found = filtered_list(lists, TOP, fields, "not missing(price)")
    assert (found.items, found.scores) == (["a"], [0.5])
    assert found.dropped == {"excluded": 1, "unavailable": 1, "site_rule": 2}
    assert filtered_list(lists, TOP, {"k": 5}, "price > 1000").items == ["a", "b", "c", "e"]  # the worker applied it


def test_without_records_a_filter_gives_nothing_rather_than_what_must_not_be_shown(lists, monkeypatch):
    where = {"k": 5, "where": "tags none ('red')"}
    assert filtered_list(lists, TOP, where).items == ["b", "c", "e"]
    lists.items.mark_incomplete()  # "e" may have a record that was evicted
    assert filtered_list(lists, TOP, where)[:2] == ([], [])
    assert not filtered_list(lists, TOP, {"k": 5, "max_per_tag": 1}).filtered
    lists.items.write({"e": ItemRecord(title="e")})  # each item of the list has one
    assert filtered_list(lists, TOP, where).items == ["b", "c", "e"]

    def refuse(_):
        raise ListsError("NOPERM")

    monkeypatch.setattr(lists.items, "read", refuse)
    found = filtered_list(lists, TOP, where)
    assert (found.items, found.filtered) == ([], False)
    found = filtered_list(lists, TOP, {"k": 3})
    assert (found.items, found.filtered) == (["a", "b", "c"], True)


@pytest.mark.parametrize("where", ["price < 10 or new", "not (tags all ('kitchen', 'red'))", "price in (5, 8, true)"])
def test_it_is_what_the_worker_would_keep(lists, small, where):
    learner = Learner(small())
    learner.put_items([Item(item_id=name, **record.model_dump()) for name, record in ITEMS.items()])
    learner.set_available("d", available=False)
    mask = learner.listable.apply_to_items(compiled(where), TOP.items).mask
    kept = [item for item, keep in zip(TOP.items, mask, strict=True) if keep]
    assert filtered_list(lists, TOP, {"k": 5, "where": where}).items == kept


@pytest.mark.parametrize("user", ["ada", "eve"])
def test_what_a_user_has_hidden_is_in_no_list_without_a_worker(api, lists, user):
    lists.hidden.write({user: {"a": None, "c": 5.0}, "other": {"e": None}})
    for path in (f"/recommend/{user}", f"/recommend/{user}?fresh=true", f"/recommend/{user}?k=1"):
        assert not {"a", "c"} & set(api.get(path).json()["items"])
    body = api.post("/rank", json={"user_id": user, "candidates": ["z", "c", "a", "e"]}).json()
    assert ({"z", "e"} == set(body["items"]), body["dropped"]) == (True, {"hidden": 2})
    assert api.get("/popular").json()["items"] == ["c", "a"]
    lists.client.delete("nextclick:top:ada")  # it expired
    assert api.get("/recommend/ada").json()["items"] == ([] if user == "ada" else ["c", "a"])
    assert api.get("/recommend/eve").json()["items"] == ([] if user == "eve" else ["c", "a"])


def test_a_hidden_item_is_back_once_the_stream_is_later_than_its_time(api, lists):
    lists.hidden.write({"ada": {"a": 10.0, "b": 11.0}})
    lists.write({}, TOP.model_copy(update={"clicked_at": 10_000}))
    assert api.get("/recommend/ada").json()["items"] == ["a", "c", "d", "e"]


def test_own_items_all_hidden_leave_what_is_popular(api, lists):
    lists.hidden.write({"ada": dict.fromkeys(TOP.items)})
    lists.write({}, TOP.model_copy(update={"items": ["a", "p"], "scores": [0.6, 0.4]}))
    assert api.get("/recommend/ada").json()["items"] == ["p"]
