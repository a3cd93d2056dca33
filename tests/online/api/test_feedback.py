"""`POST /hide`, `/unhide` and `/dislike`: what is published, what is refused and why, keys and read-only mode."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from online.config.settings import Settings
from stream.feedback import Feedback, parse
from stream.log import LogProducer
from stream.readers import LogReader
from stream.source import UnavailableError
from tests.online.api.test_middleware import ENTRY, KEY, client

TOPIC = Settings().feedback_topic
ABOUT = {"user_id": "u1", "item_id": "i9"}
ROUTES = ("hide", "unhide", "dislike")


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[tuple[TestClient, LogReader]]:
    producer = LogProducer(tmp_path / "log.db")
    yield client(producer, api_read_only=False), LogReader(tmp_path / "log.db", TOPIC)
    producer.close()


@pytest.mark.parametrize("kind", ROUTES)
def test_it_is_published_as_the_worker_reads_it(writing: tuple[TestClient, LogReader], kind: str) -> None:
    api, reader = writing
    more = {"for_s": 60.0} if kind == "hide" else {}
    answer = api.post(f"/{kind}", json=ABOUT | more)
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    (record,) = reader.read()
    found = parse(record.value)
    assert isinstance(found, Feedback)
    assert (record.key, found.user_id, found.item_id, found.kind) == (b"u1", "u1", "i9", kind)
    assert found.until == (pytest.approx(found.timestamp + 60) if more else None)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("hide", {"item_id": "i"}, "user_id: Field required"),
        ("hide", {**ABOUT, "user_id": ""}, "user_id: an id has 1 to 256 bytes"),
        ("hide", {**ABOUT, "item_id": 7}, "item_id: an id is text"),
        ("hide", {**ABOUT, "item_id": "x" * 300}, "item_id: an id has 1 to 256 bytes"),
        ("hide", {**ABOUT, "for_s": 0}, "for_s: Input should be greater than 0"),
        ("hide", {**ABOUT, "for_s": "an hour"}, "for_s: Input should be a valid number"),
        ("hide", {**ABOUT, "for_s": 1e11}, "for_s: Input should be less than or equal"),
        ("hide", {**ABOUT, "until": 5}, "until: there is no such field"),
        ("unhide", {**ABOUT, "for_s": 5}, "for_s: there is no such field"),
        ("dislike", [], "the body is no JSON object"),
    ],
)
def test_what_is_wrong_is_named_and_not_published(
    writing: tuple[TestClient, LogReader], path: str, body: Any, message: str
) -> None:
    api, reader = writing
    answer = api.post(f"/{path}", json=body)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert reader.ends() == {}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b'{"user_id": "\\ud800", "item_id": "i"}', "application/json", 422),
        (b" " * 9_000, "application/json", 413),
        (b"{}", "text/plain", 415),
    ],
)
def test_a_body_that_is_none_is_refused(
    writing: tuple[TestClient, LogReader], body: bytes, kind: str, status: int
) -> None:
    api, reader = writing
    answer = api.post("/hide", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert reader.ends() == {}


@pytest.mark.parametrize("path", ROUTES)
def test_it_needs_the_key_and_an_api_that_writes(tmp_path: Path, path: str) -> None:
    producer = LogProducer(tmp_path / "log.db")
    with_keys = client(producer, api_read_only=False, api_keys=ENTRY)
    assert with_keys.post(f"/{path}", json=ABOUT).status_code == 401
    assert with_keys.post(f"/{path}", json=ABOUT, headers={"X-API-Key": KEY}).status_code == 202
    only_reads = client(producer)
    assert only_reads.post(f"/{path}", json=ABOUT).status_code == 403
    assert f"/v1/{path}" not in only_reads.get("/openapi.json").json()["paths"]
    producer.close()


def test_without_a_broker_it_is_asked_for_again() -> None:
    class Away:
        def send(self, *_: Any, **__: Any) -> None:
            raise UnavailableError("no broker answers")

    answer = client(Away(), api_read_only=False).post("/hide", json=ABOUT)
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "the broker takes nothing now: ask again later; the API's log says why",
    )
    assert answer.headers["retry-after"] == "1"


def test_the_description_names_the_fields(writing: tuple[TestClient, LogReader]) -> None:
    api, _ = writing
    paths = api.get("/openapi.json").json()["paths"]
    schemas = {
        path: paths[f"/v1/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"] for path in ROUTES
    }
    assert {path: sorted(schema["properties"]) for path, schema in schemas.items()} == {
        "hide": ["for_s", "item_id", "user_id"], "unhide": ["item_id", "user_id"], "dislike": ["item_id", "user_id"],
    }  # fmt: skip
    assert all(schema["required"] == ["user_id", "item_id"] for schema in schemas.values())
