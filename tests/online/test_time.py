"""Time and order, as docs/events.md defines them: late clicks, clicks out of order, clocks that are years wrong."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from online.learner.stream_time import STREAM_GAP_S_MAX
from online.worker.status import StatusReport
from stream.dead_letters import dead_letter
from stream.events import Click, encode
from stream.source import Record
from tests.online.conftest import NOW, WorkerHarness

DAY_S = 86_400.0
YEARS_S = 10 * 365 * DAY_S


def click(user, item, at, **more):
    return Click(user_id=user, item_id=item, timestamp=at, **more)


def arrive(harness, clicks, *, at=NOW):
    """Clicks that the broker took at `at` seconds, by its own clock."""
    partition = harness.partition()
    for one in clicks:
        offset = len(harness.broker.records(partition))
        harness.broker.topics[partition].append(Record("clicks", 0, offset, int(1000 * at), None, encode(one)))


def stands(loop, user):
    """Rows of a user's clicks, latest first, as items, with their times."""
    newest = loop.learner.histories.newest_first(loop.learner.histories.find([user]), 12)
    items = [loop.learner.vocabulary.item_of(row) for row in newest.rows[0, : newest.lengths[0]].tolist()]
    return list(zip(items, newest.timestamps[0].tolist(), strict=False))


def healthy(harness, loop):
    """Nothing that time could break is broken."""
    assert loop.learner.weights.finite()
    for top in [*harness.lists.held.values(), harness.lists.popular_list]:
        assert np.isfinite(top.scores).all()
        assert top.scores == sorted(top.scores, reverse=True)
        assert all(0 <= score <= 1 for score in top.scores)


def test_clicks_count_in_order_of_arrival_whatever_their_timestamps(harness):
    """Late by hours, at equal times, out of order: all are learned, and the list follows the one that arrived last."""
    arrive(harness, [click("u", item, NOW - ago) for item, ago in (("a", 60), ("late", 7_200), ("b", 60), ("c", 60))])
    loop = harness.run()
    assert [item for item, _ in stands(loop, "u")] == ["c", "b", "late", "a"]
    assert loop.progress.learned == 4
    assert harness.lists.held["u"].clicked_at == int(1000 * (NOW - 60))
    healthy(harness, loop)


def test_a_duplicate_is_known_by_its_event_id_alone(harness):
    arrive(
        harness,
        [
            click("u", "a", NOW - 9, event_id="e1"),
            click("u", "a", NOW - 9),
            click("u", "a", NOW - 9),  # the same click twice, as far as it can be known
            click("v", "b", NOW - 5, event_id="e1"),  # whatever else it says
            click("u", "a", NOW - 9, event_id="e2"),
        ],
    )
    loop = harness.run()
    assert (loop.progress.learned, loop.progress.duplicates) == (4, 1)


@pytest.mark.parametrize("ago", [YEARS_S, NOW], ids=["ten years", "1970"])
def test_a_clock_that_is_years_late_is_accepted_and_affects_no_other_user(harness, ago):
    arrive(harness, [click(f"u{number}", f"i{number % 3}", NOW - 60 + number) for number in range(20)])
    arrive(harness, [click("lost", "i1", NOW - ago)] * 3)
    arrive(harness, [click("u1", "i1", NOW - 30)])
    loop = harness.run(refresh_ages_s=(600.0,))
    assert loop.progress.learned == 24
    assert loop.writer.stream_clock.now() == NOW - 30  # the latest of all
    assert [at for _, at in stands(loop, "lost")] == [NOW - ago] * 3
    assert len(loop.learner.vocabulary) == 3  # no item has expired
    assert loop.learner.clock.now == NOW - 30
    healthy(harness, loop)
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes == 0  # such a list has passed all its ages


def test_a_clock_that_is_ahead_by_less_than_a_day_counts_as_the_time_of_arrival(harness):
    """One phone must not freeze the time of all users until tomorrow."""
    arrive(harness, [click("u", "a", NOW - 60)], at=NOW - 60)
    arrive(harness, [click("ahead", "b", NOW - 50 + DAY_S / 2)], at=NOW - 50)
    arrive(harness, [click("u", "c", NOW - 40)], at=NOW - 40)
    loop = harness.run()
    assert stands(loop, "ahead") == [("b", pytest.approx(NOW - 50, abs=0.01))]
    assert loop.writer.stream_clock.now() == NOW - 40
    assert loop.learner.clock.now == NOW - 40
    assert loop.changes.rates.to_state()["latest"][-1] == NOW - 40
    assert loop.progress.learned == 3


