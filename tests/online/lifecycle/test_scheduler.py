"""Intervals go on as they were when the computer's clock is set; a timetable follows the clock."""

import threading
import time
from datetime import datetime, timedelta

import apscheduler.schedulers.base
import pytest
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from online.lifecycle import scheduler as scheduler_module
from online.lifecycle.scheduler import SteadyScheduler

WAIT_S = 30.0


class SetClock:
    """The computer's clock, which tests set, also for APScheduler."""

    def __init__(self, monkeypatch):
        self.ahead_s = ahead = [0.0]

        class Moved(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(seconds=ahead[0])

        monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Moved)

    def __call__(self):
        return time.time() + self.ahead_s[0]

    def set_by(self, seconds):
        self.ahead_s[0] += seconds


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(scheduler_module, "CHECK_S", 0.05)
    return SetClock(monkeypatch)


@pytest.mark.parametrize("set_by_s", [-3_600.0, -400 * 86_400.0, 3_600.0, 86_400.0])
def test_what_is_due_every_so_often_goes_on_when_the_clock_is_set(clock, set_by_s):
    ran, steady = threading.Semaphore(0), SteadyScheduler(timezone="UTC", wall=clock)
    options = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
    steady.add_job(ran.release, IntervalTrigger(seconds=0.3, timezone="UTC"), **options)
    rare = steady.add_job(lambda: None, IntervalTrigger(seconds=600, timezone="UTC"), **options)
    steady.start()
    try:
        assert ran.acquire(timeout=WAIT_S)
        left_s = rare.next_run_time.timestamp() - clock()
        clock.set_by(set_by_s)
        for _ in range(3):
            assert ran.acquire(timeout=WAIT_S), "it has stopped"
        assert rare.next_run_time.timestamp() - clock() == pytest.approx(left_s, abs=WAIT_S)
        assert rare.next_run_time.timestamp() - clock() <= 600
    finally:
        steady.shutdown(wait=False)


def test_a_timetable_that_waited_for_next_year_comes_when_the_clock_is_right_again(clock):
    clock.set_by(366 * 86_400.0)
    steady = SteadyScheduler(timezone="UTC", wall=clock)
    job = steady.add_job(lambda: None, CronTrigger(hour=3, minute=30, timezone="UTC"), misfire_grace_time=None)
    steady.start()
    try:
        job.modify(next_run_time=job.trigger.get_next_fire_time(None, datetime.fromtimestamp(clock(), steady.timezone)))
        assert job.next_run_time.timestamp() - time.time() > 300 * 86_400
        clock.set_by(-366 * 86_400.0)
        deadline = time.monotonic() + WAIT_S
        while job.next_run_time.timestamp() - time.time() > 2 * 86_400 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert job.next_run_time.timestamp() - time.time() <= 86_400
    finally:
        steady.shutdown(wait=False)
