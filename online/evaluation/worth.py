"""How well a learner predicts what clicks are worth, and whether items that a user gave back stay in the user's list.

Letters: `n` clicks, `T` event types that have a weight.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.evaluation import calibration
from online.learner.asking import Question
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from stream.events import Click

WEEK_S = 7 * 86_400.0
TOP = 10  # places of a list that are looked at, beside all of it
_ROUNDED = 5  # digits


class PredictedWorth:
    """Of each click what was predicted of its item just before, as far as it was a kept candidate."""

    def __init__(self, n: int, settings: Settings) -> None:
        self.names = list(settings.weights_by_type)
        self.value_max = settings.value_max
        self.chances = np.full((n, len(self.names)), np.nan)
        self.values = np.full(n, np.nan)

    def add(self, batch: range, learned: BatchResult) -> None:
        """Notes the clicks of a micro-batch, as they were predicted before they were learned."""
        for step in learned.steps:
            scored = step.scored
            if scored.heads is None or step.worth is None:
                continue
            places = scored.places(scored.positions(learned.targets[step.part]))
            kept = np.flatnonzero(places >= 0)
            at = batch.start + step.part.start + kept
            found = scored.heads.cpu().numpy()[kept, places[kept]]
            self.chances[at], self.values[at] = found[:, :-1], found[:, -1]

    def figures(self, types: Sequence[str], values: NDArray[np.float64], inside: NDArray[np.bool_]) -> dict[str, Any]:
        """Returns, as JSON, the calibration of each head over the clicks whose item was kept.

        Args:
            types: (n,) of the clicks.
            values: (n,) NaN: none.
            inside: (n,) which clicks are scored.
        """
        known = inside & np.isfinite(self.values)
        kinds, found = np.array(types), {}
        for at, name in enumerate(self.names):
            was = kinds == name
            curve = calibration.reliability(self.chances[known, at], was[known])
            found[name] = {
                "clicks": int(known.sum()),
                "expected_calibration_error": round(curve.error, _ROUNDED),
                "mean_predicted": round(float(self.chances[known, at].mean()), _ROUNDED) if known.any() else None,
                "share": round(float(was[known].mean()), _ROUNDED) if known.any() else None,
            }
        valued = known & np.isfinite(values)
        if valued.any():
            clipped = np.clip(values[valued], 0.0, self.value_max)
            found["value"] = {
                "clicks": int(valued.sum()),
                "mean_predicted": round(float(self.values[valued].mean()), _ROUNDED),
                "mean": round(float(clipped.mean()), _ROUNDED),
            }
        return found


class ReturnedItems:
    """Whether an item stands in the list of the user who gave it back, a week after that."""

    def __init__(self, clicks: Sequence[Click], settings: Settings, first_scored: int) -> None:
        """`settings`: which event types have a negative weight; those of the whole backtest, not of one learner."""
        against = {name for name, weight in settings.weights_by_type.items() if weight < 0}
        self.clicks = clicks
        self.size = settings.list_size
        self._due: list[tuple[float, int]] = []  # a heap: the moment, and the click that gave back
        self._against = [at >= first_scored and click.event_type in against for at, click in enumerate(clicks)]
        self.looked = 0
        self.found = np.zeros(2, np.int64)  # in the first TOP, and in the list

    def after(self, batch: range, learner: Learner) -> None:
        """Looks at the lists that fall due once a micro-batch is learned."""
        for at in batch:
            if self._against[at]:
                heapq.heappush(self._due, (self.clicks[at].timestamp + WEEK_S, at))
        due = []
        while self._due and self._due[0][0] <= self.clicks[batch.stop - 1].timestamp:
            due.append(heapq.heappop(self._due))
        if not due:
            return
        questions = [Question(self.clicks[at].user_id, at=moment, k=self.size) for moment, at in due]
        for (_, at), answer in zip(due, learner.answerer.answer(questions), strict=True):
            item = self.clicks[at].item_id
            self.looked += 1
            self.found += np.array([item in answer.items[:TOP], item in answer.items])

    def figures(self) -> dict[str, Any]:
        """Returns the shares as JSON."""
        shares = self.found / max(1, self.looked)
        return {
            "returns": self.looked,
            f"in_first_{TOP}": round(shares[0], _ROUNDED),
            "in_list": round(shares[1], _ROUNDED),
        }
