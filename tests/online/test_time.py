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
from tests.online.conftest import NOW, World

DAY_S = 86_400.0
YEARS_S = 10 * 365 * DAY_S


def click(user, item, at, **more):
    return Click(user_id=user, item_id=item, timestamp=at, **more)


def arrive(world, clicks, *, at=NOW):
    """Clicks that the broker took at `at` seconds, by its own clock."""
    partition = world.partition()
    for one in clicks:
        offset = len(world.broker.records(partition))
        world.broker.topics[partition].append(Record("clicks", 0, offset, int(1000 * at), None, encode(one)))


def stands(loop, user):
    """Rows of a person's clicks, latest first, as items, with their times."""
    newest = loop.learner.histories.newest_first(loop.learner.histories.find([user]), 12)
    items = [loop.learner.vocabulary.item_of(row) for row in newest.rows[0, : newest.lengths[0]].tolist()]
    return list(zip(items, newest.timestamps[0].tolist(), strict=False))


def healthy(world, loop):
    """Nothing that time could break is broken."""
    assert loop.learner.weights.finite()
    for top in [*world.lists.held.values(), world.lists.popular_list]:
        assert np.isfinite(top.scores).all()
        assert top.scores == sorted(top.scores, reverse=True)
        assert all(0 <= score <= 1 for score in top.scores)


def test_clicks_count_in_the_order_in_which_they_arrive_whatever_their_timestamps_say(world):
    """Late by hours, at equal times, out of order: all are learned, and the list follows the one that arrived last."""
    arrive(world, [click("u", item, NOW - ago) for item, ago in (("a", 60), ("late", 7_200), ("b", 60), ("c", 60))])
    loop = world.run()
    assert [item for item, _ in stands(loop, "u")] == ["c", "b", "late", "a"]
    assert loop.progress.learned == 4
    assert world.lists.held["u"].clicked_at == int(1000 * (NOW - 60))
    healthy(world, loop)


def test_a_duplicate_is_known_by_its_event_id_alone(world):
    arrive(
        world,
        [
            click("u", "a", NOW - 9, event_id="e1"),
            click("u", "a", NOW - 9),
            click("u", "a", NOW - 9),  # the same click twice, for all that anybody knows
            click("v", "b", NOW - 5, event_id="e1"),  # whatever else it says
            click("u", "a", NOW - 9, event_id="e2"),
        ],
    )
    loop = world.run()
    assert (loop.progress.learned, loop.progress.duplicates) == (4, 1)


@pytest.mark.parametrize("ago", [YEARS_S, NOW], ids=["ten years", "1970"])
def test_a_clock_that_is_years_late_is_taken_and_is_nobody_else_s(world, ago):
    arrive(world, [click(f"u{number}", f"i{number % 3}", NOW - 60 + number) for number in range(20)])
    arrive(world, [click("lost", "i1", NOW - ago)] * 3)
    arrive(world, [click("u1", "i1", NOW - 30)])
    loop = world.run(refresh_ages_s=(600.0,))
    assert loop.progress.learned == 24
    assert loop.writer.stream_clock.now() == NOW - 30  # the latest of all
    assert [at for _, at in stands(loop, "lost")] == [NOW - ago] * 3
    assert len(loop.learner.vocabulary) == 3  # no item has expired
    assert loop.learner.clock.now == NOW - 30
    healthy(world, loop)
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes == 0  # such a list has passed all its ages


def test_a_clock_that_is_ahead_by_less_than_a_day_counts_as_the_time_of_arrival(world):
    """One phone must not freeze everybody's time until tomorrow."""
    arrive(world, [click("u", "a", NOW - 60)], at=NOW - 60)
    arrive(world, [click("ahead", "b", NOW - 50 + DAY_S / 2)], at=NOW - 50)
    arrive(world, [click("u", "c", NOW - 40)], at=NOW - 40)
    loop = world.run()
    assert stands(loop, "ahead") == [("b", pytest.approx(NOW - 50, abs=0.01))]
    assert loop.writer.stream_clock.now() == NOW - 40
    assert loop.learner.clock.now == NOW - 40
    assert loop.changes.rates._latest[-1] == NOW - 40
    assert loop.progress.learned == 3


