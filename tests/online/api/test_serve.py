"""The API serves what stands in Redis, says clearly why it cannot, and tells strangers nothing they can misuse."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fakeredis
import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from benchmarks._servers import free_port
from online.api import late_producer
from online.api.app import create_app
from online.api.keys import make_key
from online.api.serve import Api, run_api, serve
from online.api.server import ServeError
from online.config.settings import Settings
from online.worker.connections import prepare_topics
from stream.embedded_redis import EmbeddedRedis
from stream.lists import POPULAR_KEY, Lists, TopList, connect
from stream.log import LogProducer
from stream.source import SourceError, UnavailableError
from tests.online.api.chromium import dumped

SETTINGS = Settings(api_port=0, list_size=20)

STATUS: dict[str, Any] = {
    "state": "running", "pid": 1, "started_at": 1_700_000_000_000, "written_at": 1_700_000_060_000, "version": 3,
    "learned": 12_345, "duplicates": 6, "dead_letters": {"malformed-json": 4, "missing-user_id": 2}, "users": 300,
    "items": 320, "lag": 17, "lag_s": 2.5, "lag_of": {"clicks:0": 17}, "lag_s_of": {"clicks:0": 2.5},
    "behind": True, "shedding": False, "untrained": 90, "positions": {"clicks:0": 12_351}, "events_per_s": 432.1,
    "click_to_list_ms": {"p50": 21.5, "p99": 88.0}, "scored": 12_000,
    "scores": {name: {"hit@10": 0.4, "ndcg@10": 0.2} for name in ("served", "popular", "followed")},
    "recent": {
        "served": {"hit@10": 0.61, "ndcg@10": 0.3}, "popular": {"hit@10": 0.12, "ndcg@10": 0.1},
        "followed": {"hit@10": 0.55, "ndcg@10": 0.2},
    },
    "loss": 3.21, "alarms": 1, "last_alarm": {"at": 9_000, "before": 3.0, "after": 5.5},
    "finetune": {"state": "running", "done": 2, "last_at": None},
    "checkpoint": {"number": 8, "bytes": 1_500_000, "seconds": 0.1},
    "lists_behind": 0, "refreshes": 7, "flagged": {"rate": 40, "repeats": 3}, "redis": "ok", "memory_mb_max": 321.0,
    "redis_memory": {"evicting_since": 7, "evicted": 9, "bytes_max": 1, "used_bytes": 1, "policy": "allkeys-lru"},
    "gate": {"clicks": 1_250, "live": 0.31, "candidate": 0.33, "interval": [-0.01, 0.05], "decision": "go on"},
    "versions": [
        {"number": 2, "state": "kept", "at_ms": 1_700_000_010_000, "learned": 9_000, "why": "fine-tuned", "parent": 1},
        {"number": 3, "state": "live", "at_ms": 1_700_000_050_000, "learned": 9_500, "why": "asked for", "parent": 1},
    ],
    "notices": [
        {"id": "alarm-9000-0", "kind": "alarm", "at": 1_700_000_040_000, "text": "the loss is <b>worse", "version": 2},
        {"id": "rolled_back-9500-0", "kind": "rolled_back", "at": 1_700_000_050_000, "text": "3 is 1", "version": 3},
    ],
    "notice_counts": {"alarm": 4, "rolled_back": 1}, "notices_dropped": 2,
    "unreadable_share_of": {"clicks": 0.25, "items": 0.0},
    "window": {"seconds": 300.0, "scores": {"served": {"hit@10": 0.7, "ndcg@10": 0.4}}},
    "timings": {"poll": {"sum": 0.5, "buckets": {"0.001": 3, "+Inf": 4}}},
}  # fmt: skip


def top(items: int = 20, source: str = "personal", **fields: Any) -> TopList:
    values = {"version": 3, "offset": "0:42", "clicked_at": 1, "written_at": int(time.time() * 1_000) - 500}
    scores = [1.0 - n / 100 for n in range(items)]
    return TopList(items=[f"item {n}" for n in range(items)], scores=scores, source=source, **{**values, **fields})


@pytest.fixture
def lists() -> Lists:
    return Lists(fakeredis.FakeRedis(), ttl_s=60)


@pytest.fixture
def api(lists: Lists) -> Iterator[TestClient]:
    with TestClient(create_app(SETTINGS, lists), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def listening(lists: Lists) -> Iterator[tuple[Lists, httpx.Client]]:
    """The API on a real port: the test client decodes a path once too often."""
    api = Api(SETTINGS, lists).start()
    with httpx.Client(base_url=api.url) as client:
        yield lists, client
    api.close()


@pytest.fixture
def no_redis() -> TestClient:
    """An API whose Redis is not there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return TestClient(create_app(SETTINGS, Lists(connect(f"redis://:hush@127.0.0.1:{port}/0"), ttl_s=60)))


