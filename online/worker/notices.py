"""Notices: events of the model and the stream that operators should know, each emitted once.

Each notice is a line in the log, a record of the events topic, one of the latest in the status, and a count by kind.
"""

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from online.lifecycle.versions import Versions
from online.logs import fields_in
from online.worker.progress import Progress
from stream.notices import Notice, NoticeWriter

INFO, WARNING, ERROR = "info", "warning", "error"


class Kind(NamedTuple):
    """A kind of notice: its severity, which is its level in the log, and its meaning for operators."""

    severity: str
    meaning: str


#: A condition that ends has a second kind, `X_over`; a failure has `X_failed` and `X_recovered`.
KINDS = {
    "alarm": Kind(WARNING, "the stream has changed: clicks are predicted less well"),
    "improvement": Kind(INFO, "clicks are predicted better than before"),
    "outage": Kind(WARNING, "clicks are missing: check what publishes them"),
    "outage_over": Kind(INFO, "clicks arrive again"),
    "lagging": Kind(WARNING, "more clicks arrive than can be learned: lists are late"),
    "lagging_over": Kind(INFO, "it has caught up"),
    "shedding": Kind(WARNING, "the lag is too large: weights are not trained"),
    "shedding_over": Kind(INFO, "it has caught up: weights are trained again"),
    "finetuning": Kind(INFO, "a fine-tuning began, or was left out"),
    "candidate": Kind(INFO, "a candidate ranks beside the live model now"),
    "published": Kind(INFO, "a new version serves"),
    "rejected": Kind(INFO, "a candidate was rejected"),
    "rolled_back": Kind(WARNING, "an earlier version serves again"),
    "rollback_refused": Kind(WARNING, "a requested rollback is not possible: see the reason"),
    "update_skipped": Kind(WARNING, "updates of the weights were skipped: gradients exploded or were not finite"),
    "forgotten": Kind(INFO, "a user was forgotten, as requested"),
    "abuse_flood": Kind(WARNING, "many clicks look like a bot's and are kept from other users' lists"),
    "abuse_flood_over": Kind(INFO, "few clicks look like a bot's again"),
    "abuse_share": Kind(WARNING, "more clicks are flagged as abuse than abuse can be: limits or clocks do not fit"),
    "abuse_share_over": Kind(INFO, "the limits on abuse fit the stream again"),
    "unreadable": Kind(WARNING, "a large share of a topic's messages cannot be read: see the reason"),
    "unreadable_over": Kind(INFO, "its messages can be read again"),
    "first_messages": Kind(WARNING, "the first messages lack a field that a click needs, or their times are of 1970"),
    "undecodable": Kind(WARNING, "messages could not be decoded and became dead letters"),
    "messages_lost": Kind(ERROR, "messages were deleted before they were read"),
    "items_expired": Kind(WARNING, "many items expired at once, because they had no clicks for long"),
    "items_lost": Kind(WARNING, "more items are clicked than are held: raise NEXTCLICK_ITEMS_HELD"),
    "users_lost": Kind(WARNING, "more users come than are held: raise NEXTCLICK_USERS_HELD"),
    "lists_deleted": Kind(WARNING, "many lists were deleted at once: none of their items is available"),
    "lists_stale": Kind(INFO, "many lists have aged at once, and are ranked anew"),
    "privacy_budget_spent": Kind(WARNING, "the privacy budget is spent: weights stay as they are from now on"),
    "privacy_few_users": Kind(WARNING, "private steps have too few users: they move no weight"),
    "privacy_few_users_over": Kind(INFO, "private steps have enough users again: weights move"),
    "seen_items_lost": Kind(WARNING, "what users have clicked is not remembered in full: lists may show it again"),
    "hidden_items_lost": Kind(WARNING, "what users have hidden is not remembered in full: lists may show it again"),
    "internal_error": Kind(ERROR, "an event caused an internal error and became a dead letter, or too many did"),
    "checkpoint_failed": Kind(ERROR, "no checkpoint can be written"),
    "checkpoint_recovered": Kind(INFO, "checkpoints can be written again"),
    "evicting": Kind(WARNING, "Redis is too small and evicts lists: raise its maxmemory"),
    "evicting_over": Kind(INFO, "Redis has room again"),
}
_LEVELS = {INFO: logging.INFO, WARNING: logging.WARNING, ERROR: logging.ERROR}

log = logging.getLogger(__name__)


class Notices:
    """The latest `held` notices, and how many there were of each kind; part of each checkpoint.

    `writer`: publishes them; None if there is no topic. `clock`: the computer's, in seconds since 1970.
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
        self._emitted_at = 0  # clicks learned when the latest notice was emitted
        self._emitted_there: Counter[str] = Counter()  # notices of each kind at that click

    @property
    def dropped(self) -> int:
        """How many notices could not be published since this worker started."""
        return 0 if self._writer is None else self._writer.dropped

    def emit(self, kind: str, text: str, figures: Mapping[str, Any] | None = None) -> Notice:
        """Logs, counts and publishes a notice. For the loop's thread only: the clicks learned so far are in its id.

        Args:
            kind: one of KINDS.
            text: one line for operators.
            figures: for programs; those that are not finite become None, since JSON has no such numbers.
        """
        clicks = self._progress.learned
        if clicks != self._emitted_at:
            self._emitted_at, self._emitted_there = clicks, Counter()
        number, self._emitted_there[kind] = self._emitted_there[kind], self._emitted_there[kind] + 1
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
        fields = fields_in(notice.figures) | {"version": notice.version}
        log.log(_LEVELS[KINDS[kind].severity], "%s: %s", kind, text, extra=fields)
        if self._writer is not None:
            self._writer.put(notice)
        return notice

    def to_state(self) -> dict[str, Any]:
        return {
            "latest": [notice.as_dict() for notice in self.latest],
            "counts": dict(self.counts),
            "last": [notice.as_dict() for notice in self.last.values()],
            "told": [self._emitted_at, dict(self._emitted_there)],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.latest.clear()
        self.latest.extend(Notice(**fields) for fields in state["latest"])
        self.counts = Counter(state["counts"])
        self.last = {one.kind: one for one in (Notice(**fields) for fields in state.get("last", state["latest"]))}
        self._emitted_at, emitted_there = state["told"]
        self._emitted_there = Counter(emitted_there)


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
