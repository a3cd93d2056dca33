"""The ranker's inputs: one table, for people and for the code. Its order is the order of the columns.

"The person" is whom a list is for, "the item" the candidate, "the last item" the person's latest click.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Feature(NamedTuple):
    """One input of the ranker."""

    name: str
    meaning: str
    unit: str
    transformation: str  # x: what was counted
    start: float = 0.0  # the ranker's linear weight before anything is learned


COUNTED = (
    Feature("followed_last", "times the item followed the last item", "clicks", "log(1 + x)", 1.0),
    Feature("share_last", "its share of the last item's followers", "0 to 1", "x / (1 + all)", 2.0),
    Feature("followed_before", "times it followed the item before the last, one between", "clicks", "log(1 + x)", 0.3),
    Feature("share_before", "its share of those", "0 to 1", "x / (1 + all)"),
    Feature("followed_third", "times it came 3 to 5 clicks after the third last item", "clicks", "log(1 + x)", 0.2),
    Feature("preceded_last", "times it preceded the last item", "clicks", "log(1 + x)"),
    Feature("preceded_rate", "the same, by how often it is clicked", "log clicks", "log(1 + x) / (1 + clicks)"),
    Feature(
        "near", "times near the latest items, 0.85^age, by the roots of popularities", "", "log(x + 0.001) + 7", 0.5
    ),
    Feature("near_share", "the same, relative to the best candidate", "0 to 1", "x", 1.0),
    Feature("own_times", "times the person clicked it", "clicks", "log(1 + x)", 0.6),
    Feature(
        "own_share", "the same, relative to the person's clicks", "log clicks", "own_times / (1 + log(1 + clicks))"
    ),
    Feature("own_decayed", "the same, less with each click since", "clicks", "√x · 0.98^clicks since", 0.6),
    Feature("own_age", "the person's clicks since, 0 if never", "clicks", "log(1 + x)"),
    Feature("own_elapsed", "time since the person clicked it, 0 if never", "seconds", "log(1 + x) / 4"),
    Feature(
        "own_rhythm",
        "that time, and the mean time between the person's clicks on it",
        "seconds",
        "log((x + 60) / (mean + 60)), 0 if clicked once",
    ),
    Feature("own_ever", "whether the person clicked it", "0 or 1", "x", 0.3),
    Feature("own_length", "own_ever · history", "log clicks", "x"),
    Feature("is_last", "whether it is the last item", "0 or 1", "x"),
    Feature("is_before", "whether it is the item before the last", "0 or 1", "x"),
    Feature("clicks", "clicks on it ever", "clicks", "log(1 + x) / 4"),
    Feature("elapsed", "time since anybody clicked it", "seconds", "log(1 + x) / 4"),
    Feature("lifetime", "time since its first click", "seconds", "log(1 + x) / 4"),
    Feature("history", "clicks of the person that are held", "clicks", "log(1 + x) / 4"),
    Feature("gap", "time since the person's last click", "seconds", "log(1 + x) / 4"),
    Feature("last_clicks", "clicks that followed the last item", "clicks", "log(1 + x) / 4"),
)
PARTS = ("last", "before", "hour", "weekday", "gap", "state")  # of a moment's key: see online/ranking/moments.py
OWN_HEADS = (  # gains of the parts at the start; the state's are 0: a new part is silent, and let in by learning
    (8.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (6.0, 6.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 4.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 4.0, 2.0, 0.0, 0.0),
    (6.0, 0.0, 2.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 4.0, 0.0),
)
WORLD_HEADS = (  # what the world's memory finds mostly has the same last item, but need not
    (8.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (8.0, 6.0, 0.0, 0.0, 0.0, 0.0),
    (8.0, 0.0, 4.0, 0.0, 0.0, 0.0),
    (8.0, 3.0, 2.0, 2.0, 1.0, 0.0),
    (8.0, 3.0, 0.0, 0.0, 2.0, 0.0),
    (8.0, 0.0, 0.0, 0.0, 4.0, 0.0),
)
OWN_STARTS, WORLD_STARTS = (0.3, 0.3), (0.2, 0.2)  # of the first heads; the others begin at 0
SURPRISE = Feature("surprise", "clicks on it, by what the ranker expected", "clicks", "log((x + 2) / (expected + 2))")
NETWORK = Feature("network", "the Reformer's state · the item's vector + the item's bias", "logit", "x")


def features(half_lives: Sequence[int]) -> tuple[Feature, ...]:
    """All inputs, with one of popularity for each half-life."""
    popular = [
        Feature(f"popularity_{n}", f"clicks on it, each halved for every {n} later ones", "clicks", "log(1 + x)", 0.1)
        for n in half_lives
    ]
    return (
        *COUNTED,
        *popular,
        SURPRISE,
        *_heads("own", OWN_HEADS, OWN_STARTS),
        *_heads("world", WORLD_HEADS, WORLD_STARTS),
        NETWORK,
    )


def _heads(whose: str, heads: Sequence[Sequence[float]], starts: Sequence[float]) -> list[Feature]:
    found = []
    for number, gains in enumerate(heads):
        parts = ", ".join(f"{part} {gain:g}" for part, gain in zip(PARTS, gains, strict=True) if gain)
        start = starts[number] if number < len(starts) else 0.0
        meaning = f"moments that point at it, alike in (gains at the start): {parts}"
        found.append(Feature(f"{whose}_{number + 1}", meaning, "soft count", "log(1 + x)", start))
    return found
