"""The ranker's inputs: each is declared here once, with the function that fills its column. Their order is the order of
the columns.

"The user" is the one whose list it is, "the item" the candidate, "the last item" the user's latest click.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.items import Items
from online.learner.facts.jit import called, kernel

OWN_DECAY = 0.98


Value = Any  # a float, of whichever width numba makes of it


class RawFeatures(NamedTuple):
    """What was gathered of the candidates of one query, (C,) each; the buffers are reused."""

    rows: NDArray[np.int32]
    first: NDArray[np.float32]  # counts in the tables of its latest items
    second: NDArray[np.float32]
    third: NDArray[np.float32]
    before: NDArray[np.float32]
    near: NDArray[np.float32]
    taste: NDArray[np.float32]
    times: NDArray[np.float32]  # clicks of the user on it
    newest: NDArray[np.int32]  # the user's clicks since the latest of these
    newest_at: NDArray[np.float64]  # seconds, of the latest and the first of these
    oldest_at: NDArray[np.float64]


class QueryContext(NamedTuple):
    """The user's part of one query, and its time."""

    last: int  # rows of the latest two clicks; 0: none
    before: int
    log_length: float  # log(1 + clicks held)
    gap: float  # log(1 + seconds since the latest click)
    now: float  # seconds since 1970
    active: float  # active time then (online/learner/stream_time.py), for what ages with the stream
    first_total: float  # clicks that followed the last item
    second_total: float
    log_first_total: float
    near_most: Value  # float32, the largest count near the latest items
    taste_most: Value  # float32, the same of what suits the taste


Fill = Callable[[RawFeatures, int, QueryContext, Items], Value]


class Feature(NamedTuple):
    """One input of the ranker."""

    name: str
    meaning: str
    unit: str
    transformation: str  # x: what was counted
    start: float = 0.0  # the ranker's linear weight before anything is learned
    fill: Fill | None = None  # its column's values; None: filled when it is scored, since it follows what is learned
    timed: bool = False  # whether it depends on the moment at which the list is looked at


LOGS = np.log1p(np.arange(1024, dtype=np.float32))  # most of what is counted is a small whole number


@called
def _log1p(x: Value) -> Value:
    """log(1 + x), and 0 for what is less than 0."""
    x = np.float32(x)
    if not x > 0:
        return np.float32(0)
    whole = np.int64(x) if x < len(LOGS) else 0
    return LOGS[whole] if np.float32(whole) == x else math.log1p(x)


@called
def _followed_last(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.first[c])