def test_a_clock_that_is_ahead_by_more_than_a_day_is_a_dead_letter(harness):
    arrive(harness, [click("u", "a", NOW + DAY_S + 1), click("u", "b", NOW + YEARS_S)])
    loop = harness.run()
    assert (loop.progress.learned, loop.progress.dead_letters) == (0, {"future-timestamp": 2})


def test_what_was_too_far_ahead_stays_a_dead_letter_though_it_would_be_taken_later(harness):
    arrive(harness, [click("u", "a", NOW + DAY_S + 5), click("u", "b", NOW)])
    first = harness.begin(harness.loop())
    harness.crash(first.checkpoints, "save", call=1)
    with pytest.raises(harness.aborted):
        first.turn()
    second = harness.loop()
    second.clock = lambda: NOW + 60
    harness.drain(harness.begin(second))
    assert (second.progress.learned, second.progress.dead_letters) == (1, {"future-timestamp": 1})
    assert [dead_letter(one).offset for one in harness.dead()] == [0]


@pytest.mark.parametrize("broker_at", [0.0, NOW - YEARS_S])
def test_a_broker_whose_clock_is_wrong_does_not_change_when_clicks_were_made(harness, broker_at):
    arrive(harness, [click("u", "a", NOW - 60)], at=broker_at)
    assert stands(harness.run(), "u") == [("a", NOW - 60)]


odd_times = st.one_of(
    st.sampled_from([0.0, 1e-9, NOW, NOW - YEARS_S, NOW + DAY_S - 1, NOW - DAY_S]),
    st.floats(0, NOW + DAY_S - 1),
    st.floats(NOW - 60, NOW),
)


@given(clicks=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("ijklm"), odd_times), min_size=1, max_size=60))
@hypothesis_settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_the_timestamps_each_click_is_learned_and_nothing_is_broken(tmp_path_factory, clicks):
    harness = WorkerHarness(tmp_path_factory.mktemp("time"))
    arrive(harness, [click(*one) for one in clicks])
    loop = harness.run(item_idle_s_max=30 * DAY_S, refresh_ages_s=(600.0,))
    assert loop.progress.learned == len(clicks)
    assert loop.progress.dead_letters == {}
    healthy(harness, loop)
    loop.writer.aging.ask()
    loop.turn()
    healthy(harness, loop)


# --- outages are about arrivals ----------------------------------------------------------------------------------


class Steady:
    """Seconds that only tests set, and a worker that reads what arrives at once."""

    def __init__(self, harness, *, now=0.0, **settings):
        self.harness, self.now = harness, now
        self.wall_ahead_s = 0.0
        self.loop = harness.loop(outage_clicks=20, checkpoint_interval_s=1e9, monotonic=lambda: self.now, **settings)
        if harness.partition() not in harness.broker.topics:
            arrive(harness, [click("u0", "i0", NOW)])
        harness.begin(self.loop)

    def live(self, count, every_s):
        """Clicks that arrive as they are made, one after the other."""
        for number in range(count):
            self.now += every_s
            at = NOW + self.now + self.wall_ahead_s
            arrive(self.harness, [click(f"u{number % 5}", f"i{number % 70}", at)], at=at)
            self.loop.clock = self.loop.intake.clock = lambda at=at: at
            self.loop.turn()

    def idle(self, seconds, every_s=1.0):
        for _ in range(int(seconds / every_s)):
            self.now += every_s
            self.loop.turn()

    def told(self):
        return [notice.kind for notice in self.loop.notices.latest if notice.kind.startswith("outage")]


def test_a_burst_that_covers_months_is_no_outage_and_neither_is_its_end(harness):
    steady = Steady(harness)
    old = NOW - 200 * DAY_S
    gaps = np.random.default_rng(0).exponential(1.0, 2_000) ** 8  # clicks in bursts, and weeks without any
    for number, at in enumerate(np.cumsum(gaps * 100 * DAY_S / gaps.sum())):
        arrive(harness, [click(f"u{number % 5}", f"i{number % 7}", old + at)], at=NOW + number / 3_900)
    while steady.loop.turn():
        steady.now += 0.01
    steady.idle(3_600, every_s=60.0)
    steady.live(60, every_s=30.0)
    assert steady.told() == []


