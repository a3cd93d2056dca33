"""Watches the stream for drift and missing clicks, and reacts to drift: learn faster, and scale old counts down.

changes = Changes(settings, learner)
result = learner.learn(clicks)
for notice in changes.update(clicks, result):
    ...  # report it; an alarm for the worse also requests fine-tuning
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
    """The reaction to an alarm: raised learning rates for `reaction_clicks` clicks, and smaller counts of the past.

    The factor of the learning rates falls linearly back to 1. The counts are scaled down once at the beginning, so that
    new clicks soon outweigh them. Everything follows from `left`, the remaining clicks of the reaction.
    """

    def __init__(self, settings: Settings, learner: Learner) -> None:
        self.settings, self.learner = settings, learner
        self.left = 0
        self.reactions = 0

    @property
    def factor(self) -> float:
        """The present factor of the learning rates."""
        if not self.left:
            return 1.0
        return 1.0 + (self.settings.reaction_learning_rate_factor - 1.0) * self.left / self.settings.reaction_clicks

    def start(self, alarm: Alarm) -> None:
        """Starts a reaction to an alarm for the worse; an improvement needs none."""
        if alarm.worse and self.settings.reaction_clicks:
            self.begin()

    def begin(self) -> None:
        """Starts a reaction."""
        self.reactions += 1
        self.left = self.settings.reaction_clicks
        self.learner.store.decay(self.settings.reaction_counts_kept)
        if self.learner.groups is not None:
            self.learner.groups.decay(self.settings.reaction_counts_kept)
        self.learner.replay.forget(self.settings.reaction_replay_kept)
        self.learner.weights.scale_learning_rate(self.factor)

    def after(self, clicks: int) -> None:
        """Advances the reaction by so many learned clicks."""
        self.left = max(0, self.left - clicks)
        self.learner.weights.scale_learning_rate(
            self.factor
        )  # also while it is 1, because the live weights may have been replaced

    def to_state(self) -> dict[str, Any]:
        return {"left": self.left, "reactions": self.reactions}

    def load_state(self, state: dict[str, Any]) -> None:
        """Loads what `to_state` returned, after the learner has loaded its own state."""
        self.left, self.reactions = min(state["left"], self.settings.reaction_clicks), state["reactions"]
        self.learner.weights.scale_learning_rate(self.factor)


class Changes:
    """Drift, click rate and the reaction together: one call after each micro-batch, one while the stream is idle."""

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
        """Updates the detectors with a micro-batch, and starts a reaction if one is due.

        Flagged clicks are left out: when a bot stops, neither has the stream drifted nor are clicks missing. Clicks on
        which the weights were not trained are left out of drift: their loss rises for want of training.

        Args:
            clicks: the micro-batch.
            learned: its result.
            arrived_at: when each click reached the broker, in seconds since 1970; None: at its timestamp, as in
                simulated streams.

        Returns:
            Alarms, and notices of missing clicks.
        """
        trainable = np.flatnonzero(learned.trainable).tolist()
        times, types = ([getattr(clicks[at], name) for at in trainable] for name in ("timestamp", "event_type"))
        arrived = times if arrived_at is None else [arrived_at[at] for at in trainable]
        live = [arrival for made, arrival in zip(times, arrived, strict=True) if is_live(made, arrival)]
        if not learned.trained:
            return [*self.rates.update(live)]
        losses, hits = [learned.losses[at] for at in trainable], (learned.served_ranks[trainable] < K).tolist()
        notices: list[Alarm | RateNotice] = [*self.rates.update(live)]
        self.reaction.after(len(clicks))
        for alarm in self.drift.update(types, losses, hits, times):
            # During an outage the clicks that arrive are no fair sample of the stream: no reaction to them.
            if not self.rates.falling:
                self.reaction.start(alarm)
            notices.append(alarm)
        return notices

    def silence(self, idle_s: float) -> list[RateNotice]:
        """Checks for missing clicks while no messages arrive; `idle_s`: seconds since the last one."""
        notice = self.rates.silence(idle_s)
        return [] if notice is None else [notice]

    def to_state(self) -> dict[str, Any]:
        return {
            "drift": self.drift.to_state(),
            "rates": self.rates.to_state(),
            "reaction": self.reaction.to_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Loads what `to_state` returned, after the learner has loaded its own state."""
        self.drift.load_state(state["drift"])
        self.rates.load_state(state["rates"])
        self.reaction.load_state(state["reaction"])
