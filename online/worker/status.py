"""The worker's status: one JSON object, for `nextclick status`, the dashboard and /metrics."""

import os
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from online.metrics import ScoreWindow
from online.worker.history import History
from online.worker.loop import Loop
from online.worker.problem_kinds import Problem
from online.worker.problems import ProblemReport
from stream.source import Partition

RATE_WINDOW_S = 10.0


def waiting_status(line: str) -> dict[str, Any]:
    """Returns the status of a worker that waits for something it needs, which `line` names."""
    now_ms = int(1000 * time.time())
    problems = [Problem("waiting", now_ms, line).as_dict()]
    report = {"state": "waiting", "pid": os.getpid(), "written_at": now_ms, "waits_for": [line], "redis": "ok"}
    return report | {"problems": problems}


class StatusReport:
    """Describes a loop, and measures its rate of clicks."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.started_at = time.time()
        self.history = History(loop.writer.lists, loop.clock)
        self._problems = ProblemReport(loop)
        self._score_window = ScoreWindow(loop.settings.metrics_window_s, loop.monotonic)
        self._progress: deque[tuple[float, int]] = deque([(time.monotonic(), loop.progress.learned)])

    def describe(self, state: str) -> dict[str, Any]:
        """Returns the status as a JSON object.

        Times are milliseconds since 1970, positions are next offsets, rates are clicks learned per second; the lag is
        in messages and seconds, None while the broker does not answer.
        """
        loop, progress, learner = self.loop, self.loop.progress, self.loop.learner
        lag = loop.overload.measure(loop.source)
        saved, failing_since = loop.checkpointer.last_saved, loop.checkpointer.failing_since
        supervisor, tuned_at = loop.supervisor, loop.supervisor.last_finetuned_at
        return {
            "state": state,
            "pid": os.getpid(),
            "started_at": int(1000 * self.started_at),
            "written_at": int(1000 * time.time()),
            "version": learner.version,
            "learned": progress.learned,
            "learned_from": progress.learned_from,
            "untrained": progress.untrained,
            "duplicates": progress.duplicates,
            "dead_letters": dict(progress.dead_letters),
            "unreadable_share_of": {topic: watch.figures["share"] for topic, watch in loop.unreadable.items()},
            "users": len(learner.histories),
            "items": len(learner.vocabulary),
            "unavailable": len(learner.unavailable),
            "lag": None if lag is None else lag.total,
            "lag_s": None if lag is None else lag.oldest_s,
            "lag_of": {} if lag is None else named(lag.messages),
            "lag_s_of": {} if lag is None else named(lag.seconds),
            "behind": loop.overload.lagging,
            "shedding": loop.overload.shedding,
            "positions": named(progress.next_offsets),
            "events_per_s": self._rate(),
            "click_to_list_ms": loop.writer.latencies.quantiles(),
            "click_to_list_unknown": loop.writer.latencies.unknown,
            "scored": learner.scores.scored,
            "scores": learner.scores.total(),
            "recent": learner.scores.recent(),
            "window": {"seconds": loop.settings.metrics_window_s, "scores": self._score_window.means(learner.scores)},
            "loss": loop.changes.drift.mean_loss,
            "alarms": loop.changes.drift.alarms,
            "improvements": loop.changes.drift.improvements,
            "last_alarm": loop.changes.drift.last_alarm,
            "finetune": {
                "state": supervisor.state,
                "done": progress.finetunings,
                "last_at": None if tuned_at is None else int(1000 * tuned_at),
            },
            "gate": None if supervisor.candidate is None else supervisor.candidate.figures(),
            "checkpoint": None
            if saved is None
            else {
                "number": saved.number,
                "bytes": saved.size_bytes,
                "seconds": None if saved.seconds is None else round(saved.seconds, 3),
            },
            "unsaved_since": None if failing_since is None else int(1000 * failing_since),
            "lost": progress.lost,
            "lists_behind": loop.writer.behind,
            "refreshes": progress.refreshes,
            "lists_fenced": loop.writer.link.rejected,
            "questions": None if loop.asking is None else loop.asking.describe(),
            "group": None if loop.group is None else loop.group.describe(),
            "objective": None if learner.worth is None else learner.weights.objective.describe(),
            "privacy": None if learner.privacy is None else learner.privacy.describe(),
            "flagged": dict(learner.abuse_filter.total),
            "abuse_share": round(learner.abuse_filter.net.share, 4),
            "abuse_share_exceeded": learner.abuse_filter.net.open,
            "let_through": dict(learner.abuse_filter.net.let_through),
            "expired": learner.expired,
            "waits_for": [
                line for line in (loop.source.trouble(), loop.dead_letters.waits_for, loop.writer.link.trouble) if line
            ],
            "problems": [problem.as_dict() for problem in self._problems.now(int(1000 * time.time()))],
            "redis": "ok" if loop.writer.redis_waits_since is None else "waiting",
            "redis_memory": loop.writer.evictions.figures(),
            "versions": loop.versions.as_dicts(),
            "notices": [notice.as_dict() for notice in loop.notices.latest],
            "notice_counts": dict(loop.notices.counts),
            "notices_dropped": loop.notices.dropped,
            "memory_mb_max": memory_mb_max(),
            "timings": loop.monitor.timings.figures(),
        }

    def _rate(self) -> float:
        now, learned = time.monotonic(), self.loop.progress.learned
        self._progress.append((now, learned))
        while len(self._progress) > 2 and now - self._progress[0][0] > RATE_WINDOW_S:
            self._progress.popleft()
        began, before = self._progress[0]
        return round((learned - before) / max(1e-3, now - began), 1)


def named(of_partition: Mapping[Partition, float]) -> dict[str, float]:
    """Returns values by `topic:partition`, for JSON."""
    return {f"{partition.topic}:{partition.partition}": value for partition, value in sorted(of_partition.items())}


def memory_mb_max() -> float:
    """Returns the peak of this process's resident memory, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