def test_clicks_that_waited_for_a_stopped_worker_are_no_outage(harness):
    """They arrived slowly once, or with a gap: that is over when they are read, and reading them is catching up."""
    steady = Steady(harness)
    steady.live(200, every_s=1.0)
    for number in range(100):
        at = NOW + 200.0 + 60.0 * number
        arrive(harness, [click(f"u{number % 5}", "i1", at)], at=at)
    steady.loop.clock = steady.loop.intake.clock = lambda: NOW + 6_300.0
    while steady.loop.turn():
        steady.now += 0.01
    assert steady.told() == []


def test_clicks_that_stop_arriving_are_one_outage_and_it_closes_when_they_come_again(harness):
    steady = Steady(harness)
    steady.live(200, every_s=1.0)
    steady.idle(600)
    assert steady.told() == ["outage"]
    (text,) = [notice.text for notice in steady.loop.notices.latest if notice.kind == "outage"]
    assert re.search(r"clicks are missing: \d+ a minute, about (1 a second|\d\d a minute) expected", text)
    steady.live(60, every_s=1.0)
    steady.idle(30)
    assert steady.told() == ["outage", "outage_over"]
    assert not steady.loop.supervisor.outage


def test_clicks_that_arrive_slowly_are_one_outage_which_closes(harness):
    steady = Steady(harness)
    steady.live(200, every_s=1.0)
    steady.live(60, every_s=20.0)
    assert steady.told() == ["outage"]
    steady.live(60, every_s=1.0)
    assert steady.told() == ["outage", "outage_over"]


def test_an_outage_that_a_restart_falls_into_closes_afterwards(harness):
    steady = Steady(harness)
    steady.live(200, every_s=1.0)
    steady.live(30, every_s=20.0)
    steady.loop.finish()
    again = Steady(harness, now=steady.now)
    assert again.loop.supervisor.outage
    again.live(60, every_s=1.0)
    assert again.told() == ["outage", "outage_over"]


@pytest.mark.parametrize("set_by_s", [3_600.0, DAY_S, -3_600.0])
def test_a_clock_that_is_set_is_no_outage_and_ages_nothing(harness, set_by_s):
    """The broker's and the worker's, as on one computer."""
    steady = Steady(harness, item_idle_s_max=DAY_S / 4, refresh_ages_s=(7_200.0,))
    steady.live(200, every_s=1.0)
    items, before = len(steady.loop.learner.vocabulary), steady.loop.learner.clock.now
    steady.wall_ahead_s = set_by_s
    steady.live(60, every_s=1.0)
    steady.idle(30)
    assert steady.told() == []
    assert len(steady.loop.learner.vocabulary) == items
    assert steady.loop.learner.clock.now - before <= STREAM_GAP_S_MAX + 60.0
    steady.loop.writer.aging.ask()
    steady.loop.turn()
    assert steady.loop.progress.refreshes == 0


def test_without_a_broker_no_outage_of_clicks_is_reported(harness):
    steady = Steady(harness)
    steady.live(200, every_s=1.0)
    steady.loop.source.trouble = lambda: "no broker answers"
    steady.idle(600)
    steady.loop.source.trouble = lambda: None
    steady.idle(5)
    assert steady.told() == []


def test_a_producers_clock_that_is_ahead_gives_no_latency_and_is_counted(harness):
    arrive(harness, [click("u", "a", NOW - 60), click("v", "b", NOW - 50)], at=NOW + 593.246)
    arrive(harness, [click("w", "c", NOW - 40)], at=NOW - 0.5)
    loop = harness.run()
    assert loop.writer.latencies.quantiles() == {
        "p50": pytest.approx(500.0, abs=1.0),
        "p99": pytest.approx(500.0, abs=1.0),
    }
    status = StatusReport(loop).describe("running")
    assert status["click_to_list_unknown"] == 2
    assert min(value for value in status["click_to_list_ms"].values()) >= 0
