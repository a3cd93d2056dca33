"""Explanations of listed items: what each feature adds to an item's score compared with the list's average candidate,
the strongest reasons in words, and the remembered moments that point at the item.

The average candidate has the mean features of the candidates that the ranker scored. All contributions of an item add
up to the difference between both scores (online/learner/contributions.py). Of an item that the ranker did not score, it
is the linear score that is explained. What the objective does to a share is a part of its own: the log of their ratio.

Letters: `C` candidates of all queries (flat), `K` candidates kept of a query, `F` features, `P` moments, `H` heads.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, tzinfo
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.recall import RecallHeads
from online.learner.added import columns_of
from online.learner.asking import Answer, Answerer, Asked, Question
from online.learner.contributions import RankerArrays, contributions, scores
from online.learner.facts.feature_groups import OBJECTIVE, group_of
from online.learner.facts.features import features
from online.learner.facts.moments import Hits
from online.learner.facts.store import WANTED_MAX
from online.learner.reasons import Predicted, Situation, reason, worth_reason
from online.learner.recall import soft_counts
from online.learner.scoring import ScoredCandidates
from online.learner.state import LearnerState
from online.learner.worth.facts import LOST_WITH_USER

REASONS_MAX = 3
REASON_SHARE_MIN = 0.02  # of all that speaks for an item, which is worth a reason
MOMENTS_MAX = 5  # of an item that are named; all of them count
LOG_FACTOR_MAX = 20.0  # by which an objective moves a score at most, as a logarithm
OWN, WORLD = "own", "world"  # the user's moments, and all users'
RANKER, FIRST, NOTHING = "ranker", "first", "nothing"  # by what an item was scored

Doubles = NDArray[np.float64]


class PointingMoments(NamedTuple):
    """Moments of one memory that point at an item."""

    moments: NDArray[np.int64]  # (P,) places in the log
    weights: Doubles  # (P, H) of each head, before the logarithm: 1: alike in all parts, and just now
    counts: Doubles  # (H,) the soft counts: their sums


def explained(answerer: Answerer, question: Question, item: str | None) -> Answer:
    """Ranks a question's list, and explains it.

    Args:
        answerer: by whose facts and weights.
        question: whose list.
        item: the only one to be explained, whether it is in the list or not; None: all of the list.

    Raises:
        LookupError: nothing is known of the item, in one line.
    """
    row_of = answerer.state.vocabulary.row_of
    if item is not None and not row_of(item):
        raise LookupError(f"nothing is known of item {item}: it has had no click, or none for long")
    answer = answerer.answer([question])[0]
    asked = answerer.ask([question])
    if item is not None:
        row, rows = row_of(item), asked.scored.gathered.rows.astype(np.int64)
        if row not in rows:
            asked = answerer.ask([question], [np.append(rows, row)[-WANTED_MAX:]])
    return replace(answer, explanations=answerer.explain(asked, 0, answer.items if item is None else [item]))


class Explainer:
    """Explains items of lists that were just asked for, from the present facts and the live weights."""

    def __init__(self, state: LearnerState, zone: tzinfo = UTC) -> None:
        """`zone`: in which weekdays and times of day are named."""
        self.state, self.zone = state, zone
        self.names = [feature.name for feature in features(state.settings.popularity_half_lives)]
        self.added = [column.name for column in columns_of(state.settings)]
        self.names += self.added
        self.names += [] if state.worth is None else [OBJECTIVE]
        self.groups = [group_of(name) for name in self.names]
        self._groups = list(dict.fromkeys(self.groups))
        self._member = np.array([[group == one for one in self._groups] for group in self.groups], np.float64)

    def explain(self, asked: Asked, at: int, items: Sequence[str]) -> list[dict[str, Any]]:
        """Explains items of one question's list.

        Args:
            asked: what `Answerer.ask` returned, before its next call.
            at: which of its questions.
            items: of the list, in order.

        Returns:
            Of each item an object for JSON: `item_id`, `title` (null if not known), `scored_by` ("ranker", "first": the
            linear score of all candidates, "nothing": no candidate), `score`, `average` (the average candidate's),
            `difference`, `contributions` by feature and `groups` (both add up to `difference`; what adds 0 is left
            out), `reasons` (at most three of what speaks for it, strongest first: `group`, `contribution`, `text`),
            `moments` (the strongest: `whose`, `at`, `after` and its `after_title`, `weight`, `contribution`),
            `moments_found` (all of them, by whose).
        """
        scored = asked.scored
        start, stop = scored.gathered.starts[at : at + 2].tolist()
        rows = scored.gathered.rows[start:stop]
        place_of = {row: start + place for place, row in enumerate(rows.tolist())}
        kept = scored.kept[at].tolist()
        slot_of = {place: slot for slot, place in enumerate(kept) if place >= 0}
        places = [place_of.get(self.state.vocabulary.row_of(item), -1) for item in items]
        by_ranker = [place for place in places if place in slot_of]
        by_first = [place for place in places if place >= 0 and place not in slot_of]
        parts = self._by_ranker(asked, at, by_ranker, slot_of) | self._by_first(asked, at, by_first)
        situation = Situation.of(self.state, asked, at, self.zone)
        pointing = {name: self._moments(asked, at, name, {*places}) for name in (OWN, WORLD)}
        return [
            self._nothing(item) if place < 0 else self._object(item, place, parts[place], asked, situation, pointing)
            for item, place in zip(items, places, strict=True)
        ]

    # Contributions

    def _by_ranker(self, asked: Asked, at: int, places: list[int], slot_of: dict[int, int]) -> dict[int, "_Part"]:
        """Returns the contributions of candidates that the ranker scored."""
        if not places:
            return {}
        scored = asked.scored
        inputs = scored.features[at][scored.present[at]].double().cpu().numpy()
        base = inputs.mean(0)
        each = scored.features[at][[slot_of[place] for place in places]].double().cpu().numpy()
        weights = RankerArrays.of(self.state.weights.ranker)
        found = contributions(weights, each, base)
        average, *own = scores(weights, np.concatenate([base[None], each])).tolist()
        if scored.content is not None:
            columns = scored.content[at].double().cpu().numpy()
            kept = scored.present[at].cpu().numpy()
            base, each_of = columns[kept].mean(0), columns[[slot_of[place] for place in places]]
            adds, more = np.zeros_like(each_of), np.zeros(1 + len(places))
            for part, at_columns in self.state.weights.added.known(scored.content):
                of_part, both_of = RankerArrays.of_added(part), np.concatenate([base[None], each_of])[:, at_columns]
                adds[:, at_columns] = contributions(of_part, both_of[1:], both_of[0])
                more += scores(of_part, both_of)
            learned = self.state.weights.added.scores
            adds[:, learned] = each_of[:, learned] - base[learned]
            more += np.concatenate([base[None], each_of])[:, learned].sum(1)
            found = np.concatenate([found, adds], 1)
            average, own = average + more[0], (np.array(own) + more[1:]).tolist()
            each = np.concatenate([each, each_of], 1)
        else:
            each, found = self._without_added(each), self._without_added(found)
        if self.state.worth is not None:
            logs = _log_of_objective(scored, at)
            kept = scored.present[at].cpu().numpy()
            usual, each_log = logs[kept].mean(), logs[[slot_of[place] for place in places]]
            average, own = average + usual, [one + log for one, log in zip(own, each_log.tolist(), strict=True)]
            each = np.concatenate([each, each_log[:, None]], 1)
            found = np.concatenate([found, (each_log - usual)[:, None]], 1)
        both = zip(places, each, found, own, strict=True)
        return {
            place: _Part(RANKER, score, average, x, adds, self._predicted(scored, at, slot_of[place]))
            for place, x, adds, score in both
        }

    def _predicted(self, scored: ScoredCandidates, at: int, slot: int) -> Predicted:
        """Returns what formulas can refer to, of one candidate and of the average one; nothing without an objective."""
        if scored.order is None:
            return {}
        kept = scored.kept[at] >= 0
        figures = self.state.weights.objective.figures(scored)
        return {name: (float(all_of[at, slot]), float(all_of[at][kept].mean())) for name, all_of in figures.items()}

    def _by_first(self, asked: Asked, at: int, places: list[int]) -> dict[int, "_Part"]:
        """Returns the same of candidates that only the linear score has seen: all of the query's are averaged."""
        if not places:
            return {}
        scored = asked.scored
        start, stop = scored.gathered.starts[at : at + 2].tolist()
        part = slice(start, stop)
        inputs = np.concatenate(
            [scored.gathered.features[part], scored.lifts[part, None], *(one[part] for one in scored.recalled)], 1
        ).astype(np.float64)
        inputs = np.concatenate([inputs, np.zeros((len(inputs), 1))], 1)  # the Reformer's logit is not used
        weights = np.append(self.state.weights.first.detach().double().cpu().numpy(), 0.0)
        content = scored.gathered.content
        if content is None:
            inputs, weights = self._without_added(inputs), np.append(weights, np.zeros(len(self.added)))
        else:
            first = self.state.weights.added.first.detach().double().cpu().numpy()
            inputs, weights = np.concatenate([inputs, content[part]], 1), np.append(weights, first)
        if self.state.worth is not None:
            worth = scored.gathered.worth
            lost = np.zeros(len(inputs)) if worth is None else worth[part, LOST_WITH_USER]
            inputs, weights = np.concatenate([inputs, lost[:, None]], 1), np.append(weights, 1.0)
        base = inputs.mean(0)
        each = inputs[np.array(places) - start]
        return {
            place: _Part(FIRST, float(x @ weights), float(base @ weights), x, (x - base) * weights)
            for place, x in zip(places, each, strict=True)
        }

    def _without_added(self, features: Doubles) -> Doubles:
        """Returns features (·, F) followed by added columns that are all 0."""
        return np.pad(features, ((0, 0), (0, len(self.added))))

    # Moments

    def _moments(self, asked: Asked, at: int, whose: str, wanted: set[int]) -> dict[int, PointingMoments]:
        """Returns the moments of one memory that point at the wanted candidates, by candidate."""
        state, gathered = self.state, asked.scored.gathered
        if not state.settings.reformer:
            return {}
        start, stop = gathered.starts[at : at + 2].tolist()
        hits: Hits = getattr(gathered.part(at, at + 1), whose)
        heads: RecallHeads = getattr(state.weights, whose)
        targets = hits.candidates + start
        which = np.flatnonzero(np.isin(targets, [place for place in wanted if start <= place < stop]))
        if not len(which):
            return {}
        memory = state.memory()
        moments, targets = hits.moments[which], targets[which]
        single = Hits(np.array([0, len(which)]), moments, np.arange(len(which)))  # each hit is counted by itself
        states = None if asked.states is None else asked.states[at : at + 1].detach()
        logs = soft_counts(
            heads, state.weights.vectors.vectors, gathered.keys.part(at, at + 1), states, memory.keys, memory.states,
            single, len(which),
        )  # fmt: skip
        weights = np.expm1(logs.astype(np.float64))
        found = {}
        for target in np.unique(targets).tolist():
            mine = targets == target
            found[target] = PointingMoments(moments[mine], weights[mine], weights[mine].sum(0))
        return found

    def _named_moments(self, part: "_Part", whose: str, pointing: PointingMoments) -> list[dict[str, Any]]:
        """Returns moments for JSON, strongest first: each with its share of what the heads add to the score."""
        first = self.names.index(f"{whose}_1")
        adds = part.adds[first : first + len(pointing.counts)]
        shares = np.divide(
            pointing.weights, pointing.counts, out=np.zeros_like(pointing.weights), where=pointing.counts > 0
        )
        contributed, weights = shares @ adds, pointing.weights.max(1)
        log = self.state.store.log
        order = np.lexsort((-weights, -contributed))[:MOMENTS_MAX]
        chosen = order.tolist()
        after = self.state.vocabulary.items_of(log.last[pointing.moments[chosen]].tolist())
        return [
            {
                "whose": whose,
                "at": float(log.times[pointing.moments[one]]),
                "after": item,
                "after_title": None if item is None else self.state.listable.attributes.title(item),
                "weight": float(weights[one]),
                "contribution": float(contributed[one]),
            }
            for one, item in zip(chosen, after, strict=True)
        ]

    # Objects

    def _object(  # noqa: PLR0917
        self,
        item: str,
        place: int,
        part: "_Part",
        asked: Asked,
        situation: Situation,
        pointing: dict[str, dict[int, PointingMoments]],
    ) -> dict[str, Any]:
        by_group = dict(zip(self._groups, (part.adds @ self._member).tolist(), strict=True))
        values = dict(zip(self.names, part.features.tolist(), strict=True))
        adds = dict(zip(self.names, part.adds.tolist(), strict=True))
        least = REASON_SHARE_MIN * sum(value for value in by_group.values() if value > 0)
        worth = [group for group in by_group if by_group[group] > least]
        strongest = sorted(worth, key=lambda group: -by_group[group])
        row = int(asked.scored.gathered.rows[place])
        found = {whose: by_place[place] for whose, by_place in pointing.items() if place in by_place}
        moments = [one for whose, those in found.items() for one in self._named_moments(part, whose, those)]
        moments.sort(key=lambda one: -one["contribution"])
        weighed = {f"{whose}_moments": (those.moments, those.weights.max(1)) for whose, those in found.items()}
        return {
            "item_id": item,
            "title": self.state.listable.attributes.title(item),
            "scored_by": part.scored_by,
            "score": part.score,
            "average": part.average,
            "difference": part.score - part.average,
            "contributions": {name: value for name, value in adds.items() if value},
            "groups": {name: value for name, value in by_group.items() if value},
            "reasons": [
                {
                    "group": group,
                    "contribution": by_group[group],
                    "text": worth_reason(part.predicted)
                    if group == OBJECTIVE
                    else reason(group, situation, row, values, adds, weighed.get(group)),
                }
                for group in strongest[:REASONS_MAX]
            ],
            "moments": moments[:MOMENTS_MAX],
            "moments_found": {whose: len(found[whose].moments) if whose in found else 0 for whose in (OWN, WORLD)},
        }

    def _nothing(self, item: str) -> dict[str, Any]:
        """Returns the object of an item that was no candidate."""
        return {
            "item_id": item,
            "title": self.state.listable.attributes.title(item),
            "scored_by": NOTHING,
            "score": 0.0,
            "average": 0.0,
            "difference": 0.0,
            "contributions": {},
            "groups": {},
            "reasons": [],
            "moments": [],
            "moments_found": {OWN: 0, WORLD: 0},
        }


def _log_of_objective(scored: ScoredCandidates, at: int) -> Doubles:
    """Returns by how much the objective moves each kept candidate of a query, (K,): the log of its value by its share,
    within LOG_FACTOR_MAX, so that what a formula calls worthless has an explanation too; 0 without an objective."""
    if scored.order is None:
        return np.zeros(scored.kept.shape[1])
    shares = scored.shares()[at].double().cpu().numpy()
    values = np.where(scored.kept[at] >= 0, scored.order[at], 0.0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.maximum(values, 0.0)) - np.log(shares)
    found: Doubles = np.clip(np.nan_to_num(logs, nan=0.0), -LOG_FACTOR_MAX, LOG_FACTOR_MAX)
    return found


class _Part(NamedTuple):
    """One candidate's score and what it consists of."""

    scored_by: str
    score: float
    average: float
    features: Doubles  # (F,)
    adds: Doubles  # (F,)
    predicted: Predicted = {}  # noqa: RUF012 - a NamedTuple's default is never changed
