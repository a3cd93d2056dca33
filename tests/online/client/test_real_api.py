"""Both clients against the API itself, with embedded parts: lists, clicks, keys, limits, and its end."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from online.api.keys import make_key
from online.api.serve import Api
from online.client import ApiUnavailableError, FeedbackReceipt, Item, PastClick, RequestError, ShownItem, Titles, User
from online.config.settings import Settings
from stream.embedded_redis import EmbeddedRedis
from stream.feedback import Feedback, parse
from stream.impressions import parse as parse_impression
from stream.item_records import ItemRecord
from stream.lists import Lists, TopList
from stream.log import LogProducer
from stream.questions import QuestionQueue, WireAnswer
from stream.readers import LogReader


def top(*items: str, source: str = "personal") -> TopList:
    now = int(time.time() * 1_000)
    scores = [0.5] * len(items)
    return TopList(
        items=list(items), scores=scores, version=3, offset="0:1", clicked_at=1, written_at=now, source=source
    )


@pytest.fixture
def redis_there() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as redis:
        yield redis


@pytest.fixture
def lists(redis_there: EmbeddedRedis) -> Lists:
    return Lists(redis_there.client, ttl_s=60)


@pytest.fixture
def serve(lists: Lists, tmp_path) -> Iterator[Callable[..., Api]]:
    """Starts the API over the lists, with an embedded log of clicks."""
    with contextlib.ExitStack() as stack:
        producer = stack.enter_context(contextlib.closing(LogProducer(tmp_path / "log.db")))

        def start(**settings: object) -> Api:
            values = {"api_port": 0, "api_read_only": False, "list_size": 20, **settings}
            return stack.enter_context(contextlib.closing(Api(Settings(**values), lists, producer).start()))

        yield start


def test_a_users_list_and_the_popular_one(serve, lists, make_client) -> None:
    lists.write({"a/b ?é": top("i1", "i2", "i3")}, top("p1", source="popular"))
    client = make_client(serve().url)
    found = client.recommend("a/b ?é", 2, exclude=["i9"])
    assert (found.user_id, found.items, found.scores) == ("a/b ?é", ("i1", "i2"), (0.5, 0.5))
    assert (found.source, found.version, found.error) == ("stored", 3, None)
    assert (client.recommend("nobody").items, client.recommend("nobody").source) == (("p1",), "popular")


def test_a_click_arrives(serve, make_client, tmp_path) -> None:
    client = make_client(serve().url)
    receipt = client.click("u1", "i9", value=4.0)
    assert receipt.accepted, receipt
    with sqlite3.connect(tmp_path / "log.db") as log:
        everything = "\n".join(log.iterdump())
    assert receipt.event_id.encode().hex().upper() in everything.upper() or receipt.event_id in everything


def test_items_titles_and_similar_items(serve, lists, make_client) -> None:
    lists.write({}, top("i1", "p1", source="popular"))
    lists.items.write({"i1": ItemRecord(title="A kettle", tags=("kitchen",), attributes={"price": 3.0, "new": True})})
    client = make_client(serve().url)
    assert client.item("i1") == Item(
        item_id="i1", title="A kettle", tags=("kitchen",), attributes={"price": 3.0, "new": True}
    )
    assert client.item("a/b ?é") == Item(item_id="a/b ?é", known=False)
    assert client.titles(["i1", "i2"]) == Titles(titles={"i1": "A kettle"})
    found = client.similar("i1", by="content")
    assert (found.items, found.source, found.known) == (("p1",), "popular", False)
    with pytest.raises(RequestError, match=r"^by: Input should be 'follows', 'near', 'content' or 'all'$"):
        client.similar("i1", by="price")
    with pytest.raises(RequestError, match=r"^id: at most 500 items$"):
        client.titles(["i"] * 501)


def test_a_user_is_what_the_worker_says(serve, lists, make_client) -> None:
    server = QuestionQueue(lists.client)
    url = serve(ask_timeout_ms=2_000).url
    client = make_client(url)
    found = client.user("ada")
    assert (found.known, found.history) == (None, ())
    assert "answers 503: no worker answered in time" in found.error
    lists.write_status({"state": "running"}, 60)
    user = {"known": True, "clicks": 7, "history": [{"item_id": "i", "timestamp": 5.5, "event_type": "buy"}]}

    def answer() -> None:
        for _ in range(100):
            for wire in server.take(0.1):
                server.answer([(wire.asker, WireAnswer(id=wire.id, user=user))])
                return

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    time.sleep(0.3)  # the API looks anew which workers there are
    assert client.user("ada") == User(
        user_id="ada", known=True, clicks=7, history=(PastClick(item_id="i", timestamp=5.5, event_type="buy"),)
    )
    thread.join()


def test_what_cannot_be_looked_up_is_no_error_of_the_page_unless_that_is_asked_for(make_client) -> None:
    client = make_client("http://127.0.0.1:1")
    for found in (client.item("i"), client.titles(["i"]), client.user("u")):
        assert found.error.startswith("the API at http://127.0.0.1:1 ")
    assert not client.item("i").known
    client = make_client("http://127.0.0.1:1", raise_unavailable=True)
    for call in (client.item, client.user):
        with pytest.raises(ApiUnavailableError):
            call("x")


def test_feedback_arrives(serve, make_client, tmp_path) -> None:
    client = make_client(serve().url)
    assert client.hide("u1", "i1", for_s=60.0) == FeedbackReceipt(accepted=True)
    assert client.hide("u1", "i2").accepted
    assert client.unhide("u1", "i1").accepted
    assert client.dislike("u1", "i3").accepted
    with contextlib.closing(LogReader(tmp_path / "log.db", Settings().feedback_topic)) as reader:
        records = [parse(record.value) for record in reader.read()]
    assert all(isinstance(one, Feedback) for one in records)
    assert [(one.kind, one.item_id, one.until is None) for one in records] == [
        ("hide", "i1", False), ("hide", "i2", True), ("unhide", "i1", True), ("dislike", "i3", True),
    ]  # fmt: skip
    with pytest.raises(RequestError, match="for_s"):
        client.hide("u1", "i1", for_s=-1.0)


def test_an_api_that_only_reads_takes_no_feedback_and_says_so(serve, make_client) -> None:
    url = serve(api_read_only=True).url
    receipt = make_client(url).dislike("u1", "i1")
    assert not receipt.accepted
    assert "answers 403: this API only reads" in receipt.error
    with pytest.raises(ApiUnavailableError, match="only reads"):
        make_client(url, raise_unavailable=True).hide("u1", "i1")


def test_wrong_calls_are_errors(serve, lists, make_client) -> None:
    lists.write({}, top("p1", source="popular"))
    client = make_client(serve().url, default=["d1"])
    with pytest.raises(RequestError, match=r"^k: Input should be greater than or equal to 1$"):
        client.recommend("u1", 0)
    with pytest.raises(RequestError, match=r"^user: an id has 1 to 256 bytes, this one has 300$"):
        client.recommend("x" * 300)
    with pytest.raises(RequestError, match="timestamp"):
        client.click("u1", "i1", timestamp="yesterday")


def test_keys(serve, lists, make_client) -> None:
    lists.write({}, top("p1", source="popular"))
    key, entry = make_key("shop")
    url = serve(api_keys=entry).url
    assert make_client(url, api_key=key).recommend("u1").source == "popular"
    assert make_client(url, api_key=key).click("u1", "i1").accepted
    for wrong in ({}, {"api_key": "nck_other"}):
        client = make_client(url, default=["d1"], **wrong)
        found = client.recommend("u1")
        assert (found.items, found.source) == (("d1",), "default")
        assert "answers 401: " in found.error
        assert not client.click("u1", "i1").accepted


def test_an_api_that_only_reads_takes_no_click_and_says_so(serve, make_client) -> None:
    receipt = make_client(serve(api_read_only=True).url).click("u1", "i1")
    assert not receipt.accepted
    assert "answers 403: this API only reads" in receipt.error


def test_too_many_requests(serve, lists, make_client) -> None:
    lists.write({"u1": top("i1")}, top("p1", source="popular"))
    client = make_client(
        serve(api_requests_per_s=0.001, api_requests_at_once=1).url, redis_url=lists_url(lists), default=["d1"]
    )
    found = [client.recommend("u1") for _ in range(3)]
    assert [one.source for one in found] == ["stored", "redis", "redis"]
    assert {one.items for one in found} == {("i1",)}
    assert "answers 429: " in found[1].error


def test_before_anything_is_learned_the_default_is_shown(serve, make_client) -> None:
    found = make_client(serve().url, default=["d1"]).recommend("u1")
    assert (found.items, found.source) == (("d1",), "default")
    assert "answers 503: nothing has been learned yet" in found.error


def test_an_api_that_ends_and_comes_back(serve, lists, make_client) -> None:
    lists.write({"u1": top("i1")})
    api = serve()
    client = make_client(api.url, redis_url=lists_url(lists))
    assert client.recommend("u1").source == "stored"
    api.close()
    assert [client.recommend("u1").source for _ in range(3)] == ["redis"] * 3
    assert not client.click("u1", "i1").accepted
    serve(api_port=int(api.url.rpartition(":")[2]))
    deadline = time.monotonic() + 60
    while client.recommend("u1").source != "stored":  # once the circuit lets an attempt through
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.recommend("u1").error is None


def lists_url(lists: Lists) -> str:
    return lists.address


def test_what_was_shown_arrives_and_a_stored_list_is_not_explored(serve, lists, make_client, tmp_path) -> None:
    lists.write({"u1": top("i1", "i2")}, top("p1", source="popular"))
    client = make_client(serve().url)
    found = client.rank("u1", 2, explore=0.5)  # no worker answers
    assert (found.items, found.explored, found.propensities) == (("i1", "i2"), False, None)
    shown: list[ShownItem] = [{"item_id": "i1", "position": 1, "propensity": 0.5}, {"item_id": "i2", "position": 2}]
    receipt = client.impressions([{"user_id": "u1", "request_id": found.request_id, "items": shown}, {"items": shown}])
    assert receipt.accepted, receipt
    assert receipt.request_ids[0] == found.request_id
    with contextlib.closing(LogReader(tmp_path / "log.db", "nextclick.impressions")) as reader:
        records = {parse_impression(record.value).request_id: record.key for record in reader.read()}
    assert records == {found.request_id: b"u1", receipt.request_ids[1]: None}
    with pytest.raises(RequestError, match=r"^\[0\]\.items\[0\]\.position: is missing or null$"):
        client.impressions([{"items": [{"item_id": "i1"}]}])
    with pytest.raises(RequestError, match=r"^explore: it does not go with"):
        client.rank("u1", 2, explore=0.5, diversity=0.5)
