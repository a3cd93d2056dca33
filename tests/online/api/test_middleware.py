"""Who may ask the API, how often, and for what; and what every answer carries, errors included."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from online.api import keys as api_keys
from online.api.app import create_app
from online.api.keys import ApiKeys, make_key
from online.api.middleware import HEADERS, TokenBuckets, _address
from online.api.serve import Api
from online.config.settings import Settings
from stream.events import encode, parse
from stream.lists import Lists, TopList
from stream.log import LogProducer
from stream.readers import LogReader
from stream.source import SourceError

KEY, ENTRY = make_key("shop")
OTHER, OTHER_ENTRY = make_key("app")
TOP = TopList(items=["i1"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=1, source="popular")
CLICK = {"user_id": "u1", "item_id": "i9", "timestamp": 1_732_233_600.25}
ANSWERED = ("/recommend/ada", "/status.json", "/metrics", "/openapi.json")


def lists() -> Lists:
    found = Lists(fakeredis.FakeRedis(), ttl_s=60)
    found.write({}, TOP)
    return found


def client(producer: Any = None, **given: Any) -> TestClient:
    return TestClient(create_app(Settings(**given), lists(), producer), raise_server_exceptions=False)


def test_a_key_is_random_and_only_its_hash_is_kept() -> None:
    key, entry = make_key("shop")
    assert key != KEY
    assert len(key) > 40
    assert entry == f"shop:{hashlib.sha256(key.encode()).hexdigest()}"
    assert Settings(api_keys=f"{entry}, {OTHER_ENTRY}\n").api_keys == (entry, OTHER_ENTRY)


def test_a_key_is_compared_with_every_hash_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    keys = ApiKeys([ENTRY, OTHER_ENTRY])
    assert [keys.name_of(key.encode()) for key in (KEY, OTHER, "", KEY[:-1])] == ["shop", "app", None, None]
    assert compared == 4 * [ENTRY.split(":")[1], OTHER_ENTRY.split(":")[1]]


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": OTHER}]
)
def test_with_keys_only_they_get_answers(headers: dict[str, str]) -> None:
    api = client(api_keys=(ENTRY, OTHER_ENTRY))
    for path in ANSWERED:
        assert api.get(path, headers=headers).status_code == 200
        for wrong in ({}, {"X-API-Key": ENTRY}, {"X-API-Key": "ключ".encode()}, {"Authorization": f"Basic {KEY}"}):
            answer = api.get(path, headers=wrong)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.text
    assert api.get("/no/such/path").status_code == 401
    # The page shows nothing by itself, and machines that look after health have no key.
    assert [api.get(path).status_code for path in ("/", "/healthz", "/readyz")] == [200, 200, 200]
    assert 'nextclick_requests_total{route="none",status="401"}' in api.get("/metrics", headers=headers).text


def test_each_key_and_each_address_has_its_own_limit_and_health_has_none() -> None:
    api = client(api_keys=(ENTRY, OTHER_ENTRY), api_requests_per_s=0.01, api_requests_at_once=2)
    shop, app = {"X-API-Key": KEY}, {"X-API-Key": OTHER}
    assert [api.get("/metrics", headers=shop).status_code for _ in range(3)] == [200, 200, 429]
    assert [api.get("/metrics", headers=app).status_code for _ in range(3)] == [200, 200, 429]
    # A client that tries keys is slowed down by address, and does not slow down those who have one.
    assert [api.get("/metrics", headers={"X-API-Key": str(n)}).status_code for n in range(3)] == [401, 401, 429]
    answer = api.get("/")
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 100
    assert {api.get("/healthz").status_code for _ in range(10)} == {200}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# Waits are binary fractions: with 0.1 s a sum of many was off by 3e-17 s, and that much was still to be waited for.
@settings(max_examples=100)
@given(steps=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.125, 0.25, 1.0, 7.0])), max_size=60))
def test_a_token_bucket_never_lets_more_through_than_its_rate(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    buckets = TokenBuckets(per_s=4.0, at_once=3, held=2, clock=clock)
    passed: dict[str, list[float]] = {"a": [], "b": []}
    for who, wait in steps:
        clock.now += wait
        said = buckets.wait_s(who)
        # The slow, obvious rule: for no start do those since then exceed what was there plus what came in.
        wanted = [*passed[who], clock.now]
        fits = all(len(wanted) - n <= 3 + 4.0 * (clock.now - at) + 1e-6 for n, at in enumerate(wanted))
        assert (said == 0.0) == fits
        if fits:
            passed[who] = wanted
        else:
            assert 0 < said <= 0.25 + 1e-6


def test_a_crowd_of_addresses_needs_no_more_memory() -> None:
    buckets = TokenBuckets(per_s=1.0, at_once=1, held=100)
    for number in range(1_000):
        buckets.wait_s(str(number))
    assert len(buckets) == 100
    assert buckets.wait_s("999") > 0


def test_an_address_of_ipv6_counts_with_its_network() -> None:
    hosts = ("10.0.0.1", "::ffff:10.0.0.1", "2001:db8:1:2::3", "2001:db8:1:2:ffff::", "2001:db8:1:3::3", "testclient")
    found = [_address({"client": (host, 1)}) for host in hosts]
    assert found[0] == found[1]
    assert found[2] == found[3] == "2001:db8:1:2::/64"
    assert len({*found, _address({})}) == 5


def test_every_answer_has_the_security_headers_errors_too() -> None:
    broken = lists()
    broken.status = broken.popular = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    api = TestClient(create_app(Settings(api_keys=(ENTRY,)), broken), raise_server_exceptions=False)
    shop = {"X-API-Key": KEY}
    answers = [
        api.get("/"), api.get("/healthz"), api.get("/metrics"), api.get("/no/such", headers=shop),
        api.get("/recommend/a?k=0", headers=shop), api.post("/", headers=shop), api.get("/openapi.json", headers=shop),
        api.get("/status.json", headers=shop), api.get("/readyz"),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200, 401, 404, 422, 405, 200, 500, 500]
    limited = client(api_requests_per_s=0.01, api_requests_at_once=1)
    answers += [limited.get("/metrics"), limited.get("/metrics"), client(api_read_only=False).delete("/metrics")]
    assert [answer.status_code for answer in answers[-3:]] == [200, 429, 405]
    for answer in answers:
        for name, value in HEADERS.items():
            expected = value.decode()
            if answer.url.path == "/" and answer.status_code == 200 and name == b"content-security-policy":
                expected = "default-src 'none'; script-src"
            assert answer.headers[name.decode()].startswith(expected), answer.url
        assert "strict-transport-security" not in answer.headers  # TLS ends elsewhere
        assert "ZeroDivisionError" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_what_only_reads_refuses_to_write(tmp_path: Path, method: str) -> None:
    producer = LogProducer(tmp_path / "log.db")
    api = client(producer)
    for path, status in (
        ("/click", 403),
        ("/v1/click", 403),
        ("/recommend/ada", 405),
        ("/v1/x", 405),
        ("/healthz", 405),
    ):
        answer = api.request(method, path, json=CLICK)
        assert answer.status_code == status
        assert "NEXTCLICK_API_READ_ONLY" in answer.json()["detail"]
    assert "/v1/click" not in api.get("/openapi.json").json()["paths"]
    assert LogReader(tmp_path / "log.db", "clicks").ends() == {}


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[tuple[TestClient, LogReader]]:
    producer = LogProducer(tmp_path / "log.db")
    yield client(producer, api_read_only=False, message_bytes_max=500), LogReader(tmp_path / "log.db", "clicks")
    producer.close()


def test_a_click_is_published_as_the_worker_reads_it(writing: tuple[TestClient, LogReader]) -> None:
    api, reader = writing
    answer = api.post("/click", json={**CLICK, "user_id": 7, "more": "ignored"})
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    (record,) = reader.read()
    assert (record.key, parse(record.value)) == (b"7", parse(encode(parse(record.value))))
    assert parse(record.value).user_id == "7"


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"{}", "application/json", 422, "user_id is missing"),
        (b"{", "application/json; charset=utf-8", 422, "EOF"),
        (b"\xff", "application/json", 422, "invalid"),
        (b'{"user_id": "u", "item_id": "i", "timestamp": 9e10}', "application/json", 422, "years ahead of this"),
        (b"[" * 400, "application/json", 422, ""),
        (b"x" * 501, "application/json", 413, "at most 500 bytes"),
        (b"{}", "text/plain", 415, "application/json"),
        (b"{}", "", 415, "application/json"),
    ],
)
def test_an_invalid_click_is_answered_with_the_reason_and_not_published(
    writing: tuple[TestClient, LogReader], body: bytes, kind: str, status: int, message: str
) -> None:
    api, reader = writing
    answer = api.post("/click", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert reader.ends() == {}


def test_a_body_without_an_end_is_read_no_further_than_the_limit(writing: tuple[TestClient, LogReader]) -> None:
    api, _ = writing
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/click", "raw_path": b"/click", "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http",
        "http_version": "1.1",
    }  # fmt: skip
    import anyio  # noqa: PLC0415

    anyio.run(api.app, scope, receive, send)
    assert sent[0]["status"] == 413
    assert taken == 6
    scope["headers"] = [*headers, (b"content-length", b"9" * 30)]
    taken = 0
    anyio.run(api.app, scope, receive, send)
    assert taken == 0


def test_writing_needs_a_key_where_there_are_keys(tmp_path: Path) -> None:
    producer = LogProducer(tmp_path / "log.db")
    api = client(producer, api_read_only=False, api_keys=(ENTRY,))
    assert api.post("/click", json=CLICK).status_code == 401
    assert api.post("/click", json=CLICK, headers={"X-API-Key": KEY}).status_code == 202


def test_an_unavailable_broker_is_no_fault_of_the_click() -> None:
    class Away:
        def send(self, *_: Any, **__: Any) -> None:
            raise SourceError("no Kafka answers at x: start it")

    answer = client(Away(), api_read_only=False).post("/click", json=CLICK)
    assert (answer.status_code, "no Kafka" in answer.text) == (503, False)
    assert answer.headers["retry-after"] == "1"


def test_the_server_bounds_headers_and_connections_and_believes_no_forwarded_address() -> None:
    limits = {"api_header_bytes_max": 2_048, "api_requests_per_s": 0.01, "api_requests_at_once": 3}
    api = Api(Settings(api_port=0, **limits), lists()).start()
    try:
        # One request after the other names another address, and all are this machine's.
        seen = [httpx.get(f"{api.url}/metrics", headers={"X-Forwarded-For": f"10.0.0.{n}"}) for n in range(4)]
        assert [answer.status_code for answer in seen] == [200, 200, 200, 429]
        port = int(api.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /healthz?" + b"x" * 100_000)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    finally:
        api.close()


def test_an_address_forwarded_by_a_trusted_proxy_is_believed() -> None:
    limits = {"api_trusted_proxies": "127.0.0.1", "api_requests_per_s": 0.01, "api_requests_at_once": 1}
    api = Api(Settings(api_port=0, **limits), lists()).start()
    try:
        seen = [httpx.get(f"{api.url}/metrics", headers={"X-Forwarded-For": f"10.0.0.{n}"}) for n in (1, 2, 1)]
        assert [answer.status_code for answer in seen] == [200, 200, 429]
    finally:
        api.close()