def test_a_user_gets_their_own_list(api: TestClient, lists: Lists) -> None:
    lists.write({"ada": top()}, top(source="popular"))
    body = api.get("/recommend/ada", params={"k": 3}).json()
    assert body.pop("age_ms") in range(500, 5_000)
    assert body.pop("written_at") > 1e12
    assert body == {
        "user_id": "ada", "items": ["item 0", "item 1", "item 2"], "scores": [1.0, 0.99, 0.98], "version": 3,
        "offset": "0:42", "clicked_at": 1, "source": "personal",
    }  # fmt: skip
    assert len(api.get("/recommend/ada").json()["items"]) == 10
    assert len(api.get("/recommend/ada?k=20").json()["items"]) == 20


def test_an_unknown_user_gets_the_popular_list(api: TestClient, lists: Lists) -> None:
    lists.write({}, top(items=2, source="popular"))
    answer = api.get("/recommend/nobody")
    assert answer.status_code == 200
    assert (answer.json()["source"], answer.json()["items"]) == ("popular", ["item 0", "item 1"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64))
@example(user="a/b?c#d%2F é")
@example(user="two\nlines\n")
def test_any_user_id_can_be_asked_for(listening: tuple[Lists, httpx.Client], user: str) -> None:
    assume(not set(user.split("/")) & {".", ".."})  # every client resolves these as it does in folders
    lists, client = listening
    lists.write({user: top()}, top(source="popular"))
    body = client.get("/recommend/" + quote(user, safe="")).json()
    assert (body["user_id"], body["source"]) == (user, "personal")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/recommend/ada?k=0", "k: Input should be greater than or equal to 1"),
        ("/recommend/ada?k=21", "k: Input should be less than or equal to 20"),
        ("/recommend/ada?k=ten", "k: Input should be a valid integer"),
        ("/recommend/", "user: an id has 1 to 256 bytes, this one has 0"),
        ("/recommend/" + "x" * 257, "user: an id has 1 to 256 bytes, this one has 257"),
        ("/recommend/" + "%C3%B1" * 129, "user: an id has 1 to 256 bytes, this one has 258"),
    ],
)
def test_wrong_requests_are_answered_with_what_is_wrong(api: TestClient, path: str, message: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_where_keys_are_needed_ready_says_less_to_who_has_none(lists: Lists) -> None:
    lists.write_status({**STATUS, "problems": [{"kind": "waiting", "since": 1, "text": "no Kafka at secret.host"}]}, 30)
    _, entry = make_key("shop")
    answer = TestClient(create_app(SETTINGS.model_copy(update={"api_keys": (entry,)}), lists)).get("/readyz")
    assert answer.json()["problems"] == [{"kind": "waiting", "since": 1}]


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/nosuch", 404, "/openapi.json"),
        ("GET", "/recommend", 404, "/openapi.json"),
        ("PUT", "/recommend/ada", 405, "PUT is not for this path: GET is"),
        ("DELETE", "/healthz", 405, "DELETE"),
        ("GET", "/click", 405, "POST is"),
        ("GET", "/recommend/%ff", 400, "not UTF-8"),
        ("GET", "/recommend/a%ed%a0%80", 400, "not UTF-8"),
        ("GET", "/%ff", 400, "not UTF-8"),
        ("GET", "/recommend/ada?k=x", 422, "k: "),
        ("GET", "/recommend/ada", 503, "nothing has been learned yet"),
        ("POST", "/click", 415, "application/json"),
    ],
)
def test_every_error_has_one_shape(  # noqa: PLR0917
    lists: Lists, tmp_path: Path, method: str, path: str, status: int, word: str
) -> None:
    open_to_writing = SETTINGS.model_copy(update={"api_read_only": False})
    with contextlib.closing(LogProducer(tmp_path / "log.db")) as producer:
        answer = TestClient(create_app(open_to_writing, lists, producer)).request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json().keys() == {"type", "title", "status", "detail", "error"}
    assert answer.json()["status"] == status
    assert answer.json()["error"] == answer.json()["detail"]
    assert word in answer.json()["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_bug_of_ours_has_that_shape_too(lists: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "read_many_now", lambda _: 1 / 0)
    answer = TestClient(create_app(SETTINGS, lists), raise_server_exceptions=False).get("/recommend/ada")
    assert (answer.status_code, answer.json()["detail"]) == (500, "internal error: see the API's log")


def test_before_anything_is_learned_the_api_says_so(api: TestClient) -> None:
    for path in ("/recommend/ada", "/readyz"):
        answer = api.get(path)
        assert answer.status_code == 503
        assert "nothing has been learned yet" in answer.json()["detail"]
    assert api.get("/healthz").status_code == 200
    assert api.get("/status.json").json()["worker"] is None


def test_without_redis_the_api_lives_and_its_log_alone_says_where_none_answers(
    no_redis: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/recommend/ada", "/readyz", "/recommend/ada?k=3&fresh=true"):
        answer = no_redis.get(path)
        assert answer.status_code == 503
        assert "Redis cannot be read now" in answer.json()["detail"]
        assert "127.0.0.1" not in answer.text
        assert "hush" not in answer.text
    told = [
        line
        for line in caplog.messages
        if "no Redis answers at redis://127.0.0.1" in line and "answered with 503" in line
    ]
    assert len(told) == 1
    assert "hush" not in caplog.text
    assert no_redis.get("/healthz").json() == {"status": "ok"}
    assert "no Redis answers" in no_redis.get("/status.json").json()["redis"]
    assert "nextclick_redis_up 0.0" in no_redis.get("/metrics").text


@pytest.mark.parametrize("what", ["list", "status"])
def test_it_is_ready_when_there_is_a_list_or_a_worker(api: TestClient, lists: Lists, what: str) -> None:
    problems = [{"kind": "lagging", "since": 1_700_000_000_000, "text": "more clicks come than can be learned"}]
    if what == "list":
        lists.write({}, top())
        problems = [{"kind": "worker", "since": None, "text": "no worker reports: start `nextclick worker`"}]
    else:
        lists.write_status({**STATUS, "problems": problems}, 30)
        assert 'nextclick_problem{kind="lagging"} 1.0' in api.get("/metrics").text
    state = "stopped" if what == "list" else "degraded"
    assert api.get("/readyz").json() == {"status": "degraded", "worker": state, "problems": problems}
    assert api.head("/readyz").status_code == 200


UNREADABLE = {
    "kind": "unreadable",
    "since": 1_700_000_000_000,
    "text": "97 % of the latest 200 messages on clicks cannot be read: <b>such",
}


def test_it_is_degraded_while_many_messages_cannot_be_read(api: TestClient, lists: Lists) -> None:
    lists.write_status(STATUS | {"problems": [UNREADABLE]}, 30)
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "degraded", "worker": "degraded", "problems": [UNREADABLE]},
    )
    assert 'nextclick_unreadable_share{topic="clicks"} 0.25' in api.get("/metrics").text
    lists.write_status(STATUS | {"problems": []}, 30)
    assert api.get("/readyz").json() == {"status": "ready", "worker": "ready", "problems": []}


