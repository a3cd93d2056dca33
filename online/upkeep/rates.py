"""Tells a stream that runs dry from a world that changes: how fast clicks come, against how fast they used to."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

OUTAGE, OVER = "outage", "outage over"
LEARNED_EACH = 0.05  # what the latest spell counts in the expected rate; during an outage a tenth of it
SPELLS_MIN = 5  # spells that have to be known before anything is expected
BACK = 2.0  # an outage is over when the rate is so many times the one that it begins at


@dataclass(frozen=True)
class RateNotice:
    """Clicks come much more slowly than expected, or do so no longer."""

    kind: str  # OUTAGE or OVER
    at: int  # clicks counted so far
    at_s: float  # stream time, seconds since 1970
    expected_hz: float
    rate_hz: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        what = "clicks come as they used to again" if self.kind == OVER else "clicks are missing"
        return f"{what}: {self.rate_hz:.3g} a second, {self.expected_hz:.3g} expected (after {self.at:,} clicks)"


class RateWatch:
    """An outage is noticed when the latest `clicks_each` clicks took more than 1 / `share` of the time expected, be it
    that they came slowly or that none comes any more.

    What is expected is the geometric mean, exponentially weighted, over spells of `clicks_each` clicks: so a gap of a
    week does not spoil it. Time is stream time and never runs backwards: a click that comes late counts as one now.
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

    @property
    def expected_hz(self) -> float | None:
        """Clicks a second; None while too little is known."""
        return self.clicks_each / math.exp(self._log_spell) if self._spells >= SPELLS_MIN else None

    @property
    def missing(self) -> bool:
        """Whether clicks are missing now."""
        return self.falling or self.silent

    def update(self, times: Iterable[float]) -> list[RateNotice]:
        """Takes the stream times of some clicks, in order of arrival."""
        found: list[RateNotice] = []
        for time_s in times:
            self._latest.append(max(float(time_s), self._latest[-1] if self._latest else 0.0))
            self.counted += 1
            found += self._look(self._latest[-1])
            if self.counted % self.clicks_each == 0 and len(self._latest) > self.clicks_each:
                self._learn()
        return found

    def silence(self, now: float) -> RateNotice | None:
        """To be asked while no click comes; `now` is stream time too. A silence is told once."""
        if self.falling or self.silent or not self._latest or now <= self._latest[-1]:
            return None
        notice = self._notice(now)
        self.silent = notice.rate_hz < self.share * notice.expected_hz
        return notice if self.silent else None

    def _look(self, now: float) -> list[RateNotice]:
        notice = self._notice(now)
        was_falling, told = self.falling, self.missing
        self.falling = notice.rate_hz < self.share * notice.expected_hz * (BACK if was_falling else 1.0)
        self.silent = False
        if self.falling and not was_falling:
            self.outages += 1
            self.last_outage = notice.as_dict()
        if self.falling == told:
            return []
        return [notice if self.falling else replace(notice, kind=OVER)]

    def _notice(self, now: float) -> RateNotice:
        """How things stand, as the notice of an outage."""
        rate_hz = (len(self._latest) - 1) / max(now - self._latest[0], 1e-3)
        return RateNotice(OUTAGE, self.counted, now, self.expected_hz or 0.0, rate_hz)

    def _learn(self) -> None:
        took = math.log(max(self._latest[-1] - self._latest[0], 1e-3))
        each = max(LEARNED_EACH, 1 / (self._spells + 1)) if not self.falling else LEARNED_EACH / 10
        self._log_spell += each * (took - self._log_spell)
        self._spells += 1

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
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave; with other spells, the rate is learned anew."""
        self.counted, self.outages = state["counted"], state["outages"]
        self.falling, self.last_outage = state["falling"], state["last_outage"]
        self._log_spell, self._spells = state["log_spell"], state["spells"]
        self._latest.clear()
        self._latest.extend(state["latest"])
        if state["clicks_each"] != self.clicks_each:
            self._latest.clear()
            self._spells, self.falling = 0, False
