"""Silence is not age: archives, gaps of weeks, and clicks that are far ahead make nothing old."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.learner import Learner
from online.learner.stream_time import STREAM_GAP_S_MAX, ActiveClock
from stream.events import Click
from tests.online.conftest import NOW

DAY_S = 86_400.0
HALF_A_YEAR_S = 180 * DAY_S


def click(user, item, at):
    return Click(user_id=user, item_id=item, timestamp=at)


def archive(end, count=600, every_s=120.0, users=30, items=40):
    """Clicks that end at `end`; the popular items are those with low numbers."""
    random = np.random.default_rng(0)
    drawn = (random.random(count) ** 2 * items).astype(int)
    start = end - (count - 1) * every_s
    return [click(f"u{number % users}", f"i{item}", start + every_s * number) for number, item in enumerate(drawn)]


def learned(learner, clicks, size=16):
    for start in range(0, len(clicks), size):
        learner.learn(clicks[start : start + size])
    return learner


# --- the clock ---------------------------------------------------------------------------------------------------


def test_without_gaps_it_is_the_event_time():
    assert ActiveClock().update_all([5.0, 10.0, 3_600.0, 3_600.0]).tolist() == [5.0, 10.0, 3_600.0, 3_600.0]


def test_a_gap_counts_for_an_hour_and_late_clicks_move_nothing():
    clock = ActiveClock()
    times = [1_000.0, 1_000.0 + HALF_A_YEAR_S, 500.0, 1_060.0 + HALF_A_YEAR_S]
    assert clock.update_all(times).tolist() == [1_000.0, 4_600.0, 4_600.0, 4_660.0]


@given(st.lists(st.floats(0, 4e9), max_size=50), st.integers(0, 50))
def test_it_never_goes_back_and_a_click_moves_it_by_at_most_an_hour(times, cut):
    clock, again = ActiveClock(), ActiveClock()
    whole = clock.update_all(times)
    again.update_all(times[:cut])
    restored = ActiveClock()
    restored.load_state(json.loads(json.dumps(again.to_state())))
    assert restored.update_all(times[cut:]).tolist() == whole[cut:].tolist()
    steps = np.diff(whole)
    assert (steps >= 0).all()
    assert (steps <= STREAM_GAP_S_MAX * (1 + 1e-6) + 1e-5).all()


# --- the learner -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weeks", [26, 156])
def test_after_an_archive_one_click_of_today_does_what_it_would_do_an_hour_later(small, weeks):
    """At the same hour of the same weekday, so that nothing but silence tells them apart."""
    end = NOW - weeks * 7 * DAY_S - 3_600.0
    soon, late = (learned(Learner(small()), archive(end)) for _ in range(2))
    items = len(late.vocabulary)
    one = soon.learn([click("new", "of today", end + 3_600.0)]).rankings
    other = late.learn([click("new", "of today", NOW)]).rankings
    assert len(late.vocabulary) == items + 1
    assert late.expired == 0
    assert other["new"].items == one["new"].items
    assert len(late.popular().items) == late.settings.list_size
    assert late.popular().items == soon.popular().items
    users = [f"u{number}" for number in range(30)]
    assert [ranking.items for ranking in late.rank(users)] == [ranking.items for ranking in soon.rank(users)]
    again = Learner(small())
    arrays, state = late.to_state()
    again.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    assert again.popular() == late.popular()
    assert again.rank(users) == late.rank(users)


def test_an_archive_and_then_live_clicks_for_a_while_leave_the_archives_items(small):
    learner = learned(Learner(small()), archive(NOW - HALF_A_YEAR_S))
    items = len(learner.vocabulary)
    learned(learner, [click(f"live{number % 5}", f"i{number % 7}", NOW + 30.0 * number) for number in range(120)])
    assert len(learner.vocabulary) == items
    assert learner.expired == 0


def test_weeks_of_gaps_age_no_item_and_items_without_clicks_go(small):
    learner = Learner(small(item_idle_s_max=2 * DAY_S))
    learner.learn([click("a", "old", NOW)])
    for week in range(1, 20):
        learner.learn([click("a", f"i{week % 3}", NOW + 7 * week * DAY_S)])
    assert learner.vocabulary.row_of("old")
    begins = NOW + 140 * DAY_S
    expired = [learner.learn([click("a", "i1", begins + 1_800.0 * half)]).expired for half in range(2 * 24 * 3)]
    assert not learner.vocabulary.row_of("old")
    assert sum(expired) == learner.expired == 3  # and i0 and i2


def test_a_click_a_day_ahead_ages_no_list_by_more_than_an_hour(small):
    learner = learned(Learner(small(item_idle_s_max=DAY_S / 2)), archive(NOW, count=200, every_s=60.0))
    before = learner.clock.now
    learner.learn([click("ahead", "i1", NOW + DAY_S)])
    assert learner.clock.now == before + STREAM_GAP_S_MAX
    assert learner.expired == 0


def test_features_of_items_do_not_age_by_a_silence(small):
    """What says how long ago an item was clicked: an hour more at most, not half a year."""
    learner = learned(Learner(small()), archive(NOW - HALF_A_YEAR_S))
    asked = []
    advance = learner.store.advance
    learner.store.advance = lambda *given, **others: (asked.append(given[2]), advance(*given, **others))[1]
    learner.learn([click("new", "of today", NOW)])
    last_at = float(learner.store.items.last_at.max())
    assert learner.clock.now - last_at < 1.0
    assert float(asked[0].active[0]) == learner.clock.now
    assert float(asked[0].now[0]) == NOW  # the hour of the day is the true one


# --- the worker --------------------------------------------------------------------------------------------------


def test_lists_of_an_archive_stay_after_a_click_of_today_and_a_restart(harness):
    harness.publish(archive(NOW - HALF_A_YEAR_S))
    loop = harness.run()
    before, items = dict(harness.lists.held), len(loop.learner.vocabulary)
    harness.publish([click("new", "of today", NOW - 1.0)])
    for _ in range(2):  # the second begins with a checkpoint
        loop = harness.begin(harness.loop(refresh_ages_s=(600.0,)))
        harness.drain(loop)
        loop.writer.aging.ask()
        loop.turn()
        assert loop.progress.learned == 601
        assert len(loop.learner.vocabulary) == items + 1
        assert harness.lists.held.keys() == {*before, "new"}
        assert all(
            len(top.items) == len(before[user].items) for user, top in harness.lists.held.items() if user != "new"
        )
        assert len(harness.lists.popular_list.items) == loop.settings.list_size
        assert len(harness.lists.held["new"].items) == loop.settings.list_size
        assert [notice.kind for notice in loop.notices.latest] == []


def test_many_items_that_are_removed_at_once_are_reported(harness):
    hours = [click(f"u{hour % 5}", "steady", NOW - 100_000.0 + 3_000.0 * hour) for hour in range(33)]
    harness.publish([*archive(NOW - 101_000.0), *hours])
    loop = harness.run(item_idle_s_max=50_000.0)
    told = [notice for notice in loop.notices.latest if notice.kind == "items_expired"]
    assert told
    assert "NEXTCLICK_ITEM_IDLE_S_MAX" in told[0].text
    assert sum(notice.figures["items"] for notice in told) <= loop.learner.expired
