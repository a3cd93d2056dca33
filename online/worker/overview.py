"""All that the workers report, for everything an operator looks at: which there are, who leads, what each owns.

Every worker of a group counts all clicks, and owns some partitions; each writes a status of its own. A worker that is
alone has no name, and its status is the overview.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from online.worker.problem_kinds import KINDS
from stream.lists import Lists, ListsError, RedisUnavailableError

STALE_ROUNDS, STALE_S_MIN = 12, 60.0  # a base that has waited for so many rounds, and so long, does not move
_MS = 1_000

log = logging.getLogger(__name__)
_refused: set[str] = set()  # addresses where names may not be read, as the log has said


@dataclass(frozen=True)
class Overview:
    """What the workers report. `now_ms`: when it was read, in milliseconds since 1970."""

    now_ms: int
    alone: Mapping[str, Any] | None = None  # the status of a worker without a name
    statuses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of a group's workers, by name
    gone: Mapping[str, int] = field(default_factory=dict)  # of those that report no more: when they did, as `now_ms`

    @property
    def many(self) -> bool:
        """Whether workers of a group report."""
        return bool(self.statuses)

    @property
    def leader(self) -> str | None:
        """The name of the worker that leads; for a moment two may believe that they do, and the later one is right."""
        leading = {name: of_group(status) for name, status in self.statuses.items() if of_group(status).get("leads")}
        return max(leading, key=lambda name: number(leading[name].get("leader_epoch")) or 0.0, default=None)

    @property
    def decider(self) -> str | None:
        """The leader's name; while there is none, that of the worker with the latest base."""
        bases = {name: number(of_group(status).get("base")) or 0.0 for name, status in self.statuses.items()}
        return self.leader or max(bases, key=lambda name: bases[name], default=None)

    def model(self) -> Mapping[str, Any] | None:
        """Returns the status of the worker that decides about the model; None where none reports."""
        return self.alone if self.decider is None else self.statuses[self.decider]

    def owners(self) -> dict[int, str | None]:
        """Returns who owns each partition of the clicks topic; None: no worker that reports."""
        owners: dict[int, str | None] = {}
        for name, status in self.statuses.items():
            group = of_group(status)
            for partition in _numbers(group.get("partitions")):
                owners.setdefault(partition, None)
            owners |= dict.fromkeys(_numbers(group.get("owned")), name)
        return dict(sorted(owners.items()))

    def rows(self) -> list[dict[str, Any]]:
        """Returns what is shown of each worker of a group, also of those that are gone, by name."""
        rows = [_row(name, status, self.now_ms) for name, status in self.statuses.items()]
        rows += [{"name": name, "state": "gone", "written_at": at} for name, at in self.gone.items()]
        return sorted(rows, key=lambda row: str(row["name"]))

    def problems(self) -> list[dict[str, Any]]:
        """Returns what is wrong now, the gravest first: with the group (`worker` is None), and with each worker."""
        if not self.many:
            return list((self.alone or {}).get("problems") or ())
        found = [*self._of_group()]
        for name, status in self.statuses.items():
            problems = status.get("problems")
            listed = problems if isinstance(problems, list) else ()
            found += [{**one, "worker": name} for one in listed if isinstance(one, dict)]
        order = {kind: rank for rank, kind in enumerate(KINDS)}
        return sorted(found, key=lambda one: order.get(str(one.get("kind")), len(order)))

    def _of_group(self) -> Iterator[dict[str, Any]]:
        leader = self.leader
        if leader is None:
            yield _problem("no_leader", "no worker leads: weights are not merged, and nothing decides about versions")
        if unowned := [partition for partition, name in self.owners().items() if name is None]:
            text = f"no worker owns {_partitions(unowned)}: their users' lists stay as they are"
            yield _problem("unowned", text)
        yield from self._stale_bases(leader)
        for name, at in self.gone.items():
            yield _problem("worker_gone", "it reports no more, and has not ended in order", at, name)

    def _stale_bases(self, leader: str | None) -> Iterator[dict[str, Any]]:
        ages = {name: _base_age_s(status, self.now_ms) for name, status in self.statuses.items()}
        youngest = min((age for age in ages.values() if age is not None), default=None)
        limits = [STALE_ROUNDS * (number(of_group(status).get("round_s")) or 0.0) for status in self.statuses.values()]
        limit_s = max([STALE_S_MIN, *limits])
        waits = any(number(of_group(status).get("unmerged")) for status in self.statuses.values())
        if youngest is not None and youngest > limit_s and waits:
            text = "workers have learned, and no base has followed: is the topic of weights written and read?"
            yield _problem("base_stale", text, self.now_ms - int(_MS * youngest))
            return
        at = None if leader is None else number(of_group(self.statuses[leader]).get("base"))
        for name, status in self.statuses.items():
            base, age_s = number(of_group(status).get("base")), ages[name]
            if at is not None and base is not None and base < at and age_s is not None and age_s > limit_s:
                text = f"its weights follow base {base:.0f}, and the leader's base {at:.0f}"
                yield _problem("base_stale", text, self.now_ms - int(_MS * age_s), name)


