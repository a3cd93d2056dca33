"""When people are told that the guard keeps clicks out: at the beginning of a flood and at its end, not in between."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

TOLD_EACH = 1_000  # clicks after which it is looked at anew
FLOOD = 20  # flagged ones among them; honest people, who play a track in a loop, have some in a thousand


class Told(NamedTuple):
    """What a flood is told by."""

    text: str
    figures: dict[str, Any]


class FloodWatch:
    """Looks at the guard's totals as clicks come. A flood begins with `FLOOD` flagged clicks among at most `TOLD_EACH`,
    and is over when there are fewer among as many."""

    def __init__(self) -> None:
        self._began: Counter[str] | None = None  # the totals before the flood; None: there is none
        self._at = 0  # clicks so far when it was looked at last, and the totals then
        self._before: Counter[str] = Counter()

    @property
    def lasts(self) -> bool:
        """Whether one has begun and is not over."""
        return self._began is not None

    def update(self, clicks: int, total: Mapping[str, int]) -> Told | None:
        """Clicks learned so far, and the flagged ones among them by reason."""
        now = Counter({reason: count for reason, count in total.items() if reason != "taken-back"})
        found = (now - self._before).total()
        over = clicks - self._at >= TOLD_EACH
        told = None
        if self._began is None and found >= FLOOD:
            self._began, over = self._before, True
            text = f"clicks that look like a bot's are kept from other people's lists: {found} of the latest"
            told = _told(f"{text} {clicks - self._at:,}", now - self._before)
        elif self._began is not None and over and found < FLOOD:
            kept = now - self._began
            told = _told(f"the flood of clicks is over: {kept.total():,} were kept from other people's lists", kept)
            self._began = None
        if over:
            self._at, self._before = clicks, now
        return told

    def to_state(self) -> dict[str, Any]:
        began = None if self._began is None else dict(self._began)
        return {"began": began, "at": self._at, "before": dict(self._before)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._began = None if state["began"] is None else Counter(state["began"])
        self._at, self._before = state["at"], Counter(state["before"])


def _told(text: str, kept: Counter[str]) -> Told:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in kept.most_common())
    return Told(f"{text} ({reasons})", {"clicks": kept.total(), "reasons": dict(kept)})
