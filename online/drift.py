"""Notices that the stream has changed: river's ADWIN over the loss of each click."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from river.drift import ADWIN

RECENT_MEANS = 5  # what counts as "now" when an alarm says which way the loss went


@dataclass(frozen=True)
class Alarm:
    """The mean loss has risen: from what, to what, and when."""

    at: int  # clicks watched until the alarm
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class DriftWatch:
    """ADWIN (Bifet & Gavaldà 2007) over the mean loss of every `clicks_each` clicks; a loss that falls is no alarm.

    Means, because people come in bursts: the losses of neighbouring clicks resemble each other, and ADWIN, which takes
    its values for independent, would raise an alarm for each burst.

    ADWIN itself can be saved by pickling alone. So the means are kept, at most `values_held`, and feeding them to a new
    ADWIN gives the same detector again. When the list is full, detector and list start over from its later half.
    """

    def __init__(self, delta: float, clicks_each: int, values_held: int) -> None:
        self.delta = delta
        self.clicks_each = clicks_each
        self.values_held = values_held
        self.watched = 0
        self.alarms = 0
        self.last_alarm: dict[str, Any] | None = None
        self._losses: list[float] = []  # of the clicks that are not in a mean yet
        self._restart([])

    _adwin: Any  # river comes without types

    def _restart(self, means: list[float]) -> None:
        self._means = means
        self._adwin = ADWIN(delta=self.delta, clock=1)  # type: ignore[no-untyped-call]
        for mean in means:
            self._adwin.update(mean)

    @property
    def mean_loss(self) -> float:
        """Mean over ADWIN's window: since the last change."""
        return round(float(self._adwin.estimation), 4)

    def update(self, losses: Iterable[float]) -> list[Alarm]:
        """Takes the losses of some clicks, in order; returns an alarm for each rise found."""
        found = []
        for loss in losses:
            self.watched += 1
            self._losses.append(loss)
            if len(self._losses) >= self.clicks_each:
                found += self._add_mean(sum(self._losses) / len(self._losses))
                self._losses = []
        return found

    def _add_mean(self, mean: float) -> list[Alarm]:
        before = float(self._adwin.estimation)
        self._means.append(mean)
        self._adwin.update(mean)
        # ADWIN drops the oldest part of its window first, so its own estimate may fall when the loss has just risen.
        recent = self._means[-RECENT_MEANS:]
        after = sum(recent) / len(recent)
        alarms = []
        if self._adwin.drift_detected and after > before:
            alarms.append(Alarm(self.watched, round(before, 4), round(after, 4)))
            self.alarms += 1
            self.last_alarm = alarms[0].as_dict()
        if len(self._means) >= self.values_held:
            self._restart(self._means[self.values_held // 2 :])
        return alarms

    def to_state(self) -> dict[str, Any]:
        return {
            "watched": self.watched,
            "alarms": self.alarms,
            "last_alarm": self.last_alarm,
            "losses": list(self._losses),
            "means": list(self._means),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.watched, self.alarms, self.last_alarm = state["watched"], state["alarms"], state["last_alarm"]
        self._losses = list(state["losses"])
        self._restart(list(state["means"])[-self.values_held + 1 :])
