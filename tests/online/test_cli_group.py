"""The commands of operators where several workers report."""

import json
import re
import time

import pytest

from online.commands.worker_views import partitions_line
from online.worker.requests import answer_request
from online.worker.rollback_request import rollback
from stream.lists import Lists, connect
from tests.online.test_cli import lists, run  # noqa: F401 - fixtures
from tests.online.worker.group_statuses import group_statuses, status_of

VERSIONS = [{"number": 7, "state": "live", "at_ms": 1_700_000_000_000, "learned": 9, "why": "fine-tuned", "parent": 1}]


@pytest.fixture
def worker(lists):  # noqa: F811
    """Returns a worker's link to Redis, by its name."""
    return lambda name: Lists(connect(lists.address), ttl_s=60, worker=name)


@pytest.fixture
def report(worker):
    def write(**changed):
        now = int(1_000 * time.time())
        for name, status in (group_statuses() | changed).items():
            versions = VERSIONS if status["group"]["leads"] else []
            of_now = {"started_at": now - 90_000, "written_at": now, "versions": versions}
            worker(name).write_status(status | of_now, 60)

    return write


def test_status_shows_each_worker_and_all_together(run, report):  # noqa: F811
    report()
    code, shown, _ = run("status")
    assert code == 0
    assert re.search(r"w-1 +running +yes +0-1 +3 \(500 ms\) +400 +200 +42 +2\.\d s +7\b", shown)
    assert re.search(r"w-2 +running +2 +3 \(500 ms\) +400 +100 +42", shown)
    assert "3 report, led by w-1, at base 42; 4 partitions" in shown
    assert re.search(r"counted +400 clicks", shown)
    assert re.search(r"learned from +400 clicks", shown)
    body = json.loads(run("status", "--json")[1])
    assert [row["name"] for row in body["workers"]] == list(body["statuses"]) == ["w-1", "w-2", "w-3"]
    assert body["total"]["learned_from"] == 400


def test_status_has_a_line_for_each_problem_and_shows_who_is_gone(run, report, lists):  # noqa: F811
    report(**{"w-1": status_of("w-1", [0, 1], problems=[{"kind": "lagging", "since": 1, "text": "late"}])})
    lists._client.delete("nextclick:worker:w-3")
    code, shown, _ = run("status")
    assert code == 0  # workers report, so a probe of any of them must not fail
    assert re.search(r"w-3 +gone, reported ", shown)
    for line in (
        "no_leader +no worker leads",
        "unowned +no worker owns partition 3",
        "worker_gone +w-3: ",
        "lagging +w-1: late",
    ):
        assert re.search(f"problem: {line}", shown), line


def test_a_probe_of_one_worker_fails_only_if_that_one_is_silent(run, report, lists, monkeypatch):  # noqa: F811
    report()
    lists._client.delete("nextclick:worker:w-3")
    code, shown, _ = run("status", "--worker", "w-2")
    assert code == 0
    assert "w-2 follows, at base 42, which came 2.0 s before its report; owns partitions 2" in shown
    assert json.loads(run("status", "--worker", "w-2", "--json")[1])["group"]["worker"] == "w-2"
    code, _, error = run("status", "--worker", "w-3")
    assert code == 1
    assert error.startswith("nextclick: no worker reports as 'w-3' in Redis at ")
    monkeypatch.setenv("NEXTCLICK_WORKER_NAME", "w-3")
    assert run("status")[0] == 0  # the name of a setting is no choice


def test_where_all_are_gone_no_worker_reports(run, report, lists):  # noqa: F811
    report()
    for name in group_statuses():
        lists._client.delete(f"nextclick:worker:{name}")
    for command in ("status", "versions"):
        code, _, error = run(command)
        assert code == 1
        assert "no worker reports in Redis" in error
        assert "; the latest was w-" in error


def test_versions_are_the_leader_s(run, report):  # noqa: F811
    report()
    assert json.loads(run("versions", "--json")[1]) == VERSIONS


def test_a_rollback_goes_to_the_leader(run, report, worker, monkeypatch):  # noqa: F811
    report()
    leader = worker("w-1")
    asked = Lists.ask

    def ask(self, request, ttl_s, name=None):
        done = asked(self, request, ttl_s, name)
        for other in ("w-2", "w-3"):
            answer_request(worker(other), {"rollback": rollback(lambda _: pytest.fail("not the leader"))})
        answer_request(leader, {"rollback": rollback(lambda to: to + 1)})
        return done

    monkeypatch.setattr(Lists, "ask", ask)
    assert run("versions", "--rollback", "7")[1].startswith("rolled back: version 8 makes the lists now")
    report(**{"w-1": status_of("w-1", [0, 1])})
    code, _, error = run("versions", "--rollback", "7")
    assert code == 1
    assert error.startswith("nextclick: no worker leads the group")


@pytest.mark.parametrize(("partitions", "line"), [([], "none"), ([3, 1, 2, 7], "1-3, 7"), ([0], "0")])
def test_partitions_stand_in_ranges(partitions, line):
    assert partitions_line(partitions) == line
