"""The kinds of problems that a worker or a group may have: a reader of statuses needs no more than this."""

from typing import Any, NamedTuple

#: Each kind, the gravest first.
KINDS = (
    *("no_leader", "unowned", "base_stale", "worker_gone"),
    *("waiting", "redis", "checkpoint_failed", "unreadable", "outage", "shedding", "lagging"),
    *("abuse_share", "evicting", "abuse_flood"),
)


class Problem(NamedTuple):
    """A problem that lasts now. `since`: milliseconds since 1970."""

    kind: str  # one of KINDS
    since: int
    text: str

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()
