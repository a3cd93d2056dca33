"""A backtest's figures by parts of the stream: event types, value, new items, baskets; and how well scores are
calibrated. A part that a stream has nothing of is left out.

Letters: `n` events, `N` events that are scored.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from online.evaluation import calibration
from online.evaluation.backtest import ABLATIONS, AS_SERVED, NEXTCLICK, ONE_OBJECTIVE, USERS_ABLATIONS, Outcome, Ranks
from online.evaluation.backtest_report import NEW, best_counting
from online.metrics import hit_and_ndcg_at

FIRST = 10  # clicks of an item that count as early ones
_ROUNDED = 5  # digits
_BASKETS_TOLD = 0.01  # share of the scored lines that are further lines of a basket, from which that is said


def breakdown(outcome: Outcome) -> dict[str, Any]:
    """Figures as a JSON object; each part has its number of scored events.

    `by_event_type`: of streams with several. `value`: where events have one; `value@10` is the sum of the values of
    hits over that of all, NDCG@10 is weighted by positive values. `first_10_of_item`: events among their item's first
    ten. `first_of_item`: events on items that never occurred before; a method that cannot list such an item misses.
    `first_3_of_user`: events among their user's first three. `calibration`: of learners, on request. `heads`: how well
    event types and values are predicted, where the clicked item was a candidate. `returned_after_a_week`: share of
    items that stand in the list of the user who gave them back, a week later. `baskets`: how lines of one user at one
    time are scored. `compared_with`: its NDCG@10 over that of each other method on the same events, with a standard
    error in which clicks of one user may depend on each other.
    """
    facts = outcome.facts
    counted = facts.counted
    types, values = facts.types[counted], facts.values[counted]
    found: dict[str, Any] = {}
    if len(facts.type_names) > 1:
        found["by_event_type"] = {name: _part(outcome, types == number) for number, name in enumerate(facts.type_names)}
    if np.isfinite(values).any():
        found["value"] = _by_value(outcome, values)
    earlier = facts.earlier_of_item[counted]
    found["first_10_of_item"] = _part(outcome, earlier < FIRST)
    found["first_of_item"] = _part(outcome, earlier == 0)
    found["first_3_of_user"] = _part(outcome, facts.earlier_of_user[counted] < NEW)
    found["baskets"] = {
        "scoring": outcome.baskets,
        "further_lines": int(facts.further[facts.first_scored :].sum()),
        "left_out": len(facts.users) - facts.first_scored - facts.scored,
    }
    found["compared_with"] = _ratios(outcome)
    curves = {
        name: calibration.figures(curve) | _among_candidates(outcome, name)
        for name, curve in curves_of(outcome).items()
    }
    found |= {"calibration": curves} if curves else {}
    return found | _worth(outcome)


def _worth(outcome: Outcome) -> dict[str, Any]:
    """How well event types and values are predicted, and what became of items that were given back."""
    facts = outcome.facts
    found: dict[str, Any] = {}
    types = [facts.type_names[kind] for kind in facts.types.tolist()]
    of_heads = {
        name: result.predicted.figures(types, facts.values, facts.counted)
        for name, result in outcome.results.items()
        if result.predicted is not None
    }
    returned = {
        name: result.returned.figures()
        for name, result in outcome.results.items()
        if result.returned is not None and result.returned.looked
    }
    found |= {"heads": of_heads} if of_heads else {}
    return found | ({"returned_after_a_week": returned} if returned else {})


def _among_candidates(outcome: Outcome, name: str) -> dict[str, float]:
    """The error over clicks whose item was a candidate: shares say how likely an item is if one of them is clicked."""
    result = outcome.results[name]
    assert result.first_items is not None
    inside = outcome.facts.counted & (True if result.among_candidates is None else result.among_candidates)
    curve = calibration.reliability(result.first_items.shares[inside], result.first_items.clicked[inside])
    return {"expected_calibration_error_among_candidates": round(curve.error, _ROUNDED)}


def curves_of(outcome: Outcome) -> dict[str, calibration.Reliability]:
    """The reliability curve of each learner over the scored events."""
    counted = outcome.facts.counted
    return {
        name: calibration.reliability(result.first_items.shares[counted], result.first_items.clicked[counted])
        for name, result in outcome.results.items()
        if result.first_items is not None
    }


def _part(outcome: Outcome, inside: NDArray[np.bool_]) -> dict[str, Any]:
    """Figures over some of the scored events (N,); a method has none where there is no event."""
    users = outcome.facts.users[outcome.facts.counted][inside]
    methods = {method: _figures(outcome.scored(method)[inside], users) for method in outcome.ranks}
    return {"scored": int(inside.sum()), "methods": methods}


def _figures(ranks: Ranks, users: NDArray[np.int64]) -> dict[str, float]:
    if not len(ranks):
        return {}
    hit, ndcg = hit_and_ndcg_at(ranks)
    return {
        "hit@10": _round(hit.mean()),
        "ndcg@10": _round(ndcg.mean()),
        "ndcg@10_se": _round(clustered_error(ndcg, users)),
    }


def _ratios(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Of paired events: the error is that of a ratio of means (linearised: Cochran 1977, section 6.4)."""
    if NEXTCLICK not in outcome.ranks:
        return {}
    users = outcome.facts.users[outcome.facts.counted]
    gains = {method: hit_and_ndcg_at(outcome.scored(method))[1] for method in outcome.ranks}
    ours, found = gains.pop(NEXTCLICK), {}
    for method, theirs in gains.items():
        if (mean := float(theirs.mean())) > 0:
            ratio = float(ours.mean()) / mean
            error = clustered_error(ours - ratio * theirs, users) / mean
            found[method] = {"ndcg@10": _round(ratio), "ndcg@10_se": _round(error)}
    return found


