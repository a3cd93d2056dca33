"""Unreadable messages are reported when they begin and when they are over, with the reason, and no user is named."""

import json
import time
from contextlib import closing
from io import StringIO

import pytest
from rich.console import Console

from online.commands.views import status_view
from online.config.settings import Settings
from online.lifecycle.unreadable import OVER, UNREADABLE, UNREADABLE_MIN, UnreadableWatch
from online.worker.connections import open_producer, prepare_topics
from online.worker.status import StatusReport
from stream.events import BadEvent, parse
from stream.source import Partition
from tests.online.conftest import NOW, SMALL, WORKER_WAIT_S, worker_thread

A_DATE = b'{"user_id": "alice17", "item_id": "kettle", "timestamp": 20261128}'
THEIRS = b'{"userId": "alice17", "itemId": "kettle", "ts": 1730600000000}'


class Told(list):
    def __call__(self, kind, text, figures):
        self.append((kind, text, dict(figures)))


def watch(share=0.2, messages=1_000):
    told = Told()
    return UnreadableWatch("clicks", share=share, messages=messages, emit=told), told


def feed(one, count, value=None):
    bad = None if value is None else parse(value, now=NOW)
    assert bad is None or isinstance(bad, BadEvent)
    for _ in range(count):
        one.update(bad, value)


def test_unreadable_first_messages_are_reported_with_reason_hint_and_example():
    one, told = watch()
    feed(one, UNREADABLE_MIN - 1, A_DATE)
    assert told == []
    feed(one, 200, A_DATE)
    ((kind, text, figures),) = told
    assert kind == UNREADABLE
    assert text == (
        "100 % of the latest 20 messages on clicks cannot be read and are dead letters, 20 of them because of "
        "invalid-timestamp; it looks like a date (YYYYMMDD): write it as in 2024-11-22T00:00:00Z, or as seconds since "
        "1970. Such a message, redacted: {user_id: text xxxxx99, item_id: text xxxxxx, timestamp: number 99999999}"
    )
    assert figures == {"topic": "clicks", "share": 1.0, "messages": 20, "reasons": {"invalid-timestamp": 20}}


def test_one_of_two_is_no_alarm_nor_are_some_of_many():
    one, told = watch()
    feed(one, 1)
    feed(one, 1, A_DATE)
    for _ in range(2_000):
        feed(one, 9)
        feed(one, 1, A_DATE)
    assert told == []
    assert not one.began


def test_a_share_of_unreadable_messages_is_reported_and_so_is_its_end():
    one, told = watch()
    feed(one, 5_000)
    for _ in range(600):
        feed(one, 1)
        feed(one, 1, THEIRS)
    (began,) = told
    assert (
        "missing-user_id; is it userId? For a topic, set NEXTCLICK_CLICK_FIELDS=user_id=userId,item_id=itemId"
        in began[1]
    )
    assert "because of missing-user_id" in one.text
    feed(one, 2_000)
    kind, text, figures = told[-1]
    assert (kind, len(told)) == (OVER, 2)
    assert text == "messages on clicks can be read again; 600 became dead letters meanwhile"
    assert figures["dead_letters"] == 600
    assert not one.began
    feed(one, 100, THEIRS)
    assert [kind for kind, *_ in told] == [UNREADABLE, OVER]  # 100 of 1,000 are fewer than a fifth
    feed(one, 200, THEIRS)
    assert [kind for kind, *_ in told] == [UNREADABLE, OVER, UNREADABLE]


def test_a_short_burst_in_a_long_stream_is_measured_against_what_came_before():
    one, told = watch()
    feed(one, 10_000)
    feed(one, 100, A_DATE)
    assert told == []


def test_the_commonest_reason_is_the_one_that_is_shown():
    one, told = watch()
    for _ in range(40):
        feed(one, 1, THEIRS)
        feed(one, 2, b"{")
    assert "because of malformed-json" in one.text
    assert len(told) == 1


def test_a_share_of_0_never_tells():
    one, told = watch(share=0.0)
    feed(one, 500, A_DATE)
    assert told == []


@pytest.mark.parametrize("stop", [5, 50, 499, 500, 900, 1_999, 2_100, 3_000])
def test_a_restart_changes_nothing(stop):
    values = [None, A_DATE] * 150 + [None] * 1_700 + [THEIRS] * 300 + [None] * 2_000
    whole, told = watch()
    first, parts = watch()
    second, more = watch()
    for number, value in enumerate(values):
        feed(whole, 1, value)
        if number == stop:
            second.load_state(json.loads(json.dumps(first.to_state())))
        feed(first if number < stop else second, 1, value)
    assert parts + more == told
    assert len(told) == 4
    assert second.to_state() == whole.to_state()


def test_the_state_contains_no_user_id():
    one, _ = watch()
    feed(one, 100, A_DATE)
    feed(one, 100, THEIRS)
    held = json.dumps(one.to_state())
    assert not any(word in held for word in ("alice", "kettle", "1730600"))


def test_the_worker_tells_and_its_status_shows_it(harness, town_clicks):
    harness.publish(town_clicks[:20])
    for _ in range(200):
        harness.broker.append("clicks", THEIRS)
    loop = harness.run()
    kinds = [notice.kind for notice in loop.notices.latest]
    assert kinds.count("unreadable") == 1
    (problem,) = StatusReport(loop).describe("running")["problems"]
    assert problem["kind"] == "unreadable"
    assert "messages on clicks cannot be read" in problem["text"]
    assert "because of missing-user_id" in problem["text"]
    assert "alice" not in json.dumps([notice.as_dict() for notice in loop.notices.latest])
    again = harness.begin(harness.loop())
    states = [{topic: one.to_state() for topic, one in some.unreadable.items()} for some in (again, loop)]
    assert states[0] == states[1]
    harness.publish(town_clicks[20:] * 3)
    loop = harness.run()
    assert loop.notices.counts["unreadable_over"] == 1


def test_unreadable_items_are_reported_too(harness, town_clicks):
    harness.publish(town_clicks[:40])
    for number in range(60):
        harness.broker.append("items", b'{"available": "yes"}', key=f"i{number}".encode())
    loop = harness.run()
    (notice,) = [notice for notice in loop.notices.latest if notice.kind == "unreadable"]
    assert "messages on items cannot be read" in notice.text
    assert "invalid-available" in notice.text
    assert loop.progress.next_offsets[Partition("items", 0)] == 60


def test_a_running_worker_s_status_says_so(tmp_path, free_port):
    quick = {"status_interval_s": 0.0, "poll_timeout_s": 0.01, "embedded_redis_port": free_port}
    settings = Settings(**{"data_dir": tmp_path / "data", **SMALL, **quick})
    prepare_topics(settings)
    with closing(open_producer(settings)) as producer:
        for _ in range(200):
            producer.send(settings.clicks_topic, key=None, value=A_DATE)
    with worker_thread(settings) as lists:
        deadline = time.monotonic() + WORKER_WAIT_S
        while not ((status := lists.status()) and status["problems"]) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert status is not None
    assert "unreadable" in [problem["kind"] for problem in status["problems"]]
    assert status["unreadable_share_of"] == {"clicks": 1.0, "items": 0.0, "nextclick.feedback": 0.0}
    out = Console(width=400, file=StringIO())
    out.print(status_view(status))
    (line,) = [line for line in out.file.getvalue().splitlines() if line.startswith("problem: unreadable")]
    assert "it looks like a date (YYYYMMDD)" in line
    assert "{user_id: text xxxxx99, item_id: text xxxxxx, timestamp: number 99999999}" in line
    assert "alice" not in json.dumps(status)
