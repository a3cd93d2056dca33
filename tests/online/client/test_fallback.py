"""What a page gets while the API is away: the user's list in Redis, the popular one, the default."""

import time
from collections.abc import Iterator

import pytest

from online.client import Limits
from stream.embedded_redis import EmbeddedRedis
from stream.lists import POPULAR_KEY, Lists, TopList
from tests.online.client.stub_api import a_list, answer


def top(*items: str, source: str = "personal") -> TopList:
    written_at = int(time.time() * 1_000) - 500
    scores = [round(0.9 - n / 10, 1) for n in range(len(items))]
    return TopList(
        items=list(items), scores=scores, version=3, offset="0:1", clicked_at=1, written_at=written_at, source=source
    )


@pytest.fixture
def redis_there() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as redis:
        lists = Lists(redis.client, ttl_s=60)
        lists.write({"ada": top("i1", "i2", "i3", "i4")}, top("p1", "p2", "p3", source="popular"))
        yield redis


@pytest.fixture
def away(make_client, free_port, redis_there):
    """A client whose API is away, with a Redis that is there."""
    url = f"http://127.0.0.1:{free_port}"
    return make_client(url, redis_url=redis_there.url, default=["d1", "d2", "i1"], limits=Limits(redis_s=5.0))


def test_a_users_list_is_read_from_redis(away) -> None:
    found = away.recommend("ada", 2)
    assert (found.items, found.scores, found.source, found.user_id) == (("i1", "i2"), (0.9, 0.8), "redis", "ada")
    assert (found.known, found.version, found.is_fallback) == (True, 3, True)
    assert found.age_ms >= 500
    assert "does not answer GET /recommend: " in found.error
    assert away.rank("ada").items == ("i1", "i2", "i3", "i4")


def test_others_get_the_popular_list_of_redis(away) -> None:
    found = away.recommend("nobody")
    assert (found.items, found.source, found.known) == (("p1", "p2", "p3"), "redis", False)
    visitor = away.rank(recent=["i1"])
    assert (visitor.items, visitor.source, visitor.known) == (("p1", "p2", "p3"), "redis", False)
    assert [away.popular(2).items, away.trending(1).items, away.latest(0).items] == [("p1", "p2"), ("p1",), ()]
    assert away.similar("p2").items == ("p1", "p3")


def test_what_is_left_out_is_left_out_of_every_fallback(away, redis_there) -> None:
    assert away.recommend("ada", exclude=["i1", "i3"]).items == ("i2", "i4")
    found = away.recommend("ada", exclude=["i1", "i2", "i3", "i4"])
    assert (found.items, found.source) == (("d1", "d2"), "default")
    redis_there.close()
    assert away.recommend("ada", exclude=["d1"]).items == ("d2", "i1")


def test_what_a_user_has_hidden_is_in_no_fallback_of_redis(away, redis_there) -> None:
    Lists(redis_there.client, ttl_s=60).hidden.write({"ada": {"i1": None}, "new": {"p1": None, "x": None}})
    assert away.recommend("ada", 2).items == ("i2", "i3")
    assert away.recommend("new").items == ("p2", "p3")
    assert away.rank("new", candidates=["x", "p3"]).items == ("p3",)


def test_a_filter_is_never_ignored(away) -> None:
    found = away.recommend("ada", where="price <= 20")
    assert (found.items, found.source) == ((), "default")
    assert away.rank("ada", candidates=["i1"], where="price <= 20").items == ()
    assert away.recommend("ada", where="price <= 20", default=["cheap"]).items == ("cheap",)


def test_candidates_are_ordered_by_redis_and_else_stay_as_they_are(away, redis_there) -> None:
    found = away.rank("ada", candidates=["x", "i3", "y", "i1", "x"])
    assert (found.items, found.scores, found.source) == (("i1", "i3", "x", "y"), (0.9, 0.7, 0.0, 0.0), "redis")
    redis_there.close()
    found = away.rank("ada", 3, candidates=["x", "i3", "y", "i1"], exclude=["i3"])
    assert (found.items, found.scores, found.source) == (("x", "y", "i1"), (), "default")


def test_with_redis_away_too_the_default_is_shown_and_the_error_names_both(away, redis_there) -> None:
    redis_there.close()
    for _ in range(5):
        found = away.recommend("ada", 2)
        assert (found.items, found.source) == (("d1", "d2"), "default")
        assert "does not answer GET /recommend" in found.error or "left alone" in found.error
    assert away.recommend("ada", default=["mine"]).items == ("mine",)


def test_the_first_error_names_redis(away, redis_there) -> None:
    redis_there.close()
    assert "; no Redis answers at redis://127.0.0.1:" in away.recommend("ada").error


def test_a_redis_that_is_back_is_read_again(make_client, free_port, redis_there) -> None:
    limits = Limits(redis_s=5.0, open_s=1e-9)
    away = make_client(f"http://127.0.0.1:{free_port}", redis_url=redis_there.url, limits=limits)
    redis_there.close()
    assert [away.recommend("ada").source for _ in range(5)] == ["default"] * 5
    redis_there.start()
    Lists(redis_there.client, ttl_s=60).write({"ada": top("i9")})
    assert away.recommend("ada").items == ("i9",)


@pytest.mark.parametrize("value", ["", "{}", "[]", "no list", '{"items": []}'])
def test_what_is_no_list_in_redis_counts_as_absent(away, redis_there, value) -> None:
    redis_there.client.set(POPULAR_KEY, value)
    found = away.recommend("nobody")
    assert (found.source, found.error.endswith("Redis holds no list yet")) == ("default", True)


def test_redis_is_only_read(away, redis_there) -> None:
    client = redis_there.client
    before = {key: client.get(key) for key in client.keys("*")}
    for call in (away.recommend, away.rank):
        call("ada")
        call("nobody")
    assert not away.click("ada", "i1").accepted
    assert {key: client.get(key) for key in client.keys("*")} == before
    assert set(before) == {b"nextclick:top:ada", b"nextclick:popular"}


def test_redis_is_not_asked_while_the_api_answers(stub, make_client, redis_there) -> None:
    stub.will(a_list("i7"), answer(503, {"detail": "no"}, Retry_After="60"))
    client = make_client(stub.url, redis_url=redis_there.url, limits=Limits(redis_s=5.0))
    assert client.recommend("ada").source == "asked"
    assert client.recommend("ada").source == "redis"


def test_a_page_needs_nothing_at_all(make_client, free_port) -> None:
    found = make_client(f"http://127.0.0.1:{free_port}").recommend("ada")
    assert (found.items, found.scores, found.source) == ((), (), "default")
