"""Tells a stream that runs dry from a world that changes: how fast clicks arrive, against how fast they used to.

It goes by arrivals: when messages reached the broker. Event times say nothing of it, since an archive of a year may
arrive in a second. So only clicks that arrive within `LIVE_S` of being made count at all. While messages wait to be
read, nothing is missing: the broker knows when each arrived, and silence is reported only of a stream that is read
to its end.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from online.learner.stream_time import STREAM_GAP_S_MAX

OUTAGE, OVER = "outage", "outage_over"
LIVE_S = 3_600.0  # a click that arrives later than so long after it was made is of an archive
LEARNED_EACH = 0.05  # what the latest spell counts in the expected rate; during an outage a tenth of it
SPELLS_MIN, SPELLS_S_MIN = 5, 60.0  # spells that have to be known, and their seconds, before anything is expected
BACK = 2.0  # an outage is over when the rate is so many times the one that it begins at
_SPELL_S_MIN = 1e-3

_UNITS = (("a second", 1.0), ("a minute", 60.0), ("an hour", 3_600.0), ("a day", 86_400.0))


def rate_text(hz: float) -> str:
    """Clicks a second in words, to two digits: "3,900 a second", "12 a minute", "none"."""
    if hz <= 0:
        return "none"
    for unit, seconds in _UNITS:
        number = float(f"{hz * seconds:.2g}")
        if number >= 1:
            return f"{number:,.0f} {unit}" if number >= 10 else f"{number:g} {unit}"
    return "less than 1 a day"


def is_live(event_time: float, arrived_at: float) -> bool:
    """Whether a click arrived about when it was made, both in seconds since 1970."""
    return abs(arrived_at - event_time) <= LIVE_S


@dataclass(frozen=True)
class RateNotice:
    """Clicks come much more slowly than expected, or do so no longer."""

    kind: str  # OUTAGE or OVER
    at: int  # clicks counted so far
    at_s: float  # seconds since 1970, by arrivals
    expected_hz: float
    rate_hz: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        what = "clicks come as they used to again" if self.kind == OVER else "clicks are missing"
        rate, expected = rate_text(self.rate_hz), rate_text(self.expected_hz)
        return f"{what}: {rate}, about {expected} expected (after {self.at:,} clicks)"


class RateWatch:
    """An outage is noticed when the latest `clicks_each` clicks took more than 1 / `share` of the time expected, be it
    that they came slowly or that none comes any more.

    What is expected is the geometric mean, exponentially weighted, over spells of `clicks_each` clicks, each by the
    active time it took, up to a limit: so neither a gap of a week nor a burst of a second spoils it. Arrivals never run
    backwards: a click that arrived before the one before it counts as one now.
    """

    def __init__(self, share: float, clicks_each: int) -> None:
        self.share, self.clicks_each = share, clicks_each
        self.counted = 0
        self.outages = 0
        self.falling = False  # by the clicks that came
        self.silent = False  # by the clock, which nothing that is saved may follow
        self.last_outage: dict[str, Any] | None = None
        self._latest: deque[float] = deque(maxlen=clicks_each + 1)  # seconds
        self._log_spell = 0.0  # log of the seconds that a spell is expected to take
        self._spells = 0
        self._spells_s = 0.0  # that they took

    @property
    def expected_hz(self) -> float | None:
        """Clicks a second; None while too little is known."""
        if self._spells < SPELLS_MIN or self._spells_s < SPELLS_S_MIN:
            return None
        return self.clicks_each / math.exp(self._log_spell)

    @property
    def missing(self) -> bool:
        """Whether clicks are missing now."""
        return self.falling or self.silent

    def update(self, times: Iterable[float]) -> list[RateNotice]:
        """Takes when some live clicks arrived, in order, in seconds since 1970."""
        found: list[RateNotice] = []
        for time_s in times:
            self._latest.append(max(float(time_s), self._latest[-1] if self._latest else 0.0))
            self.counted += 1
            found += self._check()
            if self.counted % self.clicks_each == 0 and len(self._latest) > self.clicks_each:
                self._learn()
        return found

    def silence(self, idle_s: float) -> RateNotice | None:
        """To be asked while nothing waits and nothing comes; `idle_s`: seconds for which nothing has come, of the time
        in which the worker listened. A silence is reported once. The latest clicks count as if they had come no more
        slowly than expected: that they once did, while the worker was down, is no silence of now."""
        if self.silent or not self._latest or idle_s <= 0 or self.expected_hz is None:
            return None
        took_s = min(self._latest[-1] - self._latest[0], (len(self._latest) - 1) / self.expected_hz)
        notice = self._notice(took_s + idle_s, self._latest[-1] + idle_s)
        self.silent = notice.rate_hz < self.share * notice.expected_hz
        return notice if self.silent else None

    def _check(self) -> list[RateNotice]:
        was_falling, reported = self.falling, self.missing
        notice = self._notice(self._latest[-1] - self._latest[0], self._latest[-1])
        self.falling = notice.rate_hz < self.share * notice.expected_hz * (BACK if was_falling else 1.0)
        self.silent = False
        if self.falling and not was_falling:
            self.outages += 1
            self.last_outage = notice.as_dict()
        if self.falling == reported:
            return []
        return [notice if self.falling else replace(notice, kind=OVER)]

    def _notice(self, took_s: float, now: float) -> RateNotice:
        """How things stand, as the notice of an outage."""
        rate_hz = (len(self._latest) - 1) / max(took_s, _SPELL_S_MIN)
        return RateNotice(OUTAGE, self.counted, now, self.expected_hz or 0.0, rate_hz)

    def _learn(self) -> None:
        took_s = max(float(np.minimum(np.diff(self._latest), STREAM_GAP_S_MAX).sum()), _SPELL_S_MIN)
        self._spells += 1
        self._spells_s += took_s
        share = LEARNED_EACH * min(1.0, took_s / math.exp(self._log_spell))
        share = share / 10 if self.falling else max(share, took_s / self._spells_s)
        self._log_spell += share * (math.log(took_s) - self._log_spell)

    def to_state(self) -> dict[str, Any]:
        return {
            "clicks_each": self.clicks_each,
            "counted": self.counted,
            "outages": self.outages,
            "falling": self.falling,
            "last_outage": self.last_outage,
            "latest": list(self._latest),
            "log_spell": self._log_spell,
            "spells": self._spells,
            "spells_s": self._spells_s,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave; with other spells, the rate is learned anew."""
        self.counted, self.outages = state["counted"], state["outages"]
        self.falling, self.last_outage = state["falling"], state["last_outage"]
        self._log_spell, self._spells, self._spells_s = state["log_spell"], state["spells"], state["spells_s"]
        self._latest.clear()
        self._latest.extend(state["latest"])
        if state["clicks_each"] != self.clicks_each:
            self._latest.clear()
            self._spells, self._spells_s, self.falling = 0, 0.0, False
