"""The fallback on a real Redis: with the rights that docs/client.md gives its user, and no more."""

import re
from pathlib import Path

import pytest
import redis

from online.client import Limits
from stream.lists import Lists
from tests.online.client.test_fallback import top

pytestmark = pytest.mark.real
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "client.md"


def test_the_documented_user_of_redis_may_do_what_is_needed(redis_server, make_client, free_port) -> None:
    [rules] = re.findall(r"`user shop (on >PASSWORD .*?)`", GUIDE.read_text())
    admin = redis.Redis(port=redis_server.port)
    admin.execute_command("ACL", "SETUSER", "shop", "reset", *rules.split())
    lists = Lists(admin, ttl_s=60)
    lists.write({"ada": top("i0", "i1", "i2")}, top("p1", source="popular"))
    lists.hidden.write({"ada": {"i0": None}})
    options = {"username": "shop", "password": "PASSWORD"}
    away = make_client(
        f"http://127.0.0.1:{free_port}", redis_url=redis_server.url, redis_options=options, limits=Limits(redis_s=5.0)
    )
    assert (away.recommend("ada").items, away.recommend("nobody").items) == (("i1", "i2"), ("p1",))
    allowed = redis.Redis(port=redis_server.port, **options)
    for forbidden in (lambda: allowed.set("nextclick:top:ada", ""), lambda: allowed.getrange("nextclick:status", 0, 1)):
        with pytest.raises(redis.exceptions.NoPermissionError):
            forbidden()


def test_a_wrong_password_is_no_reason_for_a_page_to_fail(redis_server, make_client, free_port) -> None:
    options = {"username": "shop", "password": "wrong-one"}
    away = make_client(
        f"http://127.0.0.1:{free_port}", redis_url=redis_server.url, redis_options=options, default=["d1"],
        limits=Limits(redis_s=5.0),
    )  # fmt: skip
    found = away.recommend("ada")
    assert (found.items, found.source) == (("d1",), "default")
    assert "user or password is wrong" in found.error
    assert "wrong-one" not in found.error
