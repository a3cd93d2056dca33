"""The API holds to its own description: schemathesis asks it everything that /openapi.json allows and forbids, while
Redis is up, slow and away; of an API that writes and one that only reads, with keys and without."""

from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("redis", "read_only", "keyed"),
    [
        ("up", False, True),
        ("up", True, False),
        ("slow", False, False),
        ("slow", True, True),
        ("away", False, True),
        ("away", True, False),
    ],
)
def test_each_answer_is_as_described(redis_server: Any, redis: str, read_only: bool, keyed: bool) -> None:
    from tests.online.api.schema_questions import ask_everything, lists_of  # noqa: PLC0415 - see there

    with lists_of(redis, redis_server) as lists:
        ask_everything(lists, read_only=read_only, keyed=keyed)