def test_it_is_not_ready_where_redis_refuses_to_read_lists_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that answers PING and gives the popular list out, but not the lists of users."""
    client = fakeredis.FakeRedis()
    lists = Lists(client, ttl_s=60)
    lists.write({}, top(source="popular"))

    def refusing(_: list[str]) -> Any:
        raise redis.exceptions.MovedError("3999 127.0.0.1:7001")

    monkeypatch.setattr(client, "mget", refusing)
    api = TestClient(create_app(SETTINGS, lists))
    for path in ("/readyz", "/recommend/ada"):
        assert api.get(path).status_code == 503
    assert "is a cluster (MOVED" in caplog.text


def test_a_damaged_value_in_redis_is_no_error() -> None:
    client = fakeredis.FakeRedis()
    lists = Lists(client, ttl_s=60)
    lists.write({}, top(source="popular"))
    client.set("nextclick:top:ada", b"\xff{")
    client.set("nextclick:status", b"[1]")
    api = TestClient(create_app(SETTINGS, lists))
    assert api.get("/recommend/ada").json()["source"] == "popular"
    assert api.get("/status.json").json()["worker"] is None
    client.set(POPULAR_KEY, b"{}")
    assert api.get("/recommend/ada").status_code == 503


def test_metrics_tell_prometheus_about_requests_and_the_worker(api: TestClient, lists: Lists) -> None:
    lists.write({"ada": top()}, top(source="popular"))
    lists.write_status(STATUS, 30)
    for path in ("/recommend/ada", "/recommend/bob", "/recommend/ada?k=0", "/no/such/path"):
        api.get(path)
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert all(family.documentation for family in families.values())
    values = {(s.name, *sorted(s.labels.values())): s.value for family in families.values() for s in family.samples}
    assert values["nextclick_requests_total", "/v1/recommend/{user:text}", "200"] == 2
    assert values["nextclick_requests_total", "/v1/recommend/{user:text}", "422"] == 1
    assert values["nextclick_requests_total", "404", "none"] == 1
    assert values["nextclick_request_duration_seconds_count", "/v1/recommend/{user:text}"] == 3
    assert values["nextclick_lists_served_total", "own"] == values["nextclick_lists_served_total", "popular"] == 1
    assert values["nextclick_worker_up",] == values["nextclick_redis_up",] == 1
    assert values["nextclick_learned_total",] == 12_345
    assert values["nextclick_dead_letters_total", "malformed-json"] == 4
    assert values["nextclick_flagged_total", "rate"] == 40
    assert values["nextclick_lag_messages",] == values["nextclick_partition_lag_messages", "0", "clicks"] == 17
    assert values["nextclick_lag_seconds",] == values["nextclick_partition_lag_seconds", "0", "clicks"] == 2.5
    assert (values["nextclick_behind",], values["nextclick_shedding",]) == (1, 0)
    assert values["nextclick_untrained_total",] == 90
    assert values["nextclick_hit_rate_at_10_recent", "served"] == 0.7
    assert (values["nextclick_click_to_list_p50_seconds",], values["nextclick_click_to_list_p99_seconds",]) == (
        0.0215,
        0.088,
    )
    assert values["nextclick_poll_seconds_bucket", "0.001"] == 3
    assert (values["nextclick_poll_seconds_count",], values["nextclick_poll_seconds_sum",]) == (4, 0.5)
    assert values["nextclick_drift_alarms_total",] == 1
    assert values["nextclick_version",] == 3
    assert (values["nextclick_redis_evicting",], values["nextclick_redis_evicted_keys_total",]) == (1, 9)
    assert values["nextclick_notices_total", "alarm"] == 4
    assert values["nextclick_notices_dropped_total",] == 2
    assert (values["nextclick_gate_clicks",], values["nextclick_gate_score", "candidate"]) == (1_250, 0.33)
    assert (values["nextclick_gate_difference", "low"], values["nextclick_gate_difference", "high"]) == (-0.01, 0.05)


@settings(max_examples=40, deadline=None)
@given(
    changed=st.dictionaries(
        st.sampled_from(sorted(STATUS)), st.none() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
    )
)
def test_metrics_survive_any_status_that_an_older_or_newer_worker_writes(changed: dict[str, Any]) -> None:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write_status({**STATUS, **changed}, 30)
    assert TestClient(create_app(SETTINGS, lists)).get("/metrics").status_code == 200


def test_every_answer_has_the_security_headers(api: TestClient) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/status.json", "/recommend/ada", "/no/such/path"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers


def test_the_api_listens_until_it_is_stopped() -> None:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write({"a/b?c": top()})
    api = Api(SETTINGS, lists).start()
    try:
        assert httpx.get(f"{api.url}/recommend/a%2Fb%3Fc").json()["user_id"] == "a/b?c"
    finally:
        api.close()
    assert not api.alive
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{api.url}/healthz")
    api.close()


def test_run_api_ends_when_stop_is_set() -> None:
    stop = threading.Event()
    stop.set()
    run_api(SETTINGS, Lists(fakeredis.FakeRedis(), ttl_s=60), stop)


def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"cannot listen on 127.0.0.1 port {port} .*NEXTCLICK_API_PORT"):
            Api(SETTINGS.model_copy(update={"api_port": port}), Lists(fakeredis.FakeRedis(), ttl_s=60))


def test_an_unknown_host_is_one_clear_line() -> None:
    with pytest.raises(ServeError, match=r"cannot listen on no\.such\.host\.invalid"):
        Api(SETTINGS.model_copy(update={"api_host": "no.such.host.invalid"}), Lists(redis.Redis(), ttl_s=60))


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    """The command in a thread."""
    stop, failed = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            serve(settings, stop)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.api_port}") as client:
            until("it listens", lambda: client.get("/healthz").status_code == 200)
            yield client
    finally:
        stop.set()
        thread.join(30)
    assert not failed


def until(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if true():
                return
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("named", [False, True], ids=["embedded Redis", "a Redis by its URL"])
def test_serve_starts_before_redis_and_is_ready_when_that_comes(
    tmp_path: Path, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    url = SecretStr(f"redis://127.0.0.1:{port}/0") if named else None
    settings = Settings(api_port=free_port(), embedded_redis_port=port, redis_url=url, data_dir=tmp_path)
    with serving(settings) as client:
        for path in ("/readyz", "/recommend/ada"):
            answer = client.get(path)
            assert (answer.status_code, f"127.0.0.1:{port}" in answer.json()["detail"]) == (503, False)
        assert f"127.0.0.1:{port}" in caplog.text
        with EmbeddedRedis(port) as redis_server:
            Lists(redis_server.client, ttl_s=60).write({"ada": top()}, top())
            until("it is ready", lambda: client.get("/readyz").status_code == 200)
            assert client.get("/recommend/ada").status_code == 200


def test_serve_starts_before_its_broker_and_takes_clicks_when_that_comes(
    tmp_path: Path, lists: Lists, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = threading.Event()

    def prepare(settings: Settings) -> None:
        if not there.is_set():
            raise UnavailableError("no Kafka answers at k:9092: start it")
        prepare_topics(settings)

    monkeypatch.setattr(late_producer, "prepare_topics", prepare)
    monkeypatch.setattr("online.api.serve.open_lists", lambda *_, **__: lists)
    lists.write({}, top())
    settings = Settings(api_port=free_port(), data_dir=tmp_path, api_read_only=False, retry_s_min=0.05, retry_s_max=0.1)
    click = {"user_id": "ada", "item_id": "i", "timestamp": 1}
    with serving(settings) as client:
        until("it says why", lambda: "the broker takes nothing now" in client.get("/readyz").text)
        answer = client.post("/click", json=click)
        assert (answer.status_code, "k:9092" in answer.text) == (503, False)
        assert "no Kafka answers at k:9092: start it" in caplog.text
        assert client.get("/recommend/ada").status_code == 200
        there.set()
        until("it is ready", lambda: client.get("/readyz").status_code == 200)
        assert client.post("/click", json=click).status_code == 202


def test_a_broker_that_refuses_ends_serve(tmp_path: Path, lists: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Settings) -> None:
        raise SourceError("Kafka at k:9092 refuses user or password")

    monkeypatch.setattr(late_producer, "prepare_topics", refuse)
    monkeypatch.setattr("online.api.serve.open_lists", lambda *_, **__: lists)
    with pytest.raises(SourceError, match="refuses user"):
        serve(Settings(api_port=0, data_dir=tmp_path, api_read_only=False), threading.Event())


def in_browser(tmp_path: Path, status: dict[str, Any]) -> str:
    """The dashboard as a browser shows it."""
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    now = int(time.time() * 1_000)
    lists.write_status({**status, "started_at": now - 90_000, "written_at": now}, 30)
    api = Api(SETTINGS, lists).start()
    try:
        return dumped(tmp_path, api.url)
    finally:
        api.close()


@pytest.mark.real
def test_a_browser_shows_that_messages_cannot_be_read(tmp_path: Path) -> None:
    page = in_browser(tmp_path, STATUS | {"behind": False, "problems": [UNREADABLE]})
    texts = dict(re.findall(r'id="([\w-]+)"[^>]*>([^<]*)<', page))
    assert texts["state"] == "learning, with problems"
    (row,) = rows_of(page, "problems")
    assert row[1:] == ["unreadable", "97 % of the latest 200 messages on clicks cannot be read: &lt;b&gt;such"]


@pytest.mark.real
def test_a_browser_shows_the_numbers(tmp_path: Path) -> None:
    page = in_browser(tmp_path, STATUS)
    texts = dict(re.findall(r'id="([\w-]+)"[^>]*>([^<]*)<', page))
    assert texts["state"] == "learning, and behind"
    assert texts["waits"] == "the oldest for 2.5 s, more come than can be learned"
    assert texts["rate"] == "432"
    assert (texts["p50"], texts["p99"], texts["lag"]) == ("22 ms", "88 ms", "17")
    assert (texts["served"], texts["popular"], texts["followed"]) == ("61.0&nbsp;%", "12.0&nbsp;%", "55.0&nbsp;%")
    assert "malformed-json" in page
    assert "lists: repeats</td><td>3</td>" in page
    assert "not trained on</td><td>90</td>" in page
    assert "3.00 → 5.50" in page
    assert "0.3300, 0.3100 (1,250 clicks)" in page
    rows = {name: rows_of(page, name) for name in ("notices", "versions")}
    assert [row[1:] for row in rows["notices"]] == [["rolled back", "3 is 1"], ["alarm", "the loss is &lt;b&gt;worse"]]
    assert [row[:2] for row in rows["versions"]] == [["3", "live"], ["2", "kept"]]
    assert rows["versions"][0][3:5] == ["1", "asked for"]


def rows_of(page: str, table: str) -> list[list[str]]:
    """The cells of a table in a page, as it writes them."""
    (body,) = re.findall(rf'<table [^>]*id="{table}"[^>]*>(.*?)</table>', page, flags=re.DOTALL)
    rows = [re.findall("<td[^>]*>(.*?)</td>", row, flags=re.DOTALL) for row in re.findall("<tr>(.*?)</tr>", body)]
    return [cells for cells in rows if cells]  # a row of headings has none
