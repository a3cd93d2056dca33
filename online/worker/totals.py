"""The status of a group as if it were one worker's, so that what is read of one is read of many."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from online.worker.overview import Overview, number, of_group, owned_lags, partition_of

#: Each worker does its own share of these.
_SUMMED = ("learned_from", "untrained", "scored", "refreshes", "lists_behind", "lists_fenced", "click_to_list_unknown")
#: Each worker counts or holds all of these, so the one that is furthest says how many there are.
_MOST = (
    *("learned", "duplicates", "users", "items", "unavailable", "lost", "expired", "events_per_s", "written_at"),
    *("memory_mb_max", "abuse_share", "notices_dropped"),
)
_ANY = ("behind", "shedding", "abuse_share_exceeded")
_RECENT_MAX = 1_000  # clicks that a worker's recent scores are the mean of


def total(overview: Overview) -> Mapping[str, Any] | None:
    """Returns one status of all workers: shares are summed, the model is the leader's, the lag that of the owners.

    What every worker counts, such as clicks, is that of the worker that has counted most. Latencies are the slowest
    worker's. A worker that is alone is its own total; None where none reports.
    """
    if not overview.many:
        return overview.alone
    statuses = list(overview.statuses.values())
    found = dict(overview.model() or {})
    found |= {name: _folded(statuses, name, sum) for name in _SUMMED}
    found |= {name: _folded(statuses, name, max) for name in _MOST}
    found |= {name: any(status.get(name) for status in statuses) for name in _ANY}
    found |= {name: _of_names(statuses, name, sum) for name in ("dead_letters",)}
    found |= {name: _of_names(statuses, name, max) for name in ("flagged", "let_through", "unreadable_share_of")}
    found["started_at"] = _folded(statuses, "started_at", min)
    found["unsaved_since"] = _folded(statuses, "unsaved_since", min)
    found["click_to_list_ms"] = _of_names(statuses, "click_to_list_ms", max)
    found["redis"] = "ok" if all(status.get("redis") == "ok" for status in statuses) else "waiting"
    found["redis_memory"] = _memory(statuses) or found.get("redis_memory")
    found["problems"] = overview.problems()
    return found | _lag(overview) | _scores(statuses) | _state(overview) | {"group": _group(overview)}


def _state(overview: Overview) -> dict[str, Any]:
    """A group runs if one of its workers does; it waits if all of them do."""
    states = [status.get("state") for status in overview.statuses.values()]
    running = "running" in states
    waits = [
        f"{name}: {line}" for name, status in overview.statuses.items() for line in _lines(status.get("waits_for"))
    ]
    all_wait = all(status.get("waits_for") for status in overview.statuses.values())
    return {"state": "running" if running else states[0], "pid": None, "waits_for": waits if all_wait else []}


def _lag(overview: Overview) -> dict[str, Any]:
    """The lag of each partition as its owner measures it; as the furthest worker does, where none owns it."""
    found: dict[str, dict[str, float]] = {"lag_of": {}, "lag_s_of": {}}
    owned = {partition for partition, name in overview.owners().items() if name is not None}
    positions: dict[str, float] = {}
    for status in overview.statuses.values():
        for field, lags in found.items():
            every = status.get(field)
            for name, lag in every.items() if isinstance(every, dict) else ():
                if partition_of(name) not in owned and number(lag) is not None:
                    lags[name] = min(lag, lags.get(name, lag))
        every = status.get("positions")
        for name, offset in every.items() if isinstance(every, dict) else ():
            if number(offset) is not None:
                positions[name] = max(offset, positions.get(name, offset))
    for status in overview.statuses.values():
        for field, lags in found.items():
            lags.update(owned_lags(status, field))
    lags, seconds = (dict(sorted(found[field].items())) for field in ("lag_of", "lag_s_of"))
    lag = sum(lags.values()) if lags else None
    oldest_s = max(seconds.values(), default=None if lag else 0.0)
    return {
        "lag": lag,
        "lag_s": None if lag is None else oldest_s,
        "lag_of": lags,
        "lag_s_of": seconds,
        "positions": dict(sorted(positions.items())),
    }


def _scores(statuses: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the clicks of all workers, each of which has scored the lists of its own users."""
    scored = [number(status.get("scored")) or 0.0 for status in statuses]
    recent = [min(_RECENT_MAX, clicks) for clicks in scored]
    return {
        "scores": _mean([_object(status.get("scores")) for status in statuses], scored),
        "recent": _mean([_object(status.get("recent")) for status in statuses], recent),
    }


def _mean(of_workers: list[Mapping[str, Any]], weights: list[float]) -> dict[str, dict[str, float]]:
    sums: dict[str, dict[str, float]] = {}
    totals: Counter[tuple[str, str]] = Counter()
    for scores, weight in zip(of_workers, weights, strict=True):
        for method, measures in scores.items():
            for measure, value in _object(measures).items():
                if weight and number(value) is not None:
                    of_method = sums.setdefault(method, {})
                    of_method[measure] = of_method.get(measure, 0.0) + weight * value
                    totals[method, measure] += weight  # type: ignore[assignment]
    return {
        method: {measure: value / totals[method, measure] for measure, value in measures.items()}
        for method, measures in sums.items()
    }


def _memory(statuses: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of the first worker that sees Redis evict lists."""
    found = (_object(status.get("redis_memory")) for status in statuses)
    return next((memory for memory in found if memory.get("evicting_since") is not None), None)


def _group(overview: Overview) -> dict[str, Any]:
    leader, owners = overview.leader, overview.owners()
    decider = of_group(overview.model() or {})
    return {
        "reporting": len(overview.statuses),
        "gone": len(overview.gone),
        "leader": leader,
        "partitions": len(owners),
        "unowned": sum(name is None for name in owners.values()),
        "base": decider.get("base"),
    }


def _folded(statuses: list[Mapping[str, Any]], name: str, fold: Callable[[Iterable[Any]], Any]) -> Any:
    values = [status[name] for status in statuses if number(status.get(name)) is not None]
    return fold(values) if values else None


def _of_names(statuses: list[Mapping[str, Any]], name: str, fold: Callable[[Iterable[Any]], Any]) -> dict[str, Any]:
    objects = [_object(status.get(name)) for status in statuses]
    names = dict.fromkeys(one for found in objects for one in found)
    return {one: _folded(objects, one, fold) for one in names}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _lines(value: Any) -> list[str]:
    return [str(line) for line in value] if isinstance(value, list) else []
