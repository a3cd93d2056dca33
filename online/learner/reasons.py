"""Says in words why an item scores higher than the average candidate, with figures from the facts.

Letters: `P` moments that point at an item, `V` rows of items.
"""

import math
from collections.abc import Callable, Mapping
from datetime import datetime, tzinfo
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.config.formula import P_CLICK, VALUE, WORTH
from online.learner.asking import Asked
from online.learner.facts.gather import EXPECTED_MIN, NEAR_DECAY, TASTE_DECAY, TASTE_LATEST
from online.learner.facts.tables import NEAR, neighbours
from online.learner.state import LearnerState

NAMED_MAX = 2  # latest items that are named
NAMED_CONTENT = 20  # latest items among which the most alike one is named
NEW_SHARE_MIN = 0.3  # of 1 / (1 + clicks), for an item to be called new
ALIKE_SHARE = 0.5  # of the moments' weight that must agree in a part for it to be named
NEAR_HOURS = 2.0
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYPARTS = ((5, "night"), (12, "morning"), (17, "afternoon"), (22, "evening"), (24, "night"))
UNITS = ((365.25 * 86_400, "year"), (86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))

Values = Mapping[str, float]
Predicted = Mapping[str, tuple[float, float]]  # by name: of the item, and of the average candidate
Moments = tuple[NDArray[np.int64], NDArray[np.float64]]  # places in the log (P,), and weights (P,)


class Situation(NamedTuple):
    """Who asks, and when."""

    state: LearnerState
    rows: list[int]  # of the latest items, newest first; 0: unknown
    now: float  # seconds since 1970
    zone: tzinfo

    @staticmethod
    def of(state: LearnerState, asked: Asked, at: int, zone: tzinfo) -> "Situation":
        """Returns the situation of one question."""
        rows = asked.histories.clicks_of(at)[0][::-1][:TASTE_LATEST].tolist()
        return Situation(state, rows, float(asked.queries.now[at]), zone)

    def name(self, row: int) -> str:
        """Returns an item's title in quotation marks, or its id where no title is known."""
        item = self.state.vocabulary.item_of(row)
        if item is None:
            return "an item that is gone"
        return f"“{self.state.listable.attributes.title(item) or item}”"

    def latest(self, d: int) -> str:
        """Returns the name of the item clicked d clicks before the latest one."""
        return self.name(self.rows[d]) if d < len(self.rows) else "an earlier item"


def reason(  # noqa: PLR0917 - one call of one caller
    group: str, situation: Situation, row: int, values: Values, adds: Values, moments: Moments | None
) -> str:
    """Says what a group of features has counted of an item.

    Args:
        group: of the features (online/learner/explaining.py).
        situation: who asks, and when.
        row: of the item.
        values: the item's features.
        adds: what each adds to the score.
        moments: those that point at it, in the groups of moments; None: there are none.
    """
    if group in _MOMENTS:
        return _in_moments(group, situation, moments)
    return _WORDS[group](situation, row, values, adds)


def worth_reason(predicted: Predicted) -> str:
    """Says in words why the objective ranks an item higher than its share does.

    Args:
        predicted: what formulas can refer to, of the item and of the average candidate.
    """
    ratios = {
        name: mine / usual for name, (mine, usual) in predicted.items() if name != P_CLICK and usual > 0 and mine > 0
    }
    best = max(ratios, key=lambda name: ratios[name], default=None)
    if best is None or ratios[best] <= 1:
        return "suits what lists are ranked by"
    mine, usual = predicted[best]
    if best in {VALUE, WORTH}:
        return f"worth more: {best} {mine:.3g}, of others {usual:.3g}"
    kind = best.removeprefix("p_").removeprefix("type_").replace("_", " ")
    return f"likely to be worth more: {kind} in {mine:.1%} of such clicks, of others in {usual:.1%}"


def duration(seconds: float) -> str:
    """Returns a duration in its largest unit that fits: `2 days`, `1 hour`."""
    for size, unit in UNITS:
        count = round(seconds / size)
        if seconds >= size:
            return f"{count:,} {unit}{'s' * (count != 1)}"
    return "less than a second"


