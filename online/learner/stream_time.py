"""Active time: the stream's own clock, by which whatever ages by silence elsewhere does not age here.

An archive that ended half a year ago, followed by one click of today, must not make everything half a year old: silence
is not age. So a gap between two clicks of the stream counts for at most `STREAM_GAP_S_MAX`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of the time between two clicks of the stream, what counts at most, in seconds.
STREAM_GAP_S_MAX = 3_600.0


class ActiveClock:
    """Event times -> active time: the latest event time so far, less all silence that did not count.

    So it runs with the stream, is the latest event time itself as long as no gap is longer than `STREAM_GAP_S_MAX`, and
    never goes back: a click that comes late does not move it, and one that is far ahead moves it by that much at most.
    """

    def __init__(self) -> None:
        self.latest = -np.inf  # event time, seconds since 1970
        self.skipped_s = 0.0  # silence that did not count

    @property
    def now(self) -> float:
        """Active time in seconds; -inf before the first click."""
        return self.latest - self.skipped_s

    def update(self, event_time: float) -> float:
        """A click was made then (seconds since 1970) -> the active time."""
        if event_time > self.latest:
            if self.latest > -np.inf:
                self.skipped_s += max(0.0, event_time - self.latest - STREAM_GAP_S_MAX)
            self.latest = float(event_time)
        return self.now

    def update_all(self, event_times: Iterable[float]) -> NDArray[np.float64]:
        """The active time (N,) at each of some clicks, in order."""
        return np.array([self.update(one) for one in event_times], np.float64)

    def after(self, event_times: Iterable[float]) -> float:
        """What the active time would be after clicks made then."""
        copy = ActiveClock()
        copy.latest, copy.skipped_s = self.latest, self.skipped_s
        copy.update_all(event_times)
        return copy.now

    def to_state(self) -> dict[str, Any]:
        return {"latest": None if self.latest == -np.inf else self.latest, "skipped_s": self.skipped_s}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self.latest = -np.inf if state["latest"] is None else state["latest"]
        self.skipped_s = state["skipped_s"]
