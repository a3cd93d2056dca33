"""What is wrong with a worker right now: one list, for `status`, the dashboard, /readyz and /metrics.

A notice tells of a moment; a problem lasts until what caused it is over. What is open is asked of the part that knows,
at each report, so nothing here can go stale or survive a restart by mistake.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from online.worker.problem_kinds import KINDS, Problem

if TYPE_CHECKING:
    from online.worker.loop import Loop


class ProblemReport:
    """Collects problems from a loop's parts, and notes when each was first seen if no notice has that time."""

    def __init__(self, loop: "Loop") -> None:
        self.loop = loop
        self._first_seen: dict[str, int] = {}

    def now(self, now_ms: int) -> list[Problem]:
        """Returns the open problems, the most severe first."""
        found: dict[str, list[str]] = {}
        for kind, text in self._open():
            found.setdefault(kind, []).append(text)
        self._first_seen = {kind: self._first_seen.get(kind, now_ms) for kind in found}
        problems = []
        for kind in sorted(found, key=KINDS.index):
            problem = Problem(kind, self._first_seen[kind], "; ".join(found[kind]))
            notice = None if problem.text else self.loop.notices.last.get(kind)
            problems.append(problem if notice is None else Problem(kind, notice.at, notice.text))
        return problems

    def _open(self) -> Iterator[tuple[str, str]]:
        """Yields kind and text of each; an empty text stands for that of its latest notice."""
        loop = self.loop
        for line in (loop.source.trouble(), loop.dead_letters.waits_for):
            if line:
                yield "waiting", line
        if loop.writer.redis_waits_since is not None:
            why = loop.writer.link.trouble or "Redis does not take the lists"
            yield "redis", f"{why}; learning goes on, lists will be brought up to date"
        if loop.checkpointer.failing_since is not None:
            yield "checkpoint_failed", ""
        for watch in loop.unreadable.values():
            if watch.began:
                yield "unreadable", watch.text
        if loop.supervisor.outage:
            yield "outage", ""
        if loop.overload.shedding:
            yield "shedding", ""
        if loop.overload.lagging:
            yield "lagging", ""
        if loop.learner.abuse_filter.net.open:
            yield "abuse_share", ""
        if loop.writer.evictions.since is not None:
            yield "evicting", ""
        if loop.supervisor.flooded:
            yield "abuse_flood", "clicks that look like a bot's are kept from other users' lists"