def test_a_clock_that_is_ahead_by_more_than_a_day_is_a_dead_letter(world):
    arrive(world, [click("u", "a", NOW + DAY_S + 1), click("u", "b", NOW + YEARS_S)])
    loop = world.run()
    assert (loop.progress.learned, loop.progress.dead_letters) == (0, {"future-timestamp": 2})


def test_what_was_too_far_ahead_stays_a_dead_letter_though_it_would_be_taken_later(world):
    arrive(world, [click("u", "a", NOW + DAY_S + 5), click("u", "b", NOW)])
    first = world.begin(world.loop())
    world.crash(first.checkpoints, "save", call=1)
    with pytest.raises(world.aborted):
        first.turn()
    second = world.loop()
    second.clock = lambda: NOW + 60
    world.drain(world.begin(second))
    assert (second.progress.learned, second.progress.dead_letters) == (1, {"future-timestamp": 1})
    assert [dead_letter(one).offset for one in world.dead()] == [0]


@pytest.mark.parametrize("broker_at", [0.0, NOW - YEARS_S])
def test_a_broker_whose_clock_is_wrong_does_not_change_when_clicks_were_made(world, broker_at):
    arrive(world, [click("u", "a", NOW - 60)], at=broker_at)
    assert stands(world.run(), "u") == [("a", NOW - 60)]


odd_times = st.one_of(
    st.sampled_from([0.0, 1e-9, NOW, NOW - YEARS_S, NOW + DAY_S - 1, NOW - DAY_S]),
    st.floats(0, NOW + DAY_S - 1),
    st.floats(NOW - 60, NOW),
)


@given(clicks=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("ijklm"), odd_times), min_size=1, max_size=60))
@hypothesis_settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_the_timestamps_each_click_is_learned_and_nothing_is_broken(tmp_path_factory, clicks):
    world = World(tmp_path_factory.mktemp("time"))
    arrive(world, [click(*one) for one in clicks])
    loop = world.run(item_idle_s_max=30 * DAY_S, refresh_ages_s=(600.0,))
    assert loop.progress.learned == len(clicks)
    assert loop.progress.dead_letters == {}
    healthy(world, loop)
    loop.writer.aging.ask()
    loop.turn()
    healthy(world, loop)


# --- outages are about arrivals ----------------------------------------------------------------------------------


class Steady:
    """Seconds that nobody sets, but tests; and a worker that reads what arrives at once."""

    def __init__(self, world, **settings):
        self.world, self.now = world, 0.0
        self.wall_ahead_s = 0.0
        self.loop = world.loop(outage_clicks=20, checkpoint_interval_s=1e9, **settings)
        self.loop.monotonic = self.loop.supervisor._monotonic = lambda: self.now
        self.loop.supervisor._read_at.clear()
        self.loop.supervisor._read_at.append(0.0)
        self.loop._active_at = 0.0
        if world.partition() not in world.broker.topics:
            arrive(world, [click("u0", "i0", NOW)])
        world.begin(self.loop)

    def live(self, count, every_s):
        """Clicks that arrive as they are made, one after the other."""
        for number in range(count):
            self.now += every_s
            at = NOW + self.now + self.wall_ahead_s
            arrive(self.world, [click(f"u{number % 5}", f"i{number % 70}", at)], at=at)
            self.loop.clock = self.loop.intake.clock = lambda at=at: at
            self.loop.turn()

    def idle(self, seconds, every_s=1.0):
        for _ in range(int(seconds / every_s)):
            self.now += every_s
            self.loop.turn()

    def told(self):
        return [notice.kind for notice in self.loop.notices.latest if notice.kind.startswith("outage")]


