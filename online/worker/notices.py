"""What happened to the model lately: told once, to everybody who may want to know.

Each notice is a line in the log, a record of the events topic, one of the latest in the status, and a count by kind.
"""

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from online.lifecycle.versions import Versions
from online.worker.progress import Progress
from stream.notices import Notice, NoticeWriter

#: Each kind, and what it means and asks of people.
KINDS = {
    "alarm": "the stream has changed: clicks are foreseen less well",
    "improvement": "clicks are foreseen better than before",
    "outage": "clicks are missing: look upstream",
    "outage_over": "clicks come again",
    "behind": "more clicks come than can be learned: lists are late",
    "behind_over": "it has caught up",
    "shedding": "it is too far behind: weights are not trained",
    "shedding_over": "it has caught up: weights are trained again",
    "finetuning": "a fine-tuning began, or was left out",
    "candidate": "a candidate ranks beside the live model now",
    "published": "a new version makes the lists",
    "rejected": "a candidate was thrown away",
    "rolled_back": "the lists are made by an earlier version again",
    "forgotten": "somebody was forgotten, because that was asked for",
    "guard": "an update was stopped, or a flood of clicks kept out",
    "unreadable": "a large share of a topic's messages cannot be read: see the reason",
    "unreadable_over": "its messages can be read again",
    "first_messages": "the first messages lack a field that a click needs, or their times are of 1970",
    "abuse_share": "more clicks are flagged as abuse than abuse can be: limits or clocks do not fit",
    "abuse_share_over": "the limits on abuse fit the stream again",
    "expired": "many items went at once, because they had no clicks for long",
    "seen_items_lost": "what users have clicked is no longer remembered in full: lists may show it again",
    "aged": "many lists have aged at once, and are ranked anew",
    "internal_error": "an event met a bug of ours and was put aside, or too many did",
    "unsaved": "no checkpoint can be written",
    "saved_again": "checkpoints can be written again",
    "evicting": "Redis is too small and evicts lists: raise its maxmemory",
    "evicting_over": "Redis has room again",
    "lost": "messages were gone before they were read",
    "undecodable": "messages could not be decoded and were put aside",
}
WARNINGS = frozenset(
    {
        *("alarm", "outage", "behind", "shedding", "rolled_back", "guard", "abuse_share", "expired"),
        "seen_items_lost",
        *("internal_error", "unsaved", "lost", "unreadable", "first_messages", "undecodable", "evicting"),
    }
)

log = logging.getLogger(__name__)


class Notices:
    """The latest `held` notices and how many there were of each kind; part of each checkpoint.

    `writer`: None where there is no topic. `clock`: the computer's, in seconds since 1970.
    """

    def __init__(
        self,
        held: int,
        *,
        progress: Progress,
        versions: Versions,
        clock: Callable[[], float],
        writer: NoticeWriter | None = None,
    ) -> None:
        self._progress = progress
        self._versions = versions
        self._clock = clock
        self._writer = writer
        self.latest: deque[Notice] = deque(maxlen=held)
        self.counts: Counter[str] = Counter()
        self.last: dict[str, Notice] = {}  # of each kind
        self._told_at = 0  # clicks learned when the latest notice was told
        self._told_there: Counter[str] = Counter()  # notices of each kind at that click

    @property
    def dropped(self) -> int:
        """Notices that the topic never saw, since this worker started."""
        return 0 if self._writer is None else self._writer.dropped

    def emit(self, kind: str, text: str, figures: Mapping[str, Any] | None = None) -> Notice:
        """`kind`: one of KINDS, with spaces or underscores. For the loop's thread alone: the clicks learned so far make
        the notice's id. Figures that are not finite become None: JSON has no others.
        """
        kind = kind.replace(" ", "_")
        clicks = self._progress.learned
        if clicks != self._told_at:
            self._told_at, self._told_there = clicks, Counter()
        number, self._told_there[kind] = self._told_there[kind], self._told_there[kind] + 1
        notice = Notice(
            id=f"{kind}-{clicks}-{number}",
            kind=kind,
            at=int(1000 * self._clock()),
            clicks=clicks,
            version=self._versions.live.number,
            text=text,
            figures=_finite(dict(figures or {})),
        )
        self.latest.append(notice)
        self.last[kind] = notice
        self.counts[kind] += 1
        log.log(logging.WARNING if kind in WARNINGS else logging.INFO, "%s: %s", kind, text)
        if self._writer is not None:
            self._writer.put(notice)
        return notice

    def to_state(self) -> dict[str, Any]:
        return {
            "latest": [notice.as_dict() for notice in self.latest],
            "counts": dict(self.counts),
            "last": [notice.as_dict() for notice in self.last.values()],
            "told": [self._told_at, dict(self._told_there)],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.latest.clear()
        self.latest.extend(Notice(**fields) for fields in state["latest"])
        self.counts = Counter(state["counts"])
        self.last = {one.kind: one for one in (Notice(**fields) for fields in state.get("last", state["latest"]))}
        self._told_at, told_there = state["told"]
        self._told_there = Counter(told_there)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
