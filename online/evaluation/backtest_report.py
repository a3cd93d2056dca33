"""What a backtest found, as JSON and as a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from online.evaluation import baselines
from online.evaluation.backtest import AS_SERVED, COUNTING, NEXTCLICK, Outcome, Ranks
from online.metrics import hit_and_ndcg_at

NEW = 3  # a user's first clicks, and an item's clicks after its first one, that count as new
SINGLE = tuple(method for method in baselines.METHODS if method != "blend")  # count one thing each
TENTHS = 10  # parts of the scored events, one after the other
_HISTORY_FROM = (0, 1, 3, 10, 30, 100, 300)  # earlier clicks, where each bucket begins


class Bucket(NamedTuple):
    """Events of users with so many earlier clicks."""

    at_least: int
    at_most: int | None  # None: any number

    @property
    def label(self) -> str:
        if self.at_most is None:
            return f"{self.at_least}+"
        return str(self.at_least) if self.at_least == self.at_most else f"{self.at_least} to {self.at_most}"


BUCKETS = tuple(
    Bucket(start, None if after is None else after - 1)
    for start, after in zip(_HISTORY_FROM, (*_HISTORY_FROM[1:], None), strict=True)
)


def report(outcome: Outcome) -> dict[str, Any]:
    """Everything as a JSON object. Means are over the scored events; rounded to five digits.

    `methods`: over all of them. `per_user`: over each user's mean. `new_users`: each user's first three clicks.
    `new_items`: clicks on items that had one to three before. `by_history`: by the user's earlier clicks. `by_tenth`:
    of the scored events, in order; `until` counts all events up to the end of each. `never_seen`: share of clicks on
    items that never occurred before, which no method can predict. `among_candidates`: share of clicks whose item was
    among the learner's candidates. `times_best_counting`: NDCG@10 of nextclick over that of the best method that
    counts one thing.
    """
    facts = outcome.facts
    scored = facts.counted
    user_clicks, item_clicks = facts.earlier_of_user[scored], facts.earlier_of_item[scored]
    found: dict[str, Any] = {
        "events": len(facts.users),
        "scored": facts.scored,
        "users": int(facts.users.max()) + 1,
        "items": int(facts.items.max()) + 1,
        "exclude_seen": outcome.exclude_seen,
        "methods": {method: _means(outcome.scored(method)) for method in outcome.ranks},
        "per_user": {method: _means_of_means(outcome.scored(method), facts.users[scored]) for method in outcome.ranks},
        "new_users": _group(outcome, user_clicks < NEW),
        "new_items": _group(outcome, (item_clicks >= 1) & (item_clicks <= NEW)),
        "by_history": [
            {"at_least": bucket.at_least, "at_most": bucket.at_most} | _group(outcome, _inside(user_clicks, bucket))
            for bucket in BUCKETS
        ],
        "by_tenth": _by_tenth(outcome),
        "never_seen": _share(item_clicks == 0),
        "among_candidates": {
            name: _share(result.among_candidates[scored])
            for name, result in outcome.results.items()
            if result.among_candidates is not None
        },
        "events_per_s": round(len(facts.users) / outcome.seconds, 1),
        "seconds": {name: round(result.seconds, 2) for name, result in outcome.results.items()}
        | {"all": round(outcome.seconds, 2)},
    }
    return found | _comparisons(outcome, found["methods"])


def _comparisons(outcome: Outcome, methods: dict[str, dict[str, float]]) -> dict[str, Any]:
    events = len(outcome.facts.users)
    found: dict[str, Any] = {}
    best = best_counting(methods)
    if best is not None and NEXTCLICK in methods:
        found |= {"best_counting": best, "times_best_counting": _ratio(methods, NEXTCLICK, best)}
    if AS_SERVED in methods:
        result = next(one for one in outcome.results.values() if AS_SERVED in one.ranks)
        found["refreshes_per_click"] = round(result.refreshes / events, 3)
    if {NEXTCLICK, AS_SERVED} <= set(methods):
        found["served_to_request"] = _ratio(methods, AS_SERVED, NEXTCLICK)
    learned = [result for name, result in outcome.results.items() if name != COUNTING]
    if learned:
        found["clicks_per_batch"] = round(events / learned[0].batches, 1)
    return found


def best_counting(methods: dict[str, dict[str, float]]) -> str | None:
    """The best by NDCG@10 of those that count one thing; None where none was run."""
    single = [method for method in SINGLE if method in methods]
    return max(single, key=lambda method: methods[method]["ndcg@10"], default=None)


def _means(ranks: Ranks) -> dict[str, float]:
    hit, ndcg = hit_and_ndcg_at(ranks)
    return {"hit@10": _round(hit.mean()), "ndcg@10": _round(ndcg.mean())} if len(ranks) else {}


def _means_of_means(ranks: Ranks, users: NDArray[np.int64]) -> dict[str, float]:
    _, numbers, clicks = np.unique(users, return_inverse=True, return_counts=True)
    names = ("hit@10", "ndcg@10")
    both = zip(names, hit_and_ndcg_at(ranks), strict=True)
    return {name: _round((np.bincount(numbers, values) / clicks).mean()) for name, values in both}


def _group(outcome: Outcome, inside: NDArray[np.bool_]) -> dict[str, Any]:
    """Figures over some of the scored events; a method has none where there is no event."""
    methods = {method: _means(outcome.scored(method)[inside]) for method in outcome.ranks}
    return {"scored": int(inside.sum()), "methods": methods}


def _by_tenth(outcome: Outcome) -> list[dict[str, Any]]:
    numbers = np.flatnonzero(outcome.facts.counted)
    parts = np.array_split(np.arange(len(numbers)), TENTHS)
    inside = np.arange(len(numbers))
    return [
        {"until": int(numbers[part[-1]]) + 1} | _group(outcome, (inside >= part[0]) & (inside <= part[-1]))
        for part in parts
        if len(part)
    ]


def _inside(clicks: NDArray[np.int64], bucket: Bucket) -> NDArray[np.bool_]:
    return (clicks >= bucket.at_least) & (clicks <= (np.inf if bucket.at_most is None else bucket.at_most))


def _share(which: NDArray[np.bool_]) -> float:
    return _round(which.mean())


def _ratio(methods: dict[str, dict[str, float]], above: str, below: str) -> float | None:
    """None where there is nothing to compare with."""
    other = methods[below]["ndcg@10"]
    return round(methods[above]["ndcg@10"] / other, 4) if other else None


def _round(value: Any) -> float:
    return round(float(value), 5)


def table(found: dict[str, Any]) -> Table:
    """The figures of `report` for a terminal of 80 columns."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    view.add_column("", no_wrap=True)
    for name in ("hit@10", "NDCG@10", "to best", "new users", "new items"):
        view.add_column(name, justify="right", no_wrap=True)
    methods = found["methods"]
    best = best_counting(methods)
    for method, figures in methods.items():
        times = _ratio(methods, method, best) if best else None
        cells = [
            f"{figures['hit@10']:.4f}",
            f"{figures['ndcg@10']:.4f}",
            "" if times is None else f"{times:.2f}",
            *(_cell(found[part]["methods"][method]) for part in ("new_users", "new_items")),
        ]
        style = "bold" if method == NEXTCLICK else "" if method.startswith(NEXTCLICK) else "dim"
        view.add_row(method, *cells, style=style, end_section=method == _last_of_ours(list(methods)))
    return view


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['ndcg@10']:.4f}" if figures else "-"


def _last_of_ours(methods: Sequence[str]) -> str | None:
    return next((method for method in reversed(methods) if method.startswith(NEXTCLICK)), None)


def remarks(found: dict[str, Any]) -> list[str]:
    """Lines that go below the table."""
    lines = [
        f"{found['scored']:,} of {found['events']:,} clicks scored, by {found['users']:,} users on "
        f"{found['items']:,} items; {found['never_seen']:.1%} on items never seen before",
    ]
    if found["among_candidates"]:
        lines.append(f"the clicked item was a candidate in {next(iter(found['among_candidates'].values())):.1%}")
    if found.get("served_to_request") is not None:
        share, refreshes = found["served_to_request"], found["refreshes_per_click"]
        lines.append(f"as served / on request: {share:.3f}, with {refreshes:.2f} refreshes a click")
    if found.get("times_best_counting") is not None:
        lines.append(f"to best: NDCG@10 over that of {found['best_counting']}, the best method that counts one thing")
    lines.append(f"{found['events_per_s']:,.0f} events/s, all methods together ({found['seconds']['all']:,.0f} s)")
    return lines
