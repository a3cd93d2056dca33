"""Notices of clicks that the abuse filter flags: at the beginning of a flood and at its end, not in between."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

BEGUN, OVER = "abuse_flood", "abuse_flood_over"
CHECK_EACH = 1_000  # clicks between two checks
FLOOD = 20  # flagged ones among them; honest users, who play a track in a loop, have some in a thousand


class FloodNotice(NamedTuple):
    """A flood has begun, or is over."""

    kind: str  # BEGUN or OVER
    text: str
    figures: dict[str, Any]


class FloodWatch:
    """Checks the abuse filter's totals as clicks come. A flood begins with `FLOOD` flagged clicks among at most
    `CHECK_EACH`, and is over when there are fewer among as many."""

    def __init__(self) -> None:
        self._began: Counter[str] | None = None  # the totals before the flood; None: there is none
        self._at = 0  # clicks so far at the latest check, and the totals then
        self._before: Counter[str] = Counter()

    @property
    def lasts(self) -> bool:
        """Whether one has begun and is not over."""
        return self._began is not None

    def update(self, clicks: int, total: Mapping[str, int]) -> FloodNotice | None:
        """Clicks learned so far, and the flagged ones among them by reason."""
        now = Counter({reason: count for reason, count in total.items() if reason != "taken-back"})
        found = (now - self._before).total()
        over = clicks - self._at >= CHECK_EACH
        notice = None
        if self._began is None and found >= FLOOD:
            self._began, over = self._before, True
            text = f"clicks that look like a bot's are kept from other users' lists: {found} of the latest"
            notice = _notice(BEGUN, f"{text} {clicks - self._at:,}", now - self._before)
        elif self._began is not None and over and found < FLOOD:
            kept = now - self._began
            text = f"the flood of clicks is over: {kept.total():,} were kept from other users' lists"
            notice = _notice(OVER, text, kept)
            self._began = None
        if over:
            self._at, self._before = clicks, now
        return notice

    def to_state(self) -> dict[str, Any]:
        began = None if self._began is None else dict(self._began)
        return {"began": began, "at": self._at, "before": dict(self._before)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._began = None if state["began"] is None else Counter(state["began"])
        self._at, self._before = state["at"], Counter(state["before"])


def _notice(kind: str, text: str, kept: Counter[str]) -> FloodNotice:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in kept.most_common())
    return FloodNotice(kind, f"{text} ({reasons})", {"clicks": kept.total(), "reasons": dict(kept)})
