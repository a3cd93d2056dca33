"""Joins clicks to logged impressions: the rewards of a log that was written when nothing was clicked yet.

An item of a list earns 1 if its user clicked it within the attribution window after the list was shown, otherwise 0. A
record that has rewards of its own keeps them. What tells nothing of another policy is left out, and said.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stream.events import Click
from stream.impressions import Impression

#: Why records are left out, in words for a report; in the order in which it is asked.
_NO_PROPENSITIES = "have no propensities"
_CERTAIN = "could show nothing else (not explored, each propensity is 1)"
_NO_USER = "have neither rewards nor a user whose clicks could be joined"
_TWICE = "repeat a request_id"


@dataclass(frozen=True)
class JoinedLog:
    """`rows` as `policy_log.load` takes them, a record each; `remarks` say what was left out and what is assumed."""

    rows: list[dict[str, Any]]
    remarks: list[str]


def join(impressions: Iterable[Impression], clicks: Iterable[Click], *, attribution_s: float) -> JoinedLog:
    """Joins clicks to impressions.

    Args:
        impressions: of any order; all that can be evaluated are held in memory.
        clicks: of any order; they are read one by one.
        attribution_s: how long after a list a click on one of its items counts as its reward, in seconds.
    """
    kept, left_out = _kept(impressions)
    remarks = [
        f"{count:,} of {left_out.total() + len(kept):,} lists {why}: left out" for why, count in left_out.items()
    ]
    waiting = [one for one in kept if not _is_rewarded(one)]
    if not waiting:
        return JoinedLog([one.model_dump(mode="json") for one in kept], remarks)
    rewarded, latest = _rewarded(waiting, clicks, attribution_s)
    rows = []
    for one in kept:
        row = one.model_dump(mode="json")
        if not _is_rewarded(one):
            for item in row["items"]:
                item["reward"] = float((one.request_id, item["item_id"]) in rewarded)
        rows.append(row)
    minutes = f"{attribution_s / 60:g} minutes"
    remarks.append(f"{len(rewarded):,} items of {len(waiting):,} lists were clicked within {minutes}: reward 1")
    open_lists = sum(latest - one.timestamp < attribution_s for one in waiting)
    if open_lists:
        remarks.append(f"{open_lists:,} lists are so recent that clicks on them may still come: taken as not clicked")
    return JoinedLog(rows, remarks)


def _kept(impressions: Iterable[Impression]) -> tuple[list[Impression], Counter[str]]:
    """The records that can be evaluated, and how many cannot, by reason."""
    kept: list[Impression] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for one in impressions:
        why = _why_not(one, seen)
        seen.add(one.request_id)
        if why is None:
            kept.append(one)
        else:
            left_out[why] += 1
    return kept, left_out


def _why_not(one: Impression, seen: set[str]) -> str | None:
    propensities = [item.propensity for item in one.items]
    if None in propensities:
        return _NO_PROPENSITIES
    if not one.explored and set(propensities) == {1.0}:
        return _CERTAIN
    if one.user_id is None and not _is_rewarded(one):
        return _NO_USER
    return _TWICE if one.request_id in seen else None


def _is_rewarded(one: Impression) -> bool:
    return any(item.reward is not None for item in one.items)


def _rewarded(
    waiting: list[Impression], clicks: Iterable[Click], attribution_s: float
) -> tuple[set[tuple[str, str]], float]:
    """Which items of which requests were clicked in time, and the time of the latest click, in seconds since 1970."""
    shown: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for one in waiting:
        for item in one.items:
            shown[one.user_id or "", item.item_id].append((one.timestamp, one.request_id))
    for lists in shown.values():
        lists.sort()
    found: set[tuple[str, str]] = set()
    latest = float("-inf")
    for click in clicks:
        latest = max(latest, click.timestamp)
        lists = shown.get((click.user_id, click.item_id), [])
        first = bisect_left(lists, click.timestamp - attribution_s, key=lambda one: one[0])
        last = bisect_right(lists, click.timestamp, key=lambda one: one[0])
        found.update((request_id, click.item_id) for _, request_id in lists[first:last])
    return found, latest
