"""Notices that the stream has changed: river's ADWIN over the loss of each click."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from river.drift import ADWIN


@dataclass(frozen=True)
class Alarm:
    """The mean loss has changed: from what, to what, and when."""

    at: int  # clicks watched until the alarm
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class DriftWatch:
    """ADWIN (Bifet & Gavaldà 2007) whose state is exactly a bounded list of the values it was given.

    ADWIN itself can be saved by pickling alone. So the values are kept, at most `values_held`, and feeding them to a
    new ADWIN gives the same detector again. When the list is full, detector and list start over from its later half.
    """

    def __init__(self, delta: float, values_held: int) -> None:
        self.delta = delta
        self.values_held = values_held
        self.watched = 0
        self.alarms = 0
        self.last_alarm: dict[str, Any] | None = None
        self._restart([])

    def _restart(self, values: list[float]) -> None:
        self._values = values
        self._adwin: Any = ADWIN(delta=self.delta)  # type: ignore[no-untyped-call]  # river has no types
        for value in values:
            self._adwin.update(value)

    @property
    def mean_loss(self) -> float:
        """Mean over ADWIN's window: since the last change."""
        return round(float(self._adwin.estimation), 4)

    def update(self, values: Iterable[float]) -> list[Alarm]:
        """Takes the losses of some clicks, in order; returns an alarm for each change found."""
        found = []
        for value in values:
            before = self._adwin.estimation
            self.watched += 1
            self._values.append(value)
            self._adwin.update(value)
            if self._adwin.drift_detected:
                alarm = Alarm(self.watched, before, self._adwin.estimation)
                self.alarms += 1
                self.last_alarm = alarm.as_dict()
                found.append(alarm)
            if len(self._values) >= self.values_held:
                self._restart(self._values[self.values_held // 2 :])
        return found

    def to_state(self) -> dict[str, Any]:
        return {
            "watched": self.watched,
            "alarms": self.alarms,
            "last_alarm": self.last_alarm,
            "values": list(self._values),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.watched, self.alarms, self.last_alarm = state["watched"], state["alarms"], state["last_alarm"]
        self._restart(list(state["values"])[-self.values_held + 1 :])
