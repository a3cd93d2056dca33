"""In a group a rollback is the leader's: it takes some turns, reaches all workers, and no other worker does it."""

import fakeredis
import pytest

from online.lifecycle.versions import VersionError
from online.worker import main
from online.worker.main import roll_back
from online.worker.overview import Overview
from online.worker.requests import answer_request
from online.worker.rollback_request import rollback
from online.worker.status import StatusReport
from stream.lists import Lists
from tests.online.worker.group_harness import GroupHarness
from tests.online.worker.group_statuses import NOW_MS, group_statuses
from tests.online.worker.test_group import some_clicks


@pytest.fixture
def group(tmp_path):
    made = GroupHarness(tmp_path, abuse_filter=False, gate=False)
    for name in "ab":
        made.begin(name)
    made.publish(some_clicks(120))
    made.drain()
    made.checkpoint()
    return made


def publish_a_version(group):
    """Returns the number of the version before, which is kept."""
    leader = group.loops["a"]
    before = leader.learner.version
    leader.supervisor.examine(leader.learner.weights.copy(), "a test", {})
    group.drain()
    assert {loop.learner.version for loop in group.loops.values()} == {before + 1}
    return before


def test_the_leader_goes_back_and_the_others_follow(group):
    leader = group.loops["a"]
    to = publish_a_version(group)
    assert roll_back(leader, to) == to + 2
    group.drain()
    assert [loop.learner.version for loop in group.loops.values()] == [to + 2] * 2
    assert [loop.versions.live.parent for loop in group.loops.values()] == [to] * 2


def test_a_version_that_does_not_come_back_is_not_waited_for_without_end(group, monkeypatch):
    leader = group.loops["a"]
    to = publish_a_version(group)
    monkeypatch.setattr(main, "ROLLBACK_S_MAX", 0.0)
    monkeypatch.setattr(leader.group.topic, "read", list)
    with pytest.raises(VersionError, match=r"was not restored: see `nextclick status`"):
        roll_back(leader, to)


@pytest.mark.parametrize(
    ("statuses", "who"), [(group_statuses(), "w-1 does"), ({}, "no other one does as yet")]
)  # fmt: skip
def test_a_worker_that_does_not_lead_names_the_one_that_does(group, monkeypatch, statuses, who):
    monkeypatch.setattr(main, "read_overview", lambda _: Overview(NOW_MS, None, statuses, {}))
    follower = group.loops["b"]
    version = follower.learner.version
    with pytest.raises(VersionError, match=f"worker b does not lead its group.*: {who}$"):
        roll_back(follower, version)
    group.drain()
    assert follower.learner.version == version


def test_each_worker_takes_the_requests_to_its_own_name():
    client = fakeredis.FakeRedis()
    one, two = (Lists(client, ttl_s=60, worker=name) for name in ("w-1", "w-2"))
    one.ask({"id": "x", "rollback": 3}, 60, "w-2")
    answer_request(one, {"rollback": rollback(lambda _: pytest.fail("it is for another worker"))})
    answer_request(two, {"rollback": rollback(lambda to: to + 1)})
    assert one.answer_to("x", "w-2") == {"version": 4, "parent": 3}


def test_each_worker_tells_what_it_counted_and_what_it_learned_from(group):
    told = {name: StatusReport(loop) for name, loop in group.loops.items()}
    statuses = {}
    for name, report in told.items():
        group.loops[name].notices.latest.clear()
        statuses[name] = report.describe("running")
    assert [status["learned"] for status in statuses.values()] == [120, 120]
    shares = [status["learned_from"] for status in statuses.values()]
    assert sum(shares) == 120
    assert min(shares) > 0
    found = Overview(NOW_MS, None, statuses, {})
    assert found.leader == "a"
    assert sorted(found.owners()) == [0, 1, 2, 3]
    assert None not in found.owners().values()
    assert group.loops["a"].group.describe()["unmerged"] == 0


def test_what_was_learned_from_comes_back_with_the_checkpoint(group):
    before = group.loops["b"].progress.learned_from
    group.kill("b")
    assert group.begin("b").progress.learned_from == before
