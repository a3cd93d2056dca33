"""The stream's clock never goes back; lists fall due as they age, each once for all the ages it has passed."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.history import UserHistories
from online.learner.return_times import ReturnTimes, marks_passed
from online.learner.stream_time import STREAM_GAP_S_MAX, ActiveClock
from online.worker.refresh import RefreshSchedule, StreamClock

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
AGES = (10 * MINUTE, HOUR, 4 * HOUR)


class Computer:
    """A clock that tests set."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# --- what time it is ---------------------------------------------------------------------------------------------


def test_before_the_first_click_there_is_no_time():
    assert StreamClock(ActiveClock(), Computer()).now() == -np.inf


def test_after_a_click_time_passes_as_on_the_computer_however_old_the_click_is():
    computer, active = Computer(), ActiveClock()
    clock = StreamClock(active, computer)
    active.update(5.0)
    assert clock.now() == 5.0
    computer.now += 90.0
    assert clock.now() == 95.0
    active.update(60.0)  # came late, and changes nothing
    assert clock.now() == 95.0
    active.update(1_000.0)  # a replay at speed
    assert clock.now() == 1_000.0


def test_a_click_from_the_future_ages_no_list_by_more_than_a_gap_may_count():
    computer, active = Computer(), ActiveClock()
    clock = StreamClock(active, computer)
    active.update(1_000.0)
    assert clock.now() == 1_000.0
    active.update(1_000.0 + DAY)
    assert clock.now() == 1_000.0 + STREAM_GAP_S_MAX
    computer.now += 7.0
    active.update(1_007.0)
    assert clock.now() == 1_007.0 + STREAM_GAP_S_MAX


def test_a_silence_counts_for_an_hour_while_it_lasts_and_when_a_click_has_ended_it():
    computer, active = Computer(), ActiveClock()
    clock = StreamClock(active, computer)
    active.update(1_000.0)
    clock.now()
    computer.now += 180 * DAY
    assert clock.now() == 1_000.0 + STREAM_GAP_S_MAX
    active.update(1_000.0 + 180 * DAY)
    assert clock.now() == 1_000.0 + STREAM_GAP_S_MAX
    computer.now += 60.0
    assert clock.now() == 1_060.0 + STREAM_GAP_S_MAX


@given(st.lists(st.tuples(st.booleans(), st.floats(-1e6, 1e6)), max_size=30))
def test_it_never_goes_back_whatever_clicks_come_and_however_the_clock_is_set(steps):
    computer, active = Computer(0.0), ActiveClock()
    clock, told = StreamClock(active, computer), -np.inf
    for is_click, value in steps:
        if is_click:
            active.update(value)
        else:
            computer.now += value
        assert clock.now() >= told
        told = clock.now()


# --- whose list has aged -----------------------------------------------------------------------------------------


