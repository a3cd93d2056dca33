"""Statuses of a group of three workers and four partitions, as they write them."""

from typing import Any

NOW_MS = 1_700_000_060_000


def status_of(name: str, owned: list[int], **changed: Any) -> dict[str, Any]:
    """The status of one worker, written a second ago; what is not a field of its group changes the status."""
    group = {
        "worker": name, "leads": False, "leader_epoch": None, "owned": owned, "partitions": [0, 1, 2, 3], "base": 42,
        "round_age_s": 2.0, "rounds": 40, "round_s": 5.0, "unmerged": 0, "changes": {"sent": 3},
        "merger": {"merged": 9, "dropped": 4}, "bytes_written": 1,
    }  # fmt: skip
    leads = bool(changed.get("leads"))
    group |= {field: changed.pop(field) for field in list(changed) if field in group}
    status = {
        "state": "running", "pid": 1, "started_at": NOW_MS - 30_000, "written_at": NOW_MS - 1_000,
        "version": 7 if leads else 6, "learned": 400, "learned_from": 100, "untrained": 0, "duplicates": 2,
        "dead_letters": {"tombstone": 1}, "users": 24, "items": 40, "scored": 100, "events_per_s": 12.0,
        "lag": 10, "lag_s": 0.5, "lag_of": {f"clicks:{n}": n + 1 for n in range(4)},
        "lag_s_of": dict.fromkeys((f"clicks:{n}" for n in range(4)), 0.5),
        "recent": {"served": {"hit@10": 0.1 * (int(name[-1]) + 1), "ndcg@10": 0.1}},
        "scores": {"served": {"hit@10": 0.3, "ndcg@10": 0.2}}, "click_to_list_ms": {"p50": 20.0, "p99": None},
        "alarms": 1 if leads else 0, "improvements": 0, "loss": 3.0, "finetune": {"state": "idle", "done": int(leads)},
        "checkpoint": None, "flagged": {"rate": 9}, "lists_fenced": 2, "refreshes": 5, "lists_behind": 0,
        "redis": "ok", "problems": [], "versions": [f"those of {name}"], "notices": [], "memory_mb_max": 300.0,
        "positions": {"clicks:0": 100}, "group": group, "waits_for": [],
    }  # fmt: skip
    return status | changed


def group_statuses(**changed: Any) -> dict[str, dict[str, Any]]:
    """Those of three workers, of which the first leads and owns two partitions; `changed` in all of them."""
    first = {"leads": True, "leader_epoch": 5, "learned_from": 200, **changed}
    return {
        "w-1": status_of("w-1", [0, 1], **first),
        "w-2": status_of("w-2", [2], **changed),
        "w-3": status_of("w-3", [3], **changed),
    }