def times(count: float) -> str:
    """Returns `once`, `twice` or `31 times`; what was counted is no whole number where counts were scaled down."""
    whole = max(1, round(count))
    return {1: "once", 2: "twice"}.get(whole, f"{whole:,} times")


def moment_words(at: float, zone: tzinfo) -> tuple[str, str]:
    """Returns the weekday and the time of day of a moment."""
    then = datetime.fromtimestamp(at, zone)
    return WEEKDAYS[then.weekday()], next(name for end, name in DAYPARTS if then.hour < end)


def _counted(values: Values, name: str) -> float:
    """Undoes log(1 + x)."""
    return math.expm1(values[name])


def _quarter(values: Values, name: str) -> float:
    """Undoes log(1 + x) / 4."""
    return math.expm1(4 * values[name])


# One function for each group


def _followed(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    ways = {
        "followed_last": (("followed_last", "share_last"), f"followed {situation.latest(0)}"),
        "followed_before": (("followed_before", "share_before"), f"came two clicks after {situation.latest(1)}"),
        "followed_third": (("followed_third",), f"came some clicks after {situation.latest(2)}"),
        "preceded_last": (("preceded_last", "preceded_rate"), f"came before {situation.latest(0)}"),
    }
    added = {name: sum(adds[part] for part in parts) for name, (parts, _) in ways.items() if values[name] > 0}
    if not added:
        return f"never came after {situation.latest(0)}" if situation.rows else "there is nothing that it could follow"
    best = max(added, key=lambda name: added[name])
    return f"{ways[best][1]} {times(_counted(values, best))}"


def _voters(situation: Situation, row: int, decay: float, latest: int) -> list[str]:
    """Returns the names of the latest items that an item stands near most, each by its age and popularity."""
    table, clicks = situation.state.store.tables.near, situation.state.store.items.clicks
    votes: dict[int, float] = {}
    for d, other in enumerate(situation.rows[:latest]):
        others, counts = neighbours(table, other)
        found = np.flatnonzero(others == row)
        if len(found):
            weight = decay**d / math.sqrt(clicks[other] + EXPECTED_MIN)
            votes[other] = votes.get(other, 0.0) + weight * float(counts[found[0]])
    best = sorted(votes, key=lambda other: -votes[other])[:NAMED_MAX]
    return [situation.name(other) for other in best]


def _near(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    names = _voters(situation, row, NEAR_DECAY, NEAR)
    return f"often clicked near {' and '.join(names)}" if names else "not clicked near the latest items"


def _taste(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    names = _voters(situation, row, TASTE_DECAY, TASTE_LATEST)
    if not names:
        return "not clicked near what you usually click"
    return f"suits what you usually click, such as {' and '.join(names)}"


def _clicked(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    if not values["own_ever"]:
        return "you have not opened it lately"
    last = f"last {duration(_quarter(values, 'own_elapsed'))} ago"
    return f"you opened it {times(_counted(values, 'own_times'))}, {last}"


def _popular(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    recent = [name for name in values if name.startswith("popularity_")]
    best = max(recent, key=lambda name: adds[name], default=None)
    ever = f"opened {times(_quarter(values, 'clicks'))} in all"
    if best is None or adds[best] <= adds["clicks"]:
        return ever
    half_life, total = int(best.rpartition("_")[2]), int(situation.state.store.log.total[0])
    all_of_them = half_life / math.log(2) * (1 - 2 ** (-total / half_life))  # each click halved as the item's are
    share = min(1.0, _counted(values, best) / max(1.0, all_of_them))
    return f"popular: {share:.1%} of the latest {min(half_life, total):,} clicks, {ever}"


def _age(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    if adds["lifetime"] > adds["elapsed"]:
        return f"known for {duration(_quarter(values, 'lifetime'))}"
    return f"last opened by any user {duration(_quarter(values, 'elapsed'))} ago"


def _situation(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    return "suits a user with as long a history"  # equal for all candidates, so this is hardly ever a reason


def _lift(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    ratio = math.exp(values["lift"])
    return f"opened {ratio:.1f} times as often as expected" if ratio > 1 else "opened about as often as expected"


def _network(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    after = f", {situation.latest(0)} last" if situation.rows else ""
    return f"suits the course of your latest clicks{after}"


def _content(situation: Situation, row: int, values: Values, adds: Values) -> str:
    added = {
        "last": adds["content_last"] + adds["content_last_few"],
        "profile": sum(value for name, value in adds.items() if name.startswith(("content_profile", "content_matrix"))),
        "new": sum(adds[f"content_{name}"] for name in ("new", "few", "age", "age_few", "first_lift_new")),
        "lift": sum(adds[f"content_{name}"] for name in ("lift", "first_lift", "lift_few", "popular", "features")),
    }
    best = max(added, key=lambda name: added[name])
    if best == "last" and situation.rows:
        return f"suits in content: like {situation.latest(0)}"
    if best == "profile" and situation.rows:
        return f"suits in content what you clicked lately, such as {_most_alike(situation, row)}"
    if best == "new":
        return "new: hardly clicked yet" if values["content_few"] > NEW_SHARE_MIN else "suits in its age and content"
    return "has words, tags or values that are clicked often lately"


def _user_attributes(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    settings = situation.state.settings
    known = ["with the same attributes"] if settings.users_topic is not None else []
    known += ["at this hour or on this day of the week"] if settings.popularity_by_hour else []
    alike = f"by users {', or '.join(known)}"
    if values["group_lift"] > 0:
        return f"clicked more often {alike} than by others"
    return f"clicked about {times(_quarter(values, 'group_popular'))} {alike}"


def _impressions(situation: Situation, row: int, values: Values, adds: Values) -> str:  # noqa: ARG001
    if values["shown_lift"] > 0:
        return f"clicked {math.exp(values['shown_lift']):.1f} times as often as expected where it was shown"
    return "passed over less than other items" if not values["shown_passed_ever"] else "shown to you lately"


def _most_alike(situation: Situation, row: int) -> str:
    """Returns the name of the latest item that is most like an item in content."""
    content, slots_of = situation.state.listable.content, situation.state.listable.attributes.slots
    if content is None:
        return situation.latest(0)
    latest = situation.rows[:NAMED_CONTENT]
    vectors = content.arrays.vectors
    alike = vectors[slots_of[latest]] @ vectors[slots_of[row]]
    return situation.latest(int(alike.argmax()))


_WORDS: dict[str, Callable[[Situation, int, Values, Values], str]] = {
    "followed": _followed,
    "near": _near,
    "taste": _taste,
    "clicked": _clicked,
    "popular": _popular,
    "age": _age,
    "situation": _situation,
    "lift": _lift,
    "network": _network,
    "content": _content,
    "user_attributes": _user_attributes,
    "impressions": _impressions,
}

# Moments

_MOMENTS = {"own_moments": ("you chose it", " of yours"), "world_moments": ("users chose it", "")}


def _in_moments(group: str, situation: Situation, moments: Moments | None) -> str:
    did, of = _MOMENTS[group]
    if moments is None:
        return f"no moment{of} like this one points at it"
    at, weights = moments
    count = len(at)
    like = f"{did} in {count:,} moment{'s' * (count != 1)} like this one"
    alike = _alike_in(situation, at, weights)
    return f"{like}: {', '.join(alike)}" if alike else like


def _alike_in(situation: Situation, at: NDArray[np.int64], weights: NDArray[np.float64]) -> list[str]:
    """Returns in which parts most of the weight of moments (P,) agrees with the present one."""
    log, total = situation.state.store.log, float(weights.sum())
    if total <= 0:
        return []
    weekday, daypart = moment_words(situation.now, situation.zone)
    apart_h = np.abs((log.times[at] - situation.now) / 3_600 + 12) % 24 - 12
    same_time = float(weights[np.abs(apart_h) <= NEAR_HOURS].sum()) >= ALIKE_SHARE * total
    same_day = np.array([moment_words(one, situation.zone)[0] == weekday for one in log.times[at].tolist()])
    on_day = float(weights[same_day].sum()) >= ALIKE_SHARE * total
    parts = []
    if same_time or on_day:
        parts.append(" ".join([weekday] * on_day + [daypart] * same_time))
    for column, where, place in ((log.last, "after", 0), (log.before, "and before that", 1)):
        row = situation.rows[place] if place < len(situation.rows) else 0
        if not row or float(weights[column[at] == row].sum()) < ALIKE_SHARE * total:
            break
        parts.append(f"{where} {situation.name(row)}")
    return parts
