"""APScheduler with intervals that a clock which is set does not stretch or cut.

APScheduler goes by the wall clock: set back by an hour, what is due every five minutes would rest for an hour and five
minutes. A timetable ("at half past three") has to follow that clock; an interval must not.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

CHECK_S = 1.0  # between two looks at the clocks
JUMP_S = 1.0  # that the wall clock has to gain or lose against the monotonic one

log = logging.getLogger(__name__)


class SteadyScheduler(BackgroundScheduler):  # type: ignore[misc]  # it is not typed
    """Jobs with an `IntervalTrigger` run by the monotonic clock, all others by the wall clock, however that is set."""

    def __init__(
        self,
        *args: Any,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        """`wall`: seconds since 1970; `monotonic`: seconds of a monotonic clock."""
        self._wall, self._monotonic = wall, monotonic
        self._apart = wall() - monotonic()
        super().__init__(*args, **options)

    def _process_jobs(self) -> float:
        """What the scheduler's thread does whenever it wakes up -> seconds until it should again."""
        jump_s = self._wall() - self._monotonic() - self._apart
        if abs(jump_s) >= JUMP_S:
            self._apart += jump_s
            self._follow(jump_s)
        wait_s = super()._process_jobs()
        return CHECK_S if wait_s is None else min(wait_s, CHECK_S)

    def _follow(self, jump_s: float) -> None:
        """The wall clock was set by so much."""
        log.info("the computer's clock was set by %+.0f s; intervals are not affected", jump_s)
        for job in self.get_jobs():
            if job.next_run_time is None:
                continue
            if isinstance(job.trigger, IntervalTrigger):
                job.modify(next_run_time=job.next_run_time + timedelta(seconds=jump_s))
            elif jump_s < 0:  # what was next by a clock that was ahead may be a year away
                now = datetime.fromtimestamp(self._wall(), self.timezone)
                job.modify(next_run_time=job.trigger.get_next_fire_time(None, now))