class RefreshHarness:
    """Histories, a busy stream's clock, and a schedule that is asked at every step."""

    def __init__(self, ages_s=AGES, users_held=100):
        self.histories = UserHistories(users_held, 4)
        self.computer = Computer()
        self.active = ActiveClock()
        self.clock = StreamClock(self.active, self.computer)
        self.active.update(self.computer.now)
        self.clock.now()
        self.schedule = RefreshSchedule(ReturnTimes(ages_s), self.clock)

    def click(self, user, ago_s=0.0):
        slots = self.histories.slots([user])
        self.histories.append(slots, [1], [0], [self.computer.now - ago_s])
        self.histories.active_at[slots] = self.computer.now - ago_s
        self.active.update(self.computer.now)
        self.clock.now()
        self.schedule.mark_refreshed([user])

    def after(self, seconds, count_max=100):
        """Others click all the while."""
        for _ in range(int(seconds // HOUR)):
            self.computer.now += HOUR
            self.active.update(self.computer.now)
        self.computer.now += seconds % HOUR
        self.schedule.ask()
        return self.schedule.take(self.histories, count_max)


@pytest.fixture
def harness():
    return RefreshHarness()


def test_marks_are_passed_once_an_age_is_above_them():
    assert marks_passed(AGES, [-np.inf, 0.0, 600.0, 600.1, HOUR + 1, 5 * HOUR]).tolist() == [0, 0, 0, 1, 2, 3]
    assert marks_passed((), [5 * HOUR]).tolist() == [0]


def test_each_age_is_passed_once_and_then_it_is_over(harness):
    harness.click("ada")
    assert harness.after(9 * MINUTE) == []
    assert harness.after(2 * MINUTE) == ["ada"]
    assert harness.after(2 * MINUTE) == []
    assert harness.after(HOUR) == ["ada"]
    assert harness.after(3 * HOUR) == ["ada"]
    assert harness.after(300 * DAY) == []


def test_a_click_begins_again(harness):
    harness.click("ada")
    assert harness.after(11 * MINUTE) == ["ada"]
    harness.click("ada")
    assert harness.after(9 * MINUTE) == []
    assert harness.after(2 * MINUTE) == ["ada"]


def test_several_ages_passed_between_two_looks_are_one_refresh(harness):
    harness.click("ada")
    assert harness.after(2 * HOUR) == ["ada"]
    assert harness.after(MINUTE) == []


def test_without_being_asked_no_list_is_due(harness):
    harness.click("ada")
    harness.computer.now += HOUR
    assert harness.schedule.take(harness.histories, 100) == []
    assert harness.after(0.0) == ["ada"]


def test_a_bounded_number_of_users_is_taken_at_a_time_and_each_user_once(harness):
    for number in range(7):
        harness.click(f"u{number}")
    first, second, third = harness.after(11 * MINUTE, 3), harness.after(1.0, 3), harness.after(1.0, 3)
    assert [len(first), len(second), len(third)] == [3, 3, 1]
    assert {*first, *second, *third} == {f"u{number}" for number in range(7)}
    assert harness.after(1.0, 3) == []


def test_who_ages_while_others_wait_comes_after_them(harness):
    harness.click("ada")
    harness.click("ben")
    assert harness.after(11 * MINUTE, 1) == ["ada"]
    harness.click("cleo")
    assert harness.after(11 * MINUTE, 1) == ["ben"]  # cleo's has aged meanwhile
    assert harness.after(1.0, 1) == ["cleo"]


def test_a_user_who_clicks_while_waiting_waits_no_longer(harness):
    harness.click("ada")
    harness.click("ben")
    assert harness.after(11 * MINUTE, 1) == ["ada"]
    harness.click("ben")
    assert harness.after(1.0) == []


def test_without_ages_nothing_ever_falls_due():
    harness = RefreshHarness(ages_s=())
    harness.click("ada")
    assert harness.after(300 * DAY) == []


def test_who_waits_is_bounded_by_who_has_a_history():
    harness = RefreshHarness(users_held=8)
    for round_ in range(5):
        for number in range(8):
            harness.click(f"u{round_}-{number}")
        assert len(harness.after(11 * MINUTE, 5)) == 5
        waiting = harness.schedule.to_state()["waiting"]
        assert set(waiting) < {f"u{round_}-{number}" for number in range(8)}  # the others have made room


def test_a_restart_changes_nothing(harness):
    for number in range(5):
        harness.click(f"u{number}")
    assert len(harness.after(11 * MINUTE, 2)) == 2
    before, harness.schedule = harness.schedule, RefreshSchedule(ReturnTimes(AGES), harness.clock)
    harness.schedule.load_state(json.loads(json.dumps(before.to_state())))
    assert harness.after(1.0) == ["u2", "u3", "u4"]
    assert len(harness.after(HOUR)) == 5


def test_a_schedule_that_begins_among_old_lists_leaves_them_until_their_next_age(harness):
    harness.click("dora", ago_s=30 * DAY)
    harness.click("cleo", ago_s=2 * HOUR)
    harness.click("ada")
    fresh = RefreshSchedule(ReturnTimes(AGES), harness.clock)
    fresh.load_state(RefreshSchedule(ReturnTimes(AGES), harness.clock).to_state())
    harness.schedule = fresh
    assert harness.after(0.0) == []
    assert harness.after(11 * MINUTE) == ["ada"]
    assert harness.after(2 * HOUR) == ["cleo", "ada"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 20_000)), max_size=40))
def test_it_takes_whom_a_list_of_all_marks_would_name(steps):
    """Against the slow reference: after each click, every age of its list written down, and crossed out when over."""
    harness, open_marks = RefreshHarness(), {}
    for user, is_click, seconds in steps:
        if is_click:
            harness.click(user)
            open_marks[user] = [harness.computer.now + age for age in AGES]
        taken = harness.after(seconds)
        passed = {u for u, marks in open_marks.items() if any(mark < harness.clock.now() for mark in marks)}
        assert set(taken) == passed
        open_marks = {u: [mark for mark in marks if mark >= harness.clock.now()] for u, marks in open_marks.items()}