@called
def _share_last(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return raw.first[c] / (context.first_total + 1)


@called
def _followed_before(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.second[c])


@called
def _share_before(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return raw.second[c] / (context.second_total + 1)


@called
def _followed_third(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.third[c])


@called
def _preceded_last(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.before[c])


@called
def _preceded_rate(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.before[c]) / (1 + _log1p(items.clicks[raw.rows[c]]) / 4) if raw.before[c] > 0 else 0.0


@called
def _near(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return math.log(raw.near[c] + np.float32(1e-3)) + 7


@called
def _near_share(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return raw.near[c] / (context.near_most + 1e-6)


@called
def _taste(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return math.log(raw.taste[c] + np.float32(1e-3)) + 7


@called
def _taste_share(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return raw.taste[c] / (context.taste_most + 1e-6)


@called
def _own_times(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.times[c])


@called
def _own_share(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.times[c]) / (context.log_length + 1)


@called
def _own_decayed(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return math.sqrt(raw.times[c]) * OWN_DECAY ** raw.newest[c] if raw.times[c] > 0 else 0.0


@called
def _own_age(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(raw.newest[c]) if raw.times[c] > 0 else 0.0


@called
def _own_elapsed(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(max(0.0, context.now - raw.newest_at[c])) / 4 if raw.times[c] > 0 else 0.0


@called
def _own_rhythm(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    if raw.times[c] <= 1:
        return 0.0
    elapsed = max(0.0, context.now - raw.newest_at[c])
    mean = max(0.0, raw.newest_at[c] - raw.oldest_at[c]) / (raw.times[c] - 1)
    return math.log((elapsed + 60) / (mean + 60))


@called
def _own_ever(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return 1.0 if raw.times[c] > 0 else 0.0


@called
def _own_length(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return context.log_length / 4 if raw.times[c] > 0 else 0.0


@called
def _is_last(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return 1.0 if raw.rows[c] == context.last else 0.0


@called
def _is_before(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return 1.0 if raw.rows[c] == context.before else 0.0


@called
def _clicks(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return _log1p(items.clicks[raw.rows[c]]) / 4


@called
def _elapsed(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:
    return _log1p(max(0.0, context.active - items.last_at[raw.rows[c]])) / 4


@called
def _lifetime(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:
    return _log1p(max(0.0, context.active - items.first_at[raw.rows[c]])) / 4


@called
def _history(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return context.log_length / 4


@called
def _gap(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return context.gap / 4


@called
def _last_clicks(raw: RawFeatures, c: int, context: QueryContext, items: Items) -> Value:  # noqa: ARG001
    return context.log_first_total / 4


COUNTED = (
    Feature("followed_last", "times the item followed the last item", "clicks", "log(1 + x)", 1.0, fill=_followed_last),
    Feature("share_last", "its share of the last item's followers", "0 to 1", "x / (1 + all)", 2.0, fill=_share_last),
    Feature(
        "followed_before",
        "times it followed the item before the last, one between",
        "clicks",
        "log(1 + x)",
        0.3,
        fill=_followed_before,
    ),
    Feature("share_before", "its share of those", "0 to 1", "x / (1 + all)", fill=_share_before),
    Feature(
        "followed_third",
        "times it came 3 to 5 clicks after the third last item",
        "clicks",
        "log(1 + x)",
        0.2,
        fill=_followed_third,
    ),
    Feature("preceded_last", "times it preceded the last item", "clicks", "log(1 + x)", fill=_preceded_last),
    Feature(
        "preceded_rate",
        "the same, by how often it is clicked",
        "log clicks",
        "log(1 + x) / (1 + clicks)",
        fill=_preceded_rate,
    ),
    Feature(
        "near",
        "times near the latest items, 0.8^age, by the roots of popularities",
        "",
        "log(x + 0.001) + 7",
        0.5,
        fill=_near,
    ),
    Feature("near_share", "the same, relative to the best candidate", "0 to 1", "x", 1.0, fill=_near_share),
    Feature("own_times", "times the user clicked it", "clicks", "log(1 + x)", 0.6, fill=_own_times),
    Feature(
        "own_share",
        "the same, relative to the user's clicks",
        "log clicks",
        "own_times / (1 + log(1 + clicks))",
        fill=_own_share,
    ),
    Feature(
        "own_decayed",
        "the same, less with each click since",
        "clicks",
        "√x · 0.98^clicks since",
        0.6,
        fill=_own_decayed,
    ),
    Feature("own_age", "the user's clicks since, 0 if never", "clicks", "log(1 + x)", fill=_own_age),
    Feature(
        "own_elapsed",
        "time since the user clicked it, 0 if never",
        "seconds",
        "log(1 + x) / 4",
        fill=_own_elapsed,
        timed=True,
    ),
    Feature(
        "own_rhythm",
        "that time, and the mean time between the user's clicks on it",
        "seconds",
        "log((x + 60) / (mean + 60)), 0 if clicked once",
        fill=_own_rhythm,
        timed=True,
    ),
    Feature("own_ever", "whether the user clicked it", "0 or 1", "x", 0.3, fill=_own_ever),
    Feature("own_length", "own_ever · history", "log clicks", "x", fill=_own_length),
    Feature("is_last", "whether it is the last item", "0 or 1", "x", fill=_is_last),
    Feature("is_before", "whether it is the item before the last", "0 or 1", "x", fill=_is_before),
    Feature("clicks", "clicks on it ever", "clicks", "log(1 + x) / 4", fill=_clicks),
    Feature("elapsed", "time since any user clicked it", "seconds", "log(1 + x) / 4", fill=_elapsed, timed=True),
    Feature("lifetime", "time since its first click", "seconds", "log(1 + x) / 4", fill=_lifetime, timed=True),
    Feature("history", "clicks of the user that are held", "clicks", "log(1 + x) / 4", fill=_history),
    Feature("gap", "time since the user's last click", "seconds", "log(1 + x) / 4", fill=_gap, timed=True),
    Feature(
        "taste",
        "times near the latest 64 items, 0.97^age, by the roots of popularities",
        "",
        "log(x + 0.001) + 7",
        0.1,
        fill=_taste,
    ),
    Feature("taste_share", "the same, relative to the best candidate", "0 to 1", "x", 0.2, fill=_taste_share),
    Feature("last_clicks", "clicks that followed the last item", "clicks", "log(1 + x) / 4", fill=_last_clicks),
)
COLUMNS = {feature.name: column for column, feature in enumerate(COUNTED)}


@kernel
def fill_columns(raw: RawFeatures, count: int, context: QueryContext, items: Items, out: NDArray[np.float32]) -> None:
    """Fills out (C, F) with the counted features of `count` candidates: first COUNTED's columns, then popularity's."""
    for c in range(count):
        x = out[c]
        x[0] = _followed_last(raw, c, context, items)
        x[1] = _share_last(raw, c, context, items)
        x[2] = _followed_before(raw, c, context, items)
        x[3] = _share_before(raw, c, context, items)
        x[4] = _followed_third(raw, c, context, items)
        x[5] = _preceded_last(raw, c, context, items)
        x[6] = _preceded_rate(raw, c, context, items)
        x[7] = _near(raw, c, context, items)
        x[8] = _near_share(raw, c, context, items)
        x[9] = _own_times(raw, c, context, items)
        x[10] = _own_share(raw, c, context, items)
        x[11] = _own_decayed(raw, c, context, items)
        x[12] = _own_age(raw, c, context, items)
        x[15] = _own_ever(raw, c, context, items)
        x[16] = _own_length(raw, c, context, items)
        x[17] = _is_last(raw, c, context, items)
        x[18] = _is_before(raw, c, context, items)
        x[19] = _clicks(raw, c, context, items)
        x[22] = _history(raw, c, context, items)
        x[24] = _taste(raw, c, context, items)
        x[25] = _taste_share(raw, c, context, items)
        x[26] = _last_clicks(raw, c, context, items)
        row = raw.rows[c]
        for half_life in range(len(items.weights)):
            x[27 + half_life] = _log1p(items.popular[row, half_life] / items.weights[half_life])
    fill_timed(raw, count, context, items, out)


@kernel
def fill_timed(raw: RawFeatures, count: int, context: QueryContext, items: Items, out: NDArray[np.float32]) -> None:
    """Fills the columns that depend on the time of the query."""
    for c in range(count):
        x = out[c]
        x[13] = _own_elapsed(raw, c, context, items)
        x[14] = _own_rhythm(raw, c, context, items)
        x[20] = _elapsed(raw, c, context, items)
        x[21] = _lifetime(raw, c, context, items)
        x[23] = _gap(raw, c, context, items)


PARTS = ("last", "before", "hour", "weekday", "gap", "state")  # of a moment's key: see online/learner/recall.py
OWN_HEADS = (  # gains of the parts at the start; the state's are 0, so that it counts only once training raises them
    (8.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (6.0, 6.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 4.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 4.0, 2.0, 0.0, 0.0),
    (6.0, 0.0, 2.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 4.0, 0.0),
)
WORLD_HEADS = (  # moments that the index of all users finds have the same last item, or one of the same bucket
    (8.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (8.0, 6.0, 0.0, 0.0, 0.0, 0.0),
    (8.0, 0.0, 4.0, 0.0, 0.0, 0.0),
    (8.0, 3.0, 2.0, 2.0, 1.0, 0.0),
    (8.0, 3.0, 0.0, 0.0, 2.0, 0.0),
    (8.0, 0.0, 0.0, 0.0, 4.0, 0.0),
)
OWN_STARTS, WORLD_STARTS = (0.3, 0.3), (0.2, 0.2)  # of the first heads; the others begin at 0
LIFT = Feature("lift", "clicks on it, by what the ranker expected", "clicks", "log((x + 2) / (expected + 2))")
NETWORK = Feature("network", "the Reformer's state · the item's vector + the item's bias", "logit", "x")


def counted(half_lives: Sequence[int]) -> tuple[Feature, ...]:
    """Returns the features that are counted, with one popularity for each half-life (in clicks)."""
    popular = [
        Feature(f"popularity_{n}", f"clicks on it, each halved for every {n} later ones", "clicks", "log(1 + x)", 0.1)
        for n in half_lives
    ]
    return *COUNTED, *popular


def features(half_lives: Sequence[int]) -> tuple[Feature, ...]:
    """Returns all inputs of the ranker: counted features, the lift, recall's soft counts, and the Reformer's logit."""
    recalled = *_heads("own", OWN_HEADS, OWN_STARTS), *_heads("world", WORLD_HEADS, WORLD_STARTS)
    return *counted(half_lives), LIFT, *recalled, NETWORK


def _heads(whose: str, heads: Sequence[Sequence[float]], starts: Sequence[float]) -> list[Feature]:
    declared = []
    for number, gains in enumerate(heads):
        parts = ", ".join(f"{part} {gain:g}" for part, gain in zip(PARTS, gains, strict=True) if gain)
        start = starts[number] if number < len(starts) else 0.0
        meaning = f"moments that point at it, alike in (gains at the start): {parts}"
        declared.append(Feature(f"{whose}_{number + 1}", meaning, "soft count", "log(1 + x)", start))
    return declared
