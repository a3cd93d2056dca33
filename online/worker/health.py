"""How well a worker, or a group of them, is: one function for `nextclick status`, both /readyz and an operator's rules.

- `starting`: it loads its code and its checkpoint.
- `waiting`: it has not begun, because Kafka, a topic or the disk is not there.
- `ready`: it reads clicks, and nothing is wrong.
- `degraded`: it reads clicks, or would if Kafka answered, and the reasons say what is wrong. It is not dead: a restart
  would not help.
- `failed`: it stands still (a stuck loop), or has ended because of an error.
- `stopped`: it has ended in order, or no worker reports.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from online.worker.overview import Overview

State = Literal["ready", "degraded", "starting", "waiting", "failed", "stopped"]

NO_WORKER = {"kind": "worker", "since": None, "text": "no worker reports: start `nextclick worker`"}
ENDED = ("failed", "stopped")  # states in which no worker is there any more
#: Of a worker that does not run: its health by the state that it reports, and the reason where it names no problem.
_NOT_RUNNING: dict[str, tuple[State, str]] = {
    "starting": ("starting", "the worker starts: it loads its code and its latest checkpoint"),
    "waiting": ("waiting", "the worker waits for something it needs"),
    "failed": ("failed", "the worker has ended because of an error: see its log"),
    "stopped": ("stopped", "the worker has stopped"),
}
#: Of a group none of whose workers runs, the first of these that one of them has.
_ORDER: tuple[State, ...] = ("waiting", "starting", "failed", "stopped")


class Health(NamedTuple):
    """A state, and why it is not `ready`: problems as the status has them, the gravest first."""

    state: State
    reasons: list[dict[str, Any]]

    @property
    def runs(self) -> bool:
        """Whether clicks are learned, or will be as soon as Kafka answers."""
        return self.state in {"ready", "degraded"}


def health_of(overview: Overview) -> Health:
    """Returns the health of what reports: of a worker alone, or of a group, which runs if one of its workers does."""
    if not overview.many:
        return health_of_worker(overview.alone)
    each = [health_of_worker(status) for status in overview.statuses.values()]
    if any(health.runs for health in each):
        problems = overview.problems()
        return Health("degraded" if problems else "ready", problems)
    state = next(state for state in _ORDER if any(health.state == state for health in each))
    return Health(state, overview.problems() or [reason for health in each for reason in health.reasons])


def health_of_worker(status: Mapping[str, Any] | None, stuck_s: float | None = None) -> Health:
    """Returns the health of one worker.

    Args:
        status: what it reports (online/worker/status.py); None: nothing.
        stuck_s: for how long its loop has stood still, if that is too long (`Monitor.stuck_s`).
    """
    if status is None:
        return Health("stopped", [NO_WORKER])
    listed = status.get("problems")
    problems = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if stuck_s is not None:
        text = f"the loop has not turned for {stuck_s:.0f} s: restart the worker, and report it with its log"
        return Health("failed", [{"kind": "stuck", "since": None, "text": text}, *problems])
    state, text = _NOT_RUNNING.get(str(status.get("state")), ("ready", ""))
    if state == "ready":
        return Health("degraded" if problems else "ready", problems)
    return Health(state, problems or [{"kind": "worker", "since": None, "text": text}])
