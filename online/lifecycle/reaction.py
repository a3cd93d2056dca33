"""What is watched of the stream, and what is done when the world has changed: learn faster, let the past count less.

changes = Changes(settings, learner)
... learned = learner.learn(clicks) ...
for notice in changes.update(clicks, learned): say it; if it asks for fine-tuning, do
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from online.config.settings import Settings
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from online.lifecycle.click_rates import RateNotice, RateWatch, is_live
from online.lifecycle.drift import Alarm, DriftWatch, Sensitivity
from online.metrics import K
from stream.events import Click


class Reaction:
    """For `reaction_clicks` clicks after an alarm learning rates are raised, falling back to 1 along a straight line;
    at its beginning the counts of the old world are scaled down, so that the new one soon outweighs them.

    Everything follows from `left`, the clicks that are left of it.
    """

    def __init__(self, settings: Settings, learner: Learner) -> None:
        self.settings, self.learner = settings, learner
        self.left = 0
        self.reactions = 0

    @property
    def factor(self) -> float:
        """What learning rates are multiplied by now."""
        if not self.left:
            return 1.0
        return 1.0 + (self.settings.reaction_learning_rate_factor - 1.0) * self.left / self.settings.reaction_clicks

    def start(self, alarm: Alarm) -> None:
        """Reacts to an alarm. Those of things that got better ask for nothing."""
        if not alarm.worse or not self.settings.reaction_clicks:
            return
        self.reactions += 1
        self.left = self.settings.reaction_clicks
        self.learner.store.decay(self.settings.reaction_counts_kept)
        self.learner.replay.forget(self.settings.reaction_replay_kept)
        self.learner.weights.scale_learning_rate(self.factor)

    def after(self, clicks: int) -> None:
        """So many clicks were learned."""
        self.left = max(0, self.left - clicks)
        self.learner.weights.scale_learning_rate(
            self.factor
        )  # also while it is 1: the weights may be others than before

    def to_state(self) -> dict[str, Any]:
        return {"left": self.left, "reactions": self.reactions}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave; the learner has to have its own state by then."""
        self.left, self.reactions = min(state["left"], self.settings.reaction_clicks), state["reactions"]
        self.learner.weights.scale_learning_rate(self.factor)


class Changes:
    """Drift, click rate, and the reaction, as the loop uses them: one call after each micro-batch, one while idle."""

    def __init__(self, settings: Settings, learner: Learner) -> None:
        sensitivity = Sensitivity(
            settings.drift_delta, settings.drift_tolerance, settings.drift_threshold, settings.drift_values_held
        )
        self.drift = DriftWatch(
            sensitivity,
            clicks_each=settings.drift_clicks_each,
            cooling_clicks=settings.drift_cooling_clicks,
            types_max=settings.drift_types_max,
        )
        self.rates = RateWatch(settings.outage_share, settings.outage_clicks)
        self.reaction = Reaction(settings, learner)

    def update(
        self, clicks: Sequence[Click], learned: BatchResult, arrived_at: Sequence[float] | None = None
    ) -> list[Alarm | RateNotice]:
        """`arrived_at`: when each click reached the broker, in seconds since 1970; None: when it was made, as in worlds
        that nothing delays.

        What a micro-batch brought to light, the reaction begun where one is due. Guarded clicks say nothing: when a
        bot stops, the world has not changed, and no clicks are missing. Nor do clicks that weights were not trained on
        say anything of drift: it is not the world that goes on without them."""
        trainable = np.flatnonzero(learned.trainable).tolist()
        times, types = ([getattr(clicks[at], name) for at in trainable] for name in ("timestamp", "event_type"))
        arrived = times if arrived_at is None else [arrived_at[at] for at in trainable]
        live = [came for made, came in zip(times, arrived, strict=True) if is_live(made, came)]
        if not learned.trained:
            return [*self.rates.update(live)]
        losses, hits = [learned.losses[at] for at in trainable], (learned.served_ranks[trainable] < K).tolist()
        found: list[Alarm | RateNotice] = [*self.rates.update(live)]
        self.reaction.after(len(clicks))
        for alarm in self.drift.update(types, losses, hits, times):
            # What is seen in an outage is not the world: nothing is to be forgotten for it.
            if not self.rates.falling:
                self.reaction.start(alarm)
            found.append(alarm)
        return found

    def silence(self, idle_s: float) -> list[RateNotice]:
        """To be asked while no messages come; `idle_s`: seconds for which none has come."""
        notice = self.rates.silence(idle_s)
        return [] if notice is None else [notice]

    def to_state(self) -> dict[str, Any]:
        return {
            "drift": self.drift.to_state(),
            "rates": self.rates.to_state(),
            "reaction": self.reaction.to_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave, after the learner has taken back its own."""
        self.drift.load_state(state["drift"])
        self.rates.load_state(state["rates"])
        self.reaction.load_state(state["reaction"])
