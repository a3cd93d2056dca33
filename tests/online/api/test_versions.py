"""Both paths of a route are one route: the same answers, the same keys and limits, one label in the metrics."""

import json
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from fastapi.testclient import TestClient

from online.api.app import create_app
from online.api.keys import make_key
from online.api.middleware import QUESTIONS, WRITES
from online.api.versions import UNVERSIONED, V1
from online.config.settings import Settings
from stream.lists import Lists, TopList
from stream.log import LogProducer
from stream.readers import LogReader

KEY, ENTRY = make_key("shop")
TOP = TopList(items=["i1"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=1, source="popular")
READ = (
    *("/recommend/a%2Fb", "/recommend/ada?k=1&fresh=true", "/popular", "/trending", "/latest", "/similar/i1?by=all"),
    *(
        "/items/i1",
        "/items/i1/lists",
        "/titles?id=i1",
        "/users/ada",
        "/status.json",
        "/recommend/ada?k=0",
        "/recommend",
    ),
)
CLICK = {"user_id": "u1", "item_id": "i9", "timestamp": 1_732_233_600.25}


def client(producer: Any = None, **given: Any) -> TestClient:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write({}, TOP)
    return TestClient(create_app(Settings(ask_timeout_ms=1, **given), lists, producer), raise_server_exceptions=False)


class Taking:
    def send(self, *_: Any, **__: Any) -> None: ...
    def flush(self) -> None: ...


def operations(api: TestClient) -> set[tuple[str, str]]:
    paths = api.get("/openapi.json", headers={"X-API-Key": KEY}).json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


@pytest.mark.parametrize("path", READ)
def test_both_paths_answer_the_same(path: str) -> None:
    api = client()
    old, new = api.get(path), api.get(V1 + path)
    assert old.status_code == new.status_code
    assert old.headers["content-type"] == new.headers["content-type"]
    assert set(old.json()) == set(new.json())
    assert api.get(V1 + V1 + path).status_code == 404


def test_the_description_shows_each_path_once_and_every_old_path_leads_to_one() -> None:
    described = {path for _, path in operations(client(Taking(), api_read_only=False))}
    versioned = {path.removeprefix(V1 + "/").partition("/")[0] for path in described if path.startswith(V1)}
    assert versioned - UNVERSIONED == {"history.json", "requests.json", "dead-letters", "clicks"}  # newer than versions
    assert versioned >= UNVERSIONED
    assert {path for path in described if not path.startswith(V1)} == {"/healthz", "/readyz", "/metrics"}


def test_each_route_that_writes_is_refused_by_an_api_that_only_reads() -> None:
    written = operations(client(Taking(), api_read_only=False))
    assert {path for method, path in written if method != "GET"} == WRITES | set(QUESTIONS)
    only_reads = client(Taking())
    assert {path for method, path in operations(only_reads) if method != "GET"} == set(QUESTIONS)


@pytest.mark.parametrize("prefix", ["", V1])
def test_read_only_holds_for_both_paths(tmp_path: Path, prefix: str) -> None:
    producer = LogProducer(tmp_path / "log.db")
    api = client(producer)
    for path in WRITES:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = api.request(method, prefix + path.removeprefix(V1), json=CLICK)
            assert (answer.status_code, answer.json()["status"]) == (403, 403)
    assert api.post(f"{prefix}/rank", json={}).status_code == 200
    assert LogReader(tmp_path / "log.db", "clicks").ends() == {}
    producer.close()


@pytest.mark.parametrize("prefix", ["", V1])
def test_keys_are_needed_for_both_paths(prefix: str) -> None:
    api = client(Taking(), api_read_only=False, api_keys=(ENTRY,))
    for path in READ:
        assert api.get(prefix + path).status_code == 401
        assert api.get(prefix + path, headers={"X-API-Key": KEY}).status_code != 401
    for path in (*WRITES, *QUESTIONS):
        assert api.post(prefix + path.removeprefix(V1), json=CLICK).status_code == 401


@pytest.mark.parametrize(
    "path", ["/%2Frank", "/v1//rank", "/V1/rank", "/v1/healthz", "/v1/metrics", "/v1/docs", "/v1/openapi.json", "/v1"]
)
def test_no_other_spelling_of_a_path_gets_past_the_key(path: str) -> None:
    api = client(api_keys=(ENTRY,))
    assert api.get(path).status_code == 401
    assert api.get(path, headers={"X-API-Key": KEY}).status_code == 404


def test_both_paths_share_one_limit() -> None:
    api = client(api_requests_per_s=0.01, api_requests_at_once=2)
    paths = ("/popular", "/v1/popular", "/popular", "/v1/popular", "/v1/recommend/a", "/recommend/a")
    assert [api.get(path).status_code for path in paths] == [200, 200, 429, 429, 429, 429]


def test_metrics_name_the_pattern_at_v1_for_both() -> None:
    api = client()
    for prefix in ("", V1):
        for path in READ:
            api.get(prefix + path)
        api.post(f"{prefix}/rank", json={})
    lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith("nextclick_requests_total")]
    routes = {line.split('"')[1] for line in lines}
    assert routes == {"none", "/v1/recommend/{user:text}", "/v1/status.json", "/v1/rank"} | {
        *("/v1/popular", "/v1/trending", "/v1/latest", "/v1/similar/{item:text}", "/v1/titles"),
        *("/v1/items/{item:text}", "/v1/items/{item:text}/lists", "/v1/users/{user:text}"),
    }
    assert 'nextclick_requests_total{route="/v1/popular",status="200"} 2.0' in lines


def test_the_scheme_of_keys_is_described_where_there_are_keys() -> None:
    spec = client(api_keys=(ENTRY,)).get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert {one["type"] for one in spec["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    keyless = {path for path, methods in spec["paths"].items() for one in methods.values() if "security" not in one}
    assert keyless == {"/healthz", "/readyz"}
    assert "401" in spec["paths"]["/metrics"]["get"]["responses"]
    without = client().get("/openapi.json").json()
    assert "securitySchemes" not in without["components"]
    assert '"401"' not in json.dumps(without)
