"""A worker's own /metrics, /healthz and /readyz, and the rules that both expositions keep."""

import logging
import re
import shutil
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from online.api.app import create_app
from online.api.keys import make_key
from online.api.server import ServeError
from online.api.worker_http import CONNECTIONS_MAX, create_worker_app, worker_http
from online.config.settings import Settings
from online.worker import monitor as monitor_module
from online.worker.monitor import Monitor
from online.worker.status import waiting_status
from stream.lists import Lists
from tests.online.api.test_serve import SETTINGS, STATUS
from tests.online.worker.group_statuses import group_statuses

PROBLEM = {"kind": "redis", "since": 1, "text": "no Redis answers at secret.host"}


def own(status: dict[str, Any]) -> str:
    """A worker's exposition."""
    monitor = Monitor()
    monitor.timings.poll.observe(0.02)
    monitor.publish(status)
    return TestClient(create_worker_app(SETTINGS, monitor)).get("/metrics").text


def served(status: dict[str, Any] | None = None) -> str:
    """The API's exposition, of a worker alone or of a group."""
    client = fakeredis.FakeRedis()
    if status is not None:
        Lists(client, ttl_s=60).write_status(status, 60)
    else:
        for name, one in group_statuses().items():
            of_now = {"started_at": 1, "written_at": int(1_000 * time.time())}
            Lists(client, ttl_s=60, worker=name).write_status(one | of_now, 60)
    api = TestClient(create_app(SETTINGS, Lists(client, ttl_s=60)))
    api.get("/recommend/ada")
    return api.get("/metrics").text


def test_both_expositions_have_the_same_metrics_of_the_worker() -> None:
    names = [{family.name for family in text_string_to_metric_families(text)} for text in (own(STATUS), served(STATUS))]
    of_requests = {"nextclick_request_duration_seconds", "nextclick_requests", "nextclick_lists_served"}
    more = names[1] - names[0] - of_requests
    assert more <= {"nextclick_redis_up", "nextclick_questions", "nextclick_impressions"}
    live = {f"nextclick_{name}_seconds" for name in ("click_to_list", "micro_batch", "redis_write", "checkpoint_write")}
    assert names[0] - names[1] <= live  # of a status that a worker of today writes, they are in both
    assert {"nextclick_build_info", "process_resident_memory_bytes"} <= names[0] & names[1]


@pytest.mark.parametrize("text", [own(STATUS), served(STATUS), served()], ids=["worker", "api", "group"])
def test_names_keep_the_rules_of_prometheus(text: str) -> None:
    families = list(text_string_to_metric_families(text))
    assert len(families) > 20
    for family in families:
        assert family.documentation, family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert not re.search(r"_(ms|mb|kb|milliseconds|megabytes|s)$", family.name), family.name
        for sample in family.samples:
            assert (sample.name.endswith("_total")) == (family.type == "counter"), sample.name
            assert "quantile" not in sample.labels
            assert "le" not in sample.labels or family.type == "histogram"
    build = next(family for family in families if family.name.startswith("nextclick_build"))
    assert set(build.samples[0].labels) == {"version", "python", "torch"}


@pytest.mark.real
@pytest.mark.parametrize("kind", ["worker", "api", "group"])
def test_promtool_finds_nothing_to_say(kind: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: its rules are only checked by the test of names")
    text = {"worker": lambda: own(STATUS), "api": lambda: served(STATUS), "group": served}[kind]()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_worker_answers_while_it_starts_waits_runs_and_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor()
    http = TestClient(create_worker_app(SETTINGS, monitor))

    def seen() -> tuple[int, int, str]:
        ready = http.get("/readyz")
        return http.get("/healthz").status_code, ready.status_code, ready.json()["status"]

    assert seen() == (200, 503, "starting")
    monitor.publish(waiting_status("no Kafka answers"))
    assert seen() == (200, 503, "waiting")
    monitor.turned()
    monitor.publish(STATUS)
    assert seen() == (200, 200, "ready")
    monitor.publish(STATUS | {"problems": [PROBLEM]})
    assert seen() == (200, 200, "degraded")
    assert http.get("/readyz").json()["problems"] == [PROBLEM]
    monkeypatch.setattr(monitor_module, "STUCK_S", -1.0)
    assert seen() == (503, 503, "failed")
    assert "has not turned" in http.get("/healthz").json()["detail"]


def test_reasons_have_no_texts_where_keys_are_set_and_answers_are_safe() -> None:
    monitor = Monitor()
    monitor.publish(STATUS | {"problems": [PROBLEM]})
    keyed = SETTINGS.model_copy(update={"api_keys": (make_key("shop")[1],)})
    http = TestClient(create_worker_app(keyed, monitor))
    assert "secret.host" not in http.get("/readyz").text + http.get("/metrics").text
    assert http.head("/healthz").status_code == 200
    for path, status in (("/no/such", 404), ("/metrics", 200)):
        answer = http.get(path)
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (status, "nosniff")
    assert http.post("/metrics").json()["detail"] == "Method Not Allowed"


def settings_with(tmp_path: Path, **fields: Any) -> Settings:
    return Settings(data_dir=tmp_path, **fields)


def test_a_port_that_was_set_and_is_taken_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        advice = rf"port {port} \(.*choose another with NEXTCLICK_WORKER_PORT; 0: none"
        with pytest.raises(ServeError, match=advice), worker_http(settings_with(tmp_path, worker_port=port)):
            pass


def test_a_default_port_that_is_taken_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = SETTINGS.model_dump() | {"worker_port": taken.getsockname()[1]}
        settings = Settings.model_construct(_fields_set=set(), **values)  # as if that port were the default
        with caplog.at_level(logging.WARNING), worker_http(settings) as monitor:
            assert monitor.status()["state"] == "starting"
    assert "this worker has no /metrics, /healthz and /readyz" in caplog.text


def test_port_0_opens_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), worker_http(settings_with(tmp_path, worker_port=0)):
        pass
    assert caplog.text == ""


def test_silent_clients_do_not_shut_a_scraper_out(tmp_path: Path, free_port: int) -> None:
    with worker_http(settings_with(tmp_path, worker_port=free_port)) as monitor:
        monitor.publish(STATUS)
        silent = [socket.create_connection(("127.0.0.1", free_port)) for _ in range(2 * CONNECTIONS_MAX)]
        try:
            for one in silent:
                one.sendall(b"GET /metrics HTTP/1.1\r\n")  # and nothing more
            for path in ("/metrics", "/healthz", "/readyz"):
                assert httpx.get(f"http://127.0.0.1:{free_port}{path}", timeout=20).status_code == 200
        finally:
            for one in silent:
                one.close()
    with closing(socket.socket()) as after:
        assert after.connect_ex(("127.0.0.1", free_port)) != 0  # it ends with the worker
