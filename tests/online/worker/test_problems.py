"""What is wrong right now: open while its cause lasts, gone with it, whatever was saved in between."""

import io

from rich.console import Console

from online.commands.views import status_view
from online.worker.problem_kinds import KINDS
from online.worker.status import StatusReport, waiting_status


def kinds(report: StatusReport) -> list[str]:
    return [problem["kind"] for problem in report.describe("running")["problems"]]


def test_a_problem_is_open_while_its_cause_lasts(harness, monkeypatch):
    loop = harness.loop()
    report = StatusReport(loop)
    assert kinds(report) == []
    loop.overload.lagging = True
    loop.notices.emit("lagging", "more clicks come than can be learned")
    (problem,) = report.describe("running")["problems"]
    assert problem["text"] == "more clicks come than can be learned"
    assert problem["since"] == loop.notices.last["lagging"].at
    loop.checkpointer.failing_since = 1.0
    loop.notices.emit("checkpoint_failed", "no space")
    with monkeypatch.context() as patch:
        patch.setattr(type(loop.supervisor), "outage", True)
        assert kinds(report) == ["checkpoint_failed", "outage", "lagging"]
        assert set(kinds(report)) <= set(KINDS)
    loop.checkpointer.failing_since, loop.overload.lagging = None, False
    assert kinds(report) == []


def test_what_no_notice_tells_is_dated_by_when_it_was_first_seen(harness, monkeypatch):
    loop = harness.loop()
    report = StatusReport(loop)
    monkeypatch.setattr(loop.source, "trouble", lambda: "no Kafka answers", raising=False)
    first = report.describe("running")["problems"]
    assert [(one["kind"], one["text"]) for one in first] == [("waiting", "no Kafka answers")]
    assert report.describe("running")["problems"] == first


def test_a_restart_does_not_bring_back_what_is_over(harness):
    """The checkpoint that ends a full disk is written before it is told that it has ended."""
    loop = harness.loop()
    loop.notices.emit("checkpoint_failed", "no space")
    again = harness.loop()
    again.notices.load_state(loop.notices.to_state())
    assert kinds(StatusReport(again)) == []


def test_status_shows_problems_and_a_worker_that_waits_has_one():
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(status_view(waiting_status("no Kafka answers at k:9092: start it")))
    text = console.export_text()
    assert "waits for" in text
    assert "no Kafka answers at k:9092" in text


def test_status_metric_and_notices_count_alarms_alike_and_improvements_as_none(harness, town_clicks):
    harness.publish(town_clicks[:200])
    loop = harness.begin(harness.loop(drift_delta=0.5, drift_clicks_each=1))
    loop.changes.drift.update(["click"] * 300, [0.1] * 300, [True] * 300, range(300))  # it gets worse
    loop.turn()
    drift = loop.changes.drift
    drift.last_alarm = drift.last_improvement = None
    drift.update(["click"] * 300, [50.0] * 300, [False] * 300, range(300))  # and then better
    while loop.turn():
        pass
    report = StatusReport(loop).describe("running")
    for kind, counted, word in (("alarm", "alarms", "less well"), ("improvement", "improvements", "better")):
        told = [notice["text"] for notice in report["notices"] if notice["kind"] == kind]
        assert told
        assert report[counted] >= report["notice_counts"][kind] == len(told)
        assert all(word in text for text in told)


def test_abuse_beyond_its_share_and_a_redis_that_evicts_are_problems_while_they_last(harness):
    loop = harness.loop()
    report = StatusReport(loop)
    loop.learner.abuse_filter.net.open = True
    loop.notices.emit("abuse_share", "6 % of the latest clicks are flagged as abuse")
    loop.writer.evictions.since = 1_700_000_000.0
    loop.notices.emit("evicting", "Redis is too small")
    found = report.describe("running")["problems"]
    assert [(one["kind"], one["text"]) for one in found] == [
        ("abuse_share", "6 % of the latest clicks are flagged as abuse"),
        ("evicting", "Redis is too small"),
    ]
    loop.learner.abuse_filter.net.open, loop.writer.evictions.since = False, None
    assert kinds(report) == []
