"""The shadow: other weights beside the live ones, on the same clicks, until a gate decides which are better.

Letters: `N` clicks of a micro-batch, `K` = 10 places of a list, `Q` lists whose diversity is measured.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.config.gate_limits import GateLimits
from online.learner.arrays import below, joined
from online.learner.batches import BatchResult, TrainedNetwork, TrainedStep
from online.learner.learner import Learner
from online.learner.ranking_model import RankingModel
from online.learner.scoring import ScoredCandidates
from online.learner.training import GUESSING, RANKING, guessing_batch, training_batch
from online.lifecycle.gate import Decision, SequentialGate
from online.metrics import K, hit_and_ndcg_at


class Diversity:
    """The effective number of items in the latest Q lists: exp of the entropy of their frequencies (Hill 1973, order
    1). It is 10 if all users get the same ten items."""

    def __init__(self, lists: int) -> None:
        self._tops: deque[NDArray[np.int64]] = deque(maxlen=lists)

    def add(self, tops: NDArray[np.int64]) -> None:
        """Adds lists of rows (N, K), 0 beyond their ends."""
        self._tops.extend(tops)

    @property
    def full(self) -> bool:
        return len(self._tops) == self._tops.maxlen

    def items(self) -> float:
        """Returns the effective number of items, between 1 and Q · K."""
        rows = np.concatenate(self._tops) if self._tops else np.zeros(0, np.int64)
        share = np.unique(rows[rows > 0], return_counts=True)[1] / max(1, (rows > 0).sum())
        return float(np.exp(-(share * np.log(share)).sum()))

    def to_state(self) -> NDArray[np.int64]:
        return np.stack(self._tops) if self._tops else np.zeros((0, K), np.int64)

    def load_state(self, tops: NDArray[np.int64]) -> None:
        self._tops.clear()
        self._tops.extend(tops)


class ShadowEvaluation:
    """Weights that score each click before they learn it, as the live ones do, and the comparison of both.

    They read the latest clicks of each user again each time, because the users' memories belong to the live network. A
    fault ends the evaluation at once: scores that are not finite, gradients that explode while the live ones do not, or
    lists that are all alike.
    """

    def __init__(
        self, learner: Learner, weights: RankingModel, limits: GateLimits, *, facts: Mapping[str, Any]
    ) -> None:
        """`facts`: what the supervisor notes about these weights, as JSON; `warm_up` of it: clicks on which they only
        learn, before they are compared."""
        self.learner, self.weights = learner, weights
        self.limits, self.facts = limits, dict(facts)
        self.restart()

    def restart(self) -> None:
        """Starts the comparison from the beginning."""
        settings = self.learner.settings
        self.gate = SequentialGate(self.limits)
        self.shadow, self.live = Diversity(settings.diversity_lists), Diversity(settings.diversity_lists)
        self.fault: str | None = None  # of these weights
        self.live_fault: str | None = None
        self.paused = False  # whether the weights are only kept, not compared; their rows still follow the live ones
        self._skipped = (self.weights.skipped, self.learner.weights.skipped)

    def forget_lists(self) -> None:
        """Drops the lists whose diversity is measured, because a forgotten user's may be among them."""
        for diversity in (self.shadow, self.live):
            diversity.load_state(np.zeros((0, K), np.int64))

    @property
    def decision(self) -> Decision:
        """Whether these weights may replace the live ones."""
        if self.fault is not None:
            return "reject"
        return "publish" if self.live_fault is not None else self.gate.decision

    def update(self, learned: BatchResult) -> None:
        """Tests and then trains the weights on the micro-batch that the live ones have just learned, step by step.

        It costs about as much as learning did, without gathering candidates. Clicks on which the live weights were not
        trained are not compared.
        """
        if learned.freed:
            self.weights.reset_rows(torch.tensor(learned.freed, dtype=torch.int64))
        self.weights.grow(len(self.learner.store))
        if learned.starts is not None:
            self.weights.start_rows(learned.starts)
        if self.paused or self.fault is not None or not learned.trained:
            return
        if self.weights.uses_state and self.learner.may_use_state and learned.network is None:
            return  # the live weights do not use it, and it was not known that these are compared
        self.weights.scale_learning_rate(self.learner.weights.optimizer.boost)
        before, network = None, learned.network if self.weights.uses_state else None
        if network is not None:
            before, network = self._states(network)
        states = None if before is None else before.detach().requires_grad_(True)
        ranks = []
        for step in learned.steps:
            step_states = None if states is None else states[step.part]
            gathered, kept = step.scored.gathered, self.learner.settings.candidates_kept
            lifts, memory = step.scored.lifts, self.learner.memory()
            scored = self.weights.score(gathered, lifts, memory, step_states, kept=kept, replayed=step.replayed)
            if not scored.finite():
                self.fault = "its scores are not finite"
            if not step.scored.finite():
                self.live_fault = "its scores are not finite"
            if self.fault is not None or self.live_fault is not None:
                return
            ranks.append(scored.ranks(scored.positions(learned.targets[step.part])))
            self.shadow.add(scored.tops(K))
            self.live.add(step.scored.tops(K))
            self._learn(learned, step, scored, step_states)
        self._compare(learned, np.concatenate(ranks))
        if before is not None and states is not None and network is not None:
            self.weights.train(guessing_batch(network, before, states.grad), GUESSING)
        self._look_for_faults()

    def _compare(self, learned: BatchResult, ranks: NDArray[np.float64]) -> None:
        """Hands both models' scores to the gate, without flagged clicks, once the weights have warmed up."""
        compared = learned.trainable.copy()
        warming = min(self.facts.get("warm_up", 0), len(compared))
        if warming:
            self.facts["warm_up"] -= warming
            compared[:warming] = False
        self.gate.add(hit_and_ndcg_at(learned.ranks)[1][compared], hit_and_ndcg_at(ranks)[1][compared])

    def _states(self, network: TrainedNetwork) -> tuple[Tensor, TrainedNetwork]:
        """Returns the states before the clicks, and what these weights are trained on."""
        states = self.learner.states
        before, _, had = states.read_anew(self.weights, network.slots, network.clicks, network.histories)
        if not self.learner.deep_state:  # else the live weights have read the same
            network = network.narrowed(had)
        return before[torch.from_numpy(network.order).to(before.device)], network

    def _learn(self, learned: BatchResult, step: TrainedStep, scored: ScoredCandidates, states: Tensor | None) -> None:
        choices = scored.without(step.barred, step.positions)
        batch = training_batch(self.weights, choices, step.positions, states, step.replayed, step.weights, step.worth)
        if self.weights.train(batch, RANKING):
            trainable = torch.from_numpy(learned.trainable[step.part]).to(scored.present.device)
            self.weights.observe(scored.features[scored.present & trainable[:, None]])

    def _look_for_faults(self) -> None:
        before, self._skipped = self._skipped, (self.weights.skipped, self.learner.weights.skipped)
        shadow_skipped, live_skipped = (now > was for now, was in zip(self._skipped, before, strict=True))
        if shadow_skipped and not live_skipped:
            self.fault = "its gradients exploded or were not finite"
        if self.shadow.full:
            least = self.learner.settings.diversity_share_min
            shadow_items, live_items = self.shadow.items(), self.live.items()
            if shadow_items < least * live_items:
                self.fault = _alike(shadow_items, live_items)
            elif live_items < least * shadow_items:
                self.live_fault = _alike(live_items, shadow_items)

    def figures(self) -> dict[str, Any]:
        return self.gate.figures()

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and a JSON object."""
        tops = {"mine": self.shadow.to_state(), "live": self.live.to_state()}
        return joined({"weights": self.weights.to_state(), "tops": tops}), {
            "facts": self.facts,
            "gate": self.gate.to_state(),
            "fault": self.fault,
            "live_fault": self.live_fault,
            "paused": self.paused,
            "skipped": list(self._skipped),
        }

    @classmethod
    def restored(
        cls,
        learner: Learner,
        limits: Callable[[RankingModel], GateLimits],
        arrays: Mapping[str, NDArray[Any]],
        state: Mapping[str, Any],
    ) -> "ShadowEvaluation":
        """Creates an evaluation from what `to_state` returned; `limits`: what the weights have to pass."""
        weights = RankingModel(learner.settings)
        weights.load_state(below(arrays, "weights"))
        evaluation = cls(learner, weights, limits(weights), facts=state["facts"])
        evaluation.gate.load_state(state["gate"])
        evaluation.shadow.load_state(arrays["tops.mine"])
        evaluation.live.load_state(arrays["tops.live"])
        evaluation.fault, evaluation.live_fault = state["fault"], state["live_fault"]
        evaluation.paused = state["paused"]
        shadow_skipped, live_skipped = state["skipped"]
        evaluation._skipped = (shadow_skipped, live_skipped)
        return evaluation


def _alike(items: float, others: float) -> str:
    return f"its lists are all alike: {items:.0f} items between them in effect, where the other's have {others:.0f}"