def read_overview(lists: Lists) -> Overview:
    """Reads what the workers report; of a worker alone that is one value in Redis. Raises ListsError."""
    now_ms = int(_MS * time.time())
    alone = lists.status()
    if alone is not None:
        return Overview(now_ms, alone)
    try:
        names = lists.read_names()
    except RedisUnavailableError:
        raise
    except ListsError as error:  # a user who may read only the values that a worker alone writes
        if lists.address not in _refused:
            _refused.add(lists.address)
            log.warning("workers with names, if there are any, are not seen here: %s", error)
        return Overview(now_ms)
    statuses = lists.read_statuses(names)
    return Overview(now_ms, None, statuses, {name: _MS * at for name, at in names.items() if name not in statuses})


def of_group(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of a status that is about the group; empty while a worker waits for its start."""
    group = status.get("group")
    return group if isinstance(group, dict) else {}


def number(value: Any) -> float | None:
    """Returns a field's value if it is a number."""
    return float(value) if isinstance(value, int | float) else None


def owned_lags(status: Mapping[str, Any], field: str) -> dict[str, float]:
    """Returns a worker's `lag_of` or `lag_s_of`, by `topic:partition`, of the partitions that it owns."""
    owned, lags = set(_numbers(of_group(status).get("owned"))), status.get(field)
    lags = lags if isinstance(lags, dict) else {}
    return {name: lag for name, lag in lags.items() if partition_of(name) in owned and number(lag) is not None}


def partition_of(name: str) -> int | None:
    """Returns the number in `topic:partition`."""
    tail = name.rpartition(":")[2]
    return int(tail) if tail.isdecimal() else None


def _row(name: str, status: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    group, known = of_group(status), bool(status.get("lag_of"))
    lags, seconds = owned_lags(status, "lag_of"), owned_lags(status, "lag_s_of")
    merger = group.get("merger")
    return {
        "name": name,
        "state": status.get("state"),
        "leads": bool(group.get("leads")),
        "owned": _numbers(group.get("owned")),
        "lag": sum(lags.values()) if known else None,
        "lag_s": max(seconds.values(), default=0.0) if known else None,
        "learned": status.get("learned"),
        "learned_from": status.get("learned_from"),
        "base": group.get("base"),
        "round_age_s": _base_age_s(status, now_ms),
        "version": status.get("version"),
        "changes_dropped": merger.get("dropped", 0) if isinstance(merger, dict) else None,
        "lists_fenced": status.get("lists_fenced"),
        "written_at": status.get("written_at"),
    }


def _base_age_s(status: Mapping[str, Any], now_ms: int) -> float | None:
    """Returns how long ago the latest base came; of a worker that has had none yet, how long ago it started."""
    group, written_at = of_group(status), number(status.get("written_at"))
    age_s, started_at = number(group.get("round_age_s")), number(status.get("started_at"))
    if not group or written_at is None:
        return None
    if age_s is None:
        return None if started_at is None else round((now_ms - started_at) / _MS, 1)
    return round(age_s + max(0.0, now_ms - written_at) / _MS, 1)


def _problem(kind: str, text: str, since: int | None = None, worker: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "since": since, "text": text, "worker": worker}


def _numbers(values: Any) -> list[int]:
    return [value for value in values if isinstance(value, int)] if isinstance(values, list) else []


def _partitions(numbers: list[int]) -> str:
    return f"partition{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