def clustered_error(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> float:
    """The standard error of a mean, where values of one cluster (here: a user) may depend on each other."""
    _, numbers = np.unique(clusters, return_inverse=True)
    sums = np.bincount(numbers, values - values.mean())
    few = len(sums) / max(1, len(sums) - 1)
    return float(np.sqrt(few * (sums**2).sum()) / len(values))


def _by_value(outcome: Outcome, values: NDArray[np.float64]) -> dict[str, Any]:
    """Events without a value are left out, and counted."""
    valued = np.isfinite(values)
    values = values[valued]
    weights = np.maximum(values, 0.0)
    methods: dict[str, dict[str, float | None]] = {}
    for method in outcome.ranks:
        hit, ndcg = hit_and_ndcg_at(outcome.scored(method)[valued])
        methods[method] = {
            "value@10": _ratio((hit * values).sum(), values.sum()),
            "ndcg@10_by_value": _ratio((ndcg * weights).sum(), weights.sum()),
        }
    return {
        "scored": int(valued.sum()),
        "without_value": int((~valued).sum()),
        "negative": int((values < 0).sum()),
        "sum": _round(values.sum()),
        "methods": methods,
    }


def _ratio(above: float, below: float) -> float | None:
    """None where the whole is not positive, and shares of it mean nothing."""
    return _round(above / below) if below > 0 else None


def _round(value: Any) -> float:
    return round(float(value), _ROUNDED)


def breakdown_table(found: dict[str, Any], *, new_items: bool = False, new_users: bool = False) -> Table | None:
    """NDCG@10 of the parts, for a terminal of 80 columns; None where there is nothing but new items.

    Args:
        found: what the whole report found.
        new_items: whether these are worth a table by themselves.
        new_users: likewise, of new users.
    """
    wanted = (NEXTCLICK, AS_SERVED, ONE_OBJECTIVE, *USERS_ABLATIONS, best_counting(found["methods"]))
    names = [name for name in wanted if name is not None and name in found["methods"]]
    parts = {f"of type {name}": part for name, part in found.get("by_event_type", {}).items()}
    value = found.get("value")
    if not (parts or value or new_items or new_users):
        return None
    if new_users:
        parts["first 3 of a user"] = found["first_3_of_user"]
    parts |= {"first 10 of an item": found["first_10_of_item"], "first of an item": found["first_of_item"]}
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    view.add_column("NDCG@10 (std. error)")
    view.add_column("scored", justify="right", no_wrap=True)
    for name in names:
        view.add_column(name.removeprefix(f"{NEXTCLICK}-"), justify="right", no_wrap=True)
    for label, part in parts.items():
        view.add_row(label, f"{part['scored']:,}", *(_cell(part["methods"][name]) for name in names))
    if value:
        for key, label in (("ndcg@10_by_value", "weighted by value"), ("value@10", "value in hits@10")):
            cells = (value["methods"][name][key] for name in names)
            shown = ("-" if cell is None else f"{cell:.4f}" for cell in cells)
            view.add_row(label, f"{value['scored']:,}", *shown)
    return view


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['ndcg@10']:.4f} ({figures['ndcg@10_se']:.4f})" if figures else "-"


def breakdown_remarks(found: dict[str, Any]) -> list[str]:
    """Lines that go below the table."""
    lines = []
    baskets, value = found["baskets"], found.get("value")
    if baskets["scoring"] == "first":
        lines.append(
            f"baskets: the first line of each is scored; {baskets['left_out']:,} further lines are learned, not scored"
        )
    elif baskets["further_lines"] >= max(1.0, _BASKETS_TOLD * found["scored"]):
        lines.append(
            f"baskets: {baskets['further_lines']:,} scored lines have the user and time of an earlier one; "
            "--baskets first leaves them out of scoring"
        )
    if value and (value["without_value"] or value["negative"]):
        lines.append(
            f"of the scored clicks {value['without_value']:,} have no value and {value['negative']:,} a negative one"
        )
    lines += [
        f"nextclick / {method}: NDCG@10 {ratio['ndcg@10']:.4f} (std. error {ratio['ndcg@10_se']:.4f})"
        for method, ratio in found["compared_with"].items()
        if method in ABLATIONS
    ]
    for heads in list(found.get("heads", {}).values())[:1]:
        lines += [
            f"calibration error of the chance of {name}: {head['expected_calibration_error']:.3f} (mean "
            f"{head['mean_predicted']:.3f}, true {head['share']:.3f})"
            for name, head in heads.items()
            if name != "value" and head["share"] is not None
        ]
        if value_head := heads.get("value"):
            lines.append(f"mean predicted value: {value_head['mean_predicted']:.4g}, true {value_head['mean']:.4g}")
    lines += [
        f"items given back, in the same user's list a week later ({name}): {one['in_first_10']:.1%} in the first 10, "
        f"{one['in_list']:.1%} in the list, of {one['returns']:,}"
        for name, one in found.get("returned_after_a_week", {}).items()
    ]
    for name, curve in list(found.get("calibration", {}).items())[:1]:
        of_all, of_some = (curve[f"expected_calibration_error{which}"] for which in ("", "_among_candidates"))
        lines.append(
            f"calibration error of {name}'s first item: {of_all:.3f}; {of_some:.3f} where the clicked item was a "
            "candidate"
        )
    return lines
