"""One function says how well a worker is, and each thing that can go wrong has a state."""

import pytest

from online.worker.health import health_of, health_of_worker
from online.worker.monitor import BUCKETS_S, STUCK_S, Durations, Monitor, starting_status
from online.worker.overview import Overview
from online.worker.status import StatusReport, waiting_status
from tests.online.worker.group_statuses import group_statuses

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("status", "state", "runs"),
    [
        (None, "stopped", False),
        (starting_status(), "starting", False),
        (waiting_status("no Kafka answers"), "waiting", False),
        ({"state": "running", "problems": []}, "ready", True),
        ({"state": "running"}, "ready", True),
        ({"state": "running", "problems": [{"kind": "lagging", "since": 1, "text": "late"}]}, "degraded", True),
        ({"state": "failed", "problems": []}, "failed", False),
        ({"state": "stopped", "problems": []}, "stopped", False),
    ],
)
def test_each_state_is_told_and_has_reasons_unless_it_is_ready(status, state, runs):
    health = health_of_worker(status)
    assert (health.state, health.runs, bool(health.reasons)) == (state, runs, state != "ready")
    assert health_of(Overview(NOW_MS, status)) == health  # what `status` and /readyz of the API say is the same


def broken(loop, patch, what):
    """Makes one thing go wrong."""
    if what == "redis":
        patch.setattr(loop.writer.link, "away_since", 1.0)
    elif what == "waiting":
        patch.setattr(loop.source, "trouble", lambda: "no Kafka answers", raising=False)
    elif what == "checkpoint_failed":
        loop.checkpointer.failing_since = 1.0
        loop.notices.emit(what, "no space")
    elif what == "unreadable":
        patch.setattr(loop.unreadable["clicks"], "began", True)
        patch.setattr(type(loop.unreadable["clicks"]), "text", "most messages cannot be read")
    elif what == "lagging":
        loop.overload.lagging = True
        loop.notices.emit(what, "more clicks come than can be learned")
    elif what == "abuse_flood":
        patch.setattr(type(loop.supervisor), "flooded", True)
    else:
        patch.setattr(loop.learner.abuse_filter.net, "open", True)
        loop.notices.emit(what, "most clicks are flagged")


@pytest.mark.parametrize(
    "what", ["redis", "waiting", "checkpoint_failed", "unreadable", "lagging", "abuse_flood", "abuse_share"]
)
def test_what_goes_wrong_degrades_a_worker_and_does_not_end_it(harness, monkeypatch, what):
    loop = harness.loop()
    report = StatusReport(loop)
    assert health_of_worker(report.describe("running")) == ("ready", [])
    with monkeypatch.context() as patch:
        broken(loop, patch, what)
        health = health_of_worker(report.describe("running"))
    assert (health.state, [reason["kind"] for reason in health.reasons]) == ("degraded", [what])


def test_a_group_without_a_leader_is_degraded_and_one_that_waits_is_waiting():
    statuses = group_statuses()
    assert health_of(Overview(NOW_MS, None, statuses)).state in {"ready", "degraded"}
    leaderless = {name: one | {"group": one["group"] | {"leads": False}} for name, one in statuses.items()}
    health = health_of(Overview(NOW_MS, None, leaderless))
    assert (health.state, health.reasons[0]["kind"]) == ("degraded", "no_leader")
    waiting = {name: waiting_status("no Kafka answers") for name in statuses}
    assert health_of(Overview(NOW_MS, None, waiting)).state == "waiting"
    stopped = {name: one | {"state": "stopped"} for name, one in statuses.items()}
    assert health_of(Overview(NOW_MS, None, stopped)).state == "stopped"


def test_a_loop_that_should_turn_and_does_not_is_stuck():
    now = [0.0]
    monitor = Monitor(lambda: now[0])
    now[0] = 10 * STUCK_S
    assert monitor.stuck_s() is None  # it has not begun
    monitor.turned()
    now[0] += STUCK_S
    assert monitor.stuck_s() is None
    now[0] += 1
    assert monitor.stuck_s() == STUCK_S + 1
    health = health_of_worker({"state": "running"}, monitor.stuck_s())
    assert (health.state, health.reasons[0]["kind"]) == ("failed", "stuck")
    monitor.rests()
    assert monitor.stuck_s() is None


def test_durations_are_counted_by_bucket():
    durations = Durations()
    for seconds in (0.0005, 0.001, 0.02, 10_000.0):
        durations.observe(seconds)
    figures = durations.figures()
    assert figures["sum"] == pytest.approx(10_000.0215)
    assert [figures["buckets"][bound] for bound in ("0.001", "0.01", "0.025", "1800.0", "+Inf")] == [2, 2, 3, 3, 4]
    assert len(figures["buckets"]) == len(BUCKETS_S) + 1


def test_a_loop_tells_its_turns_and_how_long_its_steps_take(harness, town_clicks):
    harness.publish(town_clicks[:20])
    loop = harness.run()
    timings = loop.monitor.timings.figures()
    assert timings["click_to_list"]["buckets"]["+Inf"] + loop.writer.latencies.unknown > 0
    assert all(timings[name]["buckets"]["+Inf"] > 0 for name in ("poll", "micro_batch", "redis_write"))
    assert loop.monitor.stuck_s() is None