def test_a_burst_that_covers_months_is_no_outage_and_neither_is_its_end(world):
    steady = Steady(world)
    old = NOW - 200 * DAY_S
    gaps = np.random.default_rng(0).exponential(1.0, 2_000) ** 8  # clicks in bursts, and weeks without any
    for number, at in enumerate(np.cumsum(gaps * 100 * DAY_S / gaps.sum())):
        arrive(world, [click(f"u{number % 5}", f"i{number % 7}", old + at)], at=NOW + number / 3_900)
    while steady.loop.turn():
        steady.now += 0.01
    steady.idle(3_600, every_s=60.0)
    steady.live(60, every_s=30.0)
    assert steady.told() == []


def test_clicks_that_waited_while_the_worker_was_away_are_no_outage(world):
    """They arrived slowly once, or with a gap: that is over when they are read, and reading them is catching up."""
    steady = Steady(world)
    steady.live(200, every_s=1.0)
    for number in range(100):
        at = NOW + 200.0 + 60.0 * number
        arrive(world, [click(f"u{number % 5}", "i1", at)], at=at)
    steady.loop.clock = steady.loop.intake.clock = lambda: NOW + 6_300.0
    while steady.loop.turn():
        steady.now += 0.01
    assert steady.told() == []


def test_clicks_that_stop_arriving_are_one_outage_and_it_closes_when_they_come_again(world):
    steady = Steady(world)
    steady.live(200, every_s=1.0)
    steady.idle(600)
    assert steady.told() == ["outage"]
    (text,) = [notice.text for notice in steady.loop.notices.latest if notice.kind == "outage"]
    assert re.search(r"clicks are missing: \d+ a minute, about (1 a second|\d\d a minute) expected", text)
    steady.live(60, every_s=1.0)
    steady.idle(30)
    assert steady.told() == ["outage", "outage_over"]
    assert not steady.loop.supervisor.outage


def test_clicks_that_arrive_slowly_are_one_outage_which_closes(world):
    steady = Steady(world)
    steady.live(200, every_s=1.0)
    steady.live(60, every_s=20.0)
    assert steady.told() == ["outage"]
    steady.live(60, every_s=1.0)
    assert steady.told() == ["outage", "outage_over"]


def test_an_outage_that_a_restart_falls_into_closes_afterwards(world):
    steady = Steady(world)
    steady.live(200, every_s=1.0)
    steady.live(30, every_s=20.0)
    steady.loop.finish()
    again = Steady(world)
    again.now = steady.now
    again.loop.supervisor._read_at.append(again.now)
    assert again.loop.supervisor.outage
    again.live(60, every_s=1.0)
    assert again.told() == ["outage", "outage_over"]


@pytest.mark.parametrize("set_by_s", [3_600.0, DAY_S, -3_600.0])
def test_a_clock_that_is_set_is_no_outage_and_ages_nothing(world, set_by_s):
    """The broker's and the worker's, as on one computer."""
    steady = Steady(world, item_idle_s_max=DAY_S / 4, refresh_ages_s=(7_200.0,))
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


def test_while_the_broker_is_away_nobody_knows_whether_clicks_are_missing(world):
    steady = Steady(world)
    steady.live(200, every_s=1.0)
    steady.loop.source.trouble = lambda: "no broker answers"
    steady.idle(600)
    steady.loop.source.trouble = lambda: None
    steady.idle(5)
    assert steady.told() == []


def test_a_producers_clock_that_is_ahead_gives_no_latency_and_is_counted(world):
    arrive(world, [click("u", "a", NOW - 60), click("v", "b", NOW - 50)], at=NOW + 593.246)
    arrive(world, [click("w", "c", NOW - 40)], at=NOW - 0.5)
    loop = world.run()
    assert loop.writer.latencies.quantiles() == {
        "p50": pytest.approx(500.0, abs=1.0),
        "p99": pytest.approx(500.0, abs=1.0),
    }
    status = StatusReport(loop).describe("running")
    assert status["click_to_list_unknown"] == 2
    assert min(value for value in status["click_to_list_ms"].values()) >= 0
