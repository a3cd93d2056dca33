"""The shadow: other weights beside the live ones, on the same clicks, until a gate can tell which are better.

Letters: `N` clicks of a micro-batch, `K` = 10 places of a list, `Q` lists whose variety is looked at.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from online.arrays import below, joined
from online.evaluation.metrics import K, hit_and_ndcg_at, ranks_among
from online.learner import Learner
from online.ranking.learned import Learned, Lesson
from online.ranking.scored import Scored
from online.ranking.weights import Weights
from online.upkeep.gate import Decision, GateLimits, SequentialGate


class Variety:
    """How many items the latest Q lists have between them, in effect: exp of the entropy (Hill 1973: order 1) of how
    often each stands in them. Everybody gets the same ten: 10."""

    def __init__(self, lists: int) -> None:
        self._tops: deque[NDArray[np.int64]] = deque(maxlen=lists)

    def add(self, tops: NDArray[np.int64]) -> None:
        """Rows (N, K), 0 where a list has no more."""
        self._tops.extend(tops)

    @property
    def full(self) -> bool:
        return len(self._tops) == self._tops.maxlen

    def items(self) -> float:
        """Between 1 and Q · K."""
        rows = np.concatenate(self._tops) if self._tops else np.zeros(0, np.int64)
        share = np.unique(rows[rows > 0], return_counts=True)[1] / max(1, (rows > 0).sum())
        return float(np.exp(-(share * np.log(share)).sum()))

    def to_state(self) -> NDArray[np.int64]:
        return np.stack(self._tops) if self._tops else np.zeros((0, K), np.int64)

    def load_state(self, tops: NDArray[np.int64]) -> None:
        self._tops.clear()
        self._tops.extend(tops)


class Trial:
    """Weights that rank each click before they learn it, as the live ones do, and how both have fared.

    They read the latest clicks of each person anew each time: the memories that attention is continued from belong to
    the live network. A fault ends the trial at once: scores that are not finite, gradients that explode where the live
    ones do not, lists that all look alike.
    """

    def __init__(self, learner: Learner, weights: Weights, limits: GateLimits, *, facts: Mapping[str, Any]) -> None:
        """`facts`: what the supervisor wants to know of these weights afterwards, for JSON."""
        self.learner, self.weights = learner, weights
        self.limits, self.facts = limits, dict(facts)
        self.restart()

    def restart(self) -> None:
        """Begins to compare, from nothing."""
        settings = self.learner.settings
        self.gate = SequentialGate(self.limits)
        self.mine, self.live = Variety(settings.variety_lists), Variety(settings.variety_lists)
        self.fault: str | None = None  # of these weights
        self.live_fault: str | None = None
        self.resting = False  # kept, with rows that follow the live ones, and not compared
        self._skipped = (self.weights.skipped, self.learner.weights.skipped)

    def forget_lists(self) -> None:
        """The latest lists, whose variety is looked at: somebody's is among them."""
        for variety in (self.mine, self.live):
            variety.load_state(np.zeros((0, K), np.int64))

    @property
    def decision(self) -> Decision:
        """Whether these weights may take the live ones' place."""
        if self.fault is not None:
            return "reject"
        return "publish" if self.live_fault is not None else self.gate.decision

    def follow(self, learned: Learned) -> None:
        """The micro-batch that the live weights have just learned: tests, then teaches. It costs about what learning
        did, without what is gathered. What was not trained on is not compared."""
        lesson = learned.lesson
        if lesson.freed:
            self.weights.reset_rows(torch.tensor(lesson.freed, dtype=torch.int64))
        self.weights.grow(len(self.learner.counts))
        if self.resting or self.fault is not None or not learned.trained:
            return
        states = self._states(lesson)
        scored = self.weights.score(lesson.scored.gathered, states)
        if not bool(scored.scores.isfinite().all()):
            self.fault = "its scores are not finite"
        if not bool(lesson.scored.scores.isfinite().all()):
            self.live_fault = "its scores are not finite"
        if self.fault is not None or self.live_fault is not None:
            return
        gains = hit_and_ndcg_at(_ranks(scored, lesson))[1]
        heard = learned.heard  # what the others clicked says nothing of lists
        self.gate.add(hit_and_ndcg_at(learned.ranks)[1][heard], gains[heard])
        self.mine.add(_tops(scored))
        self.live.add(_tops(lesson.scored))
        self._learn(learned, scored, states)
        self._look_for_faults()

    def _states(self, lesson: Lesson) -> Tensor | None:
        if lesson.read is None:
            return None
        before, _, _ = self.learner.states.read_anew(self.weights, lesson.read.slots, lesson.read.clicks)
        return before[torch.from_numpy(lesson.read.order).to(before.device)]

    def _learn(self, learned: Learned, scored: Scored, states: Tensor | None) -> None:
        lesson = learned.lesson
        self.weights.hasten(self.learner.weights.optimizer.boost)
        ranking, _, _ = self.weights.losses(scored, lesson.places, lesson.again)
        guessing = None
        if states is not None and lesson.negatives is not None:
            guessing = self.weights.guessing_loss(states[lesson.taught], lesson.wanted, lesson.negatives)
        heard = torch.from_numpy(learned.heard).to(scored.scores.device)[scored.candidates.owners]  # (C,)
        self.weights.learn(ranking, guessing, scored.features.detach()[heard])

    def _look_for_faults(self) -> None:
        before, self._skipped = self._skipped, (self.weights.skipped, self.learner.weights.skipped)
        mine, live = (now > was for now, was in zip(self._skipped, before, strict=True))
        if mine and not live:
            self.fault = "its gradients exploded or were not finite"
        if self.mine.full:
            least = self.learner.settings.variety_share_min
            mine_items, live_items = self.mine.items(), self.live.items()
            if mine_items < least * live_items:
                self.fault = _alike(mine_items, live_items)
            elif live_items < least * mine_items:
                self.live_fault = _alike(live_items, mine_items)

    def figures(self) -> dict[str, Any]:
        return self.gate.figures()

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object."""
        tops = {"mine": self.mine.to_state(), "live": self.live.to_state()}
        return joined({"weights": self.weights.to_state(), "tops": tops}), {
            "facts": self.facts,
            "gate": self.gate.to_state(),
            "fault": self.fault,
            "live_fault": self.live_fault,
            "resting": self.resting,
            "skipped": list(self._skipped),
        }

    @classmethod
    def restored(
        cls, learner: Learner, limits: GateLimits, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]
    ) -> "Trial":
        """What `to_state` gave."""
        weights = Weights(learner.settings)
        weights.load_state(below(arrays, "weights"))
        found = cls(learner, weights, limits, facts=state["facts"])
        found.gate.load_state(state["gate"])
        found.mine.load_state(arrays["tops.mine"])
        found.live.load_state(arrays["tops.live"])
        found.fault, found.live_fault, found.resting = state["fault"], state["live_fault"], state["resting"]
        mine, live = state["skipped"]
        found._skipped = (mine, live)
        return found


def _ranks(scored: Scored, lesson: Lesson) -> NDArray[np.float64]:
    scores, owners = scored.scores.cpu().numpy(), scored.candidates.owners.cpu().numpy()
    return ranks_among(scores, owners, lesson.places.cpu().numpy())


def _tops(scored: Scored) -> NDArray[np.int64]:
    """Rows of the best K candidates of each query, (N, K)."""
    return F.pad(scored.candidates.rows, (0, 1))[scored.best(K)[0]].cpu().numpy()


def _alike(items: float, others: float) -> str:
    return f"its lists are all alike: {items:.0f} items between them in effect, where the other's have {others:.0f}"
