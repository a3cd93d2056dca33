"""The API shows all workers of a group: readiness, status, metrics, and the dashboard in a real browser."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from online.api.app import create_app
from online.api.keys import make_key
from online.api.serve import Api
from stream.lists import Lists
from tests.online.api.chromium import dumped
from tests.online.api.test_serve import SETTINGS, rows_of
from tests.online.worker.group_statuses import group_statuses, status_of


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis()


@pytest.fixture
def api(client: fakeredis.FakeRedis) -> Iterator[TestClient]:
    with TestClient(create_app(SETTINGS, Lists(client, ttl_s=60)), raise_server_exceptions=False) as served:
        yield served


def report(client: fakeredis.FakeRedis, **changed: dict[str, Any] | None) -> None:
    """Three workers report, as of now; None: that one is gone."""
    now = int(1_000 * time.time())
    for name, status in (group_statuses() | changed).items():
        of_now = {"started_at": now - 90_000, "written_at": now, "versions": []}
        Lists(client, ttl_s=60, worker=name).write_status((status or {}) | of_now, 60)
        if status is None:
            client.delete(f"nextclick:worker:{name}")


def values(api: TestClient) -> dict[tuple[str, ...], float]:
    families = list(text_string_to_metric_families(api.get("/metrics").text))
    assert all(family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    found = {
        (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items()))): one.value for one in samples
    }
    assert len(found) == len(samples)
    return found


def test_a_group_is_ready_and_what_is_wrong_names_the_worker(api: TestClient, client: fakeredis.FakeRedis) -> None:
    report(client)
    assert api.get("/readyz").json() == {"status": "ready", "worker": "ready", "problems": []}
    report(client, **{"w-3": None})
    body = api.get("/readyz").json()
    assert body["status"] == "degraded"
    assert [(one["kind"], one["worker"]) for one in body["problems"]] == [("unowned", None), ("worker_gone", "w-3")]
    _, entry = make_key("shop")
    keyed = create_app(SETTINGS.model_copy(update={"api_keys": (entry,)}), Lists(client, ttl_s=60))
    assert "w-3" not in TestClient(keyed).get("/readyz").text


def test_the_status_is_of_all_together_and_of_each(api: TestClient, client: fakeredis.FakeRedis) -> None:
    report(client)
    body = api.get("/status.json").json()
    assert (body["worker"]["version"], body["worker"]["learned_from"]) == (7, 400)
    assert [row["name"] for row in body["workers"]] == ["w-1", "w-2", "w-3"]


def test_of_a_worker_alone_there_is_no_list_of_workers(api: TestClient, client: fakeredis.FakeRedis) -> None:
    Lists(client, ttl_s=60).write_status({"state": "running"}, 60)
    assert api.get("/status.json").json()["worker"] == {"state": "running"}
    assert "workers" not in api.get("/status.json").json()
    assert "worker=" not in api.get("/metrics").text


def test_metrics_have_the_worker_s_name_and_the_group_its_own(api: TestClient, client: fakeredis.FakeRedis) -> None:
    report(client, **{"w-3": None, "w-2": status_of("w-2", [2], problems=[{"kind": "redis", "since": 1, "text": "x"}])})
    found = values(api)
    assert [found["nextclick_worker_up", f"worker=w-{n}"] for n in (1, 2, 3)] == [1, 1, 0]
    assert found["nextclick_learned_total", "worker=w-2"] == 400
    assert found["nextclick_learned_from_total", "worker=w-1"] == 200
    assert [found["nextclick_worker_leads", f"worker=w-{n}"] for n in (1, 2)] == [1, 0]
    assert found["nextclick_owned_partitions", "worker=w-1"] == 2
    assert found["nextclick_partition_owner", "partition=2", "worker=w-2"] == 1
    assert (found["nextclick_unowned_partitions",], found["nextclick_leader_up",]) == (1, 1)
    assert found["nextclick_lag_messages", "worker=w-1"] == 3  # of the partitions it owns
    assert found["nextclick_partition_lag_messages", "partition=2", "topic=clicks", "worker=w-2"] == 3
    assert ("nextclick_partition_lag_messages", "partition=0", "topic=clicks", "worker=w-2") not in found
    assert found["nextclick_base", "worker=w-2"] == 42
    assert 2 <= found["nextclick_round_age_seconds", "worker=w-2"] < 30
    assert found["nextclick_changes_dropped_total", "worker=w-1"] == 4
    assert found["nextclick_lists_rejected_total", "worker=w-2"] == 2
    assert found["nextclick_drift_alarms_total",] == 1  # the leader's, and no other one's
    assert found["nextclick_problem", "kind=redis", "worker=w-2"] == 1
    assert found["nextclick_problem", "kind=worker_gone", "worker=w-3"] == 1


def test_a_group_that_is_gone_as_a_whole_is_down(api: TestClient, client: fakeredis.FakeRedis) -> None:
    report(client, **dict.fromkeys(group_statuses()))
    found = values(api)
    assert {found["nextclick_worker_up", f"worker=w-{n}"] for n in (1, 2, 3)} == {found["nextclick_leader_up",]} == {0}
    assert api.get("/readyz").status_code == 503


@pytest.mark.real
def test_a_browser_shows_all_workers(tmp_path: Path, client: fakeredis.FakeRedis) -> None:
    report(client, **{"w-4": None})
    api = Api(SETTINGS, Lists(client, ttl_s=60)).start()
    try:
        page = dumped(tmp_path, api.url)
    finally:
        api.close()
    texts = dict(re.findall(r'id="([\w-]+)"[^>]*>([^<]*)<', page))
    assert texts["group-title"] == "Workers: 3 report, 1 gone; w-1 leads"
    (body,) = re.findall(r'<tbody id="workers">(.*?)</tbody>', page, flags=re.DOTALL)
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr[^>]*>(.*?)</tr>", body)]
    assert [row[:3] for row in rows[:3]] == [
        ["w-1", "running, leads", "0-1"], ["w-2", "running", "2"], ["w-3", "running", "3"],
    ]  # fmt: skip
    assert rows[1][4:7] == ["400", "100", "42"]
    assert rows[3][1].startswith("gone, reported ")
    assert [row[1] for row in rows_of(page, "problems")] == ["worker gone"]
    assert "version 7" in texts["facts"]
