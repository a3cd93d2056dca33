"""Detects drift of the stream: ADWIN and Page-Hinkley over the loss of each click and the hits of served lists.

The detectors see, overall and for each event type, means over `clicks_each` clicks: users click in bursts, so the
figures of neighbouring clicks are correlated, and a detector that assumes independent values would raise an alarm for
each burst.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.lifecycle.detectors import ADWIN, PageHinkley

LOSS, HIT_RATE = "loss", "hit rate"
WORSE, BETTER = "worse", "better"
OTHER_TYPES = "other types"  # event types beyond the first `types_max`, which have detectors of their own
RECENT_MEANS = 5  # latest values whose mean decides the direction of a change that ADWIN has found
LATELY_MEANS = 40  # latest values over which `mean_loss` averages


@dataclass(frozen=True)
class Alarm:
    """A change of the stream: its direction, the means before and after it, and when it began."""

    at: int  # clicks watched until it was detected
    at_s: float  # stream time then, seconds since 1970
    signal: str  # "loss" (nats) or "hit rate"
    event_type: str | None  # None: of all clicks
    detector: str  # "ADWIN" or "Page-Hinkley"
    direction: str  # "worse" or "better"
    before: float  # mean until the change, as far back as the detector's window goes
    after: float  # mean since
    since: int  # the click at which the change began, as estimated
    since_s: float

    @property
    def size(self) -> float:
        return round(self.after - self.before, 4)

    @property
    def worse(self) -> bool:
        return self.direction == WORSE

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"size": self.size}

    def __str__(self) -> str:
        of = "" if self.event_type is None else f" of {self.event_type!r}"
        moved = "has risen" if self.after > self.before else "has fallen"
        means = "are predicted less well" if self.worse else "are predicted better"
        return (
            f"the {self.signal}{of} {moved} from {self.before:.3f} to {self.after:.3f}: clicks {means} since click "
            f"{self.since:,} (detected by {self.detector}, {self.at - self.since:,} clicks later)"
        )


class Detection(NamedTuple):
    """A change that a signal's detectors have found."""

    detector: str
    before: float
    after: float
    since: int  # clicks watched before the first of the new values
    worse: bool


class Sensitivity(NamedTuple):
    """The sensitivity of the detectors."""

    delta: float  # ADWIN's confidence; a smaller one gives fewer alarms
    tolerance: float  # rise that Page-Hinkley ignores, in standard deviations of a value
    threshold: float  # sum of the rises beyond it at which it detects a change, in the same unit
    values_held: int


class Signal:
    """One series of figures, averaged over every `clicks_each` clicks, and the two detectors that watch it.

    ADWIN (Bifet & Gavaldà 2007) compares all ways of cutting its window in two, and finds changes of any speed and
    direction. Page-Hinkley (Page 1954, Hinkley 1971) adds up how far values lie beyond their mean. Its limits are
    in standard deviations, so that they suit any stream; the noise is taken from neighbouring values, in which a change
    of level hardly shows.

    A detector could be saved only by pickling. So the values since both started are kept, at most `values_held`, and
    the same values give the same detectors. When the list is full, both restart from its later half; when one has
    detected a change, from its beginning.
    """

    def __init__(self, name: str, event_type: str | None, clicks_each: int, sensitivity: Sensitivity) -> None:
        self.name, self.event_type = name, event_type
        self.clicks_each, self.sensitivity = clicks_each, sensitivity
        self.bad = -1.0 if name == HIT_RATE else 1.0  # the sign of a change for the worse
        self._pending: list[float] = []  # figures of clicks that are not part of a value yet
        self._pending_since = 0
        self._lately: deque[float] = deque(maxlen=LATELY_MEANS)
        self.restart([], [])

    _adwin: Any  # river has no type annotations
    _page_hinkley: Any

    def restart(self, values: list[float], since: list[int]) -> None:
        """Starts new detectors with these values; `since`: how many clicks were watched before each value."""
        self._values, self._since = values, since
        self._adwin = ADWIN(delta=self.sensitivity.delta, clock=1)
        self._page_hinkley = PageHinkley(mode="up")
        self._squares, self._steps = 0.0, 0  # of the differences between neighbours
        for at, value in enumerate(values):
            self._emit(value, values[at - 1] if at else None)

    @property
    def lately(self) -> float:
        """The mean of the latest values."""
        values = [*self._lately] or self._pending
        return sum(values) / len(values) if values else 0.0

    def update(self, at: int, figure: float) -> Detection | None:
        """Adds the figure of click number `at` (from 1). Returns a change if one is detected."""
        if not self._pending:
            self._pending_since = at - 1
        self._pending.append(figure)
        if len(self._pending) < self.clicks_each:
            return None
        value = sum(self._pending) / len(self._pending)
        self._pending = []
        return self._add(value, self._pending_since)

    def _add(self, value: float, since: int) -> Detection | None:
        before = float(self._adwin.estimation)
        self._emit(value, self._values[-1] if self._values else None)
        self._values.append(value)
        self._since.append(since)
        self._lately.append(value)
        recent = self._values[-RECENT_MEANS:]
        if self._adwin.drift_detected:
            return self._detection("ADWIN", worse=self.bad * (sum(recent) / len(recent) - before) > 0)
        if self._page_hinkley.drift_detected:
            return self._detection("Page-Hinkley", worse=True)
        if len(self._values) >= self.sensitivity.values_held:
            self._restart_at(self.sensitivity.values_held // 2)
        return None

    def _emit(self, value: float, earlier: float | None) -> None:
        self._adwin.update(value)
        if earlier is not None:
            self._squares += (value - earlier) ** 2
            self._steps += 1
        noise = (self._squares / (2 * self._steps)) ** 0.5 if self._steps else np.inf
        self._page_hinkley.delta = self.sensitivity.tolerance * noise if self._steps else 0.0
        self._page_hinkley.threshold = self.sensitivity.threshold * noise
        self._page_hinkley.update(self.bad * value)

    def _detection(self, detector: str, *, worse: bool) -> Detection:
        values = np.array(self._values)
        cut = change_point(self.bad * values if worse else -self.bad * values)
        detection = Detection(detector, float(values[:cut].mean()), float(values[cut:].mean()), self._since[cut], worse)
        self._restart_at(cut)
        return detection

    def _restart_at(self, cut: int) -> None:
        self.restart(self._values[cut:], self._since[cut:])

    def to_state(self) -> dict[str, Any]:
        return {
            "pending": list(self._pending),
            "pending_since": self._pending_since,
            "lately": list(self._lately),
            "values": list(self._values),
            "since": list(self._since),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Loads what `to_state` returned; the latest values, if `values_held` is smaller now."""
        self._pending, self._pending_since = list(state["pending"]), state["pending_since"]
        self._lately.clear()
        self._lately.extend(state["lately"])
        held = self.sensitivity.values_held - 1
        self.restart(list(state["values"][-held:]), list(state["since"][-held:]))


def change_point(values: NDArray[np.float64]) -> int:
    """Returns where values (n,), n > 1, most likely rose: the first position of the new level.

    It maximises the likelihood ratio for normal values around a mean that rises once (Hinkley 1970).
    """
    n = len(values)
    left = np.arange(1, n)
    sums = values.cumsum()[:-1]
    rises = (values.sum() - sums) / (n - left) - sums / left  # mean after − mean before
    return 1 + int(np.argmax(rises * np.sqrt(left * (n - left))))


class DriftWatch:
    """Watches loss and hit rate, overall and for each of the first `types_max` event types; later types share one.

    One change gives one alarm: further detections within `cooling_clicks` count as the same change. Improvements, which
    learning itself causes, are counted separately.
    """

    def __init__(
        self, sensitivity: Sensitivity, *, clicks_each: int = 25, cooling_clicks: int = 2_000, types_max: int = 4
    ) -> None:
        self.sensitivity = sensitivity
        self.clicks_each, self.cooling_clicks, self.types_max = clicks_each, cooling_clicks, types_max
        self.watched = 0
        self.alarms = 0  # for the worse
        self.improvements = 0
        self.last_alarm: dict[str, Any] | None = None
        self.last_improvement: dict[str, Any] | None = None
        self._times: deque[tuple[int, float]] = deque(maxlen=sensitivity.values_held)  # clicks watched, stream time
        self._signals: dict[str | None, tuple[Signal, Signal]] = {None: self._pair(None)}

    def _pair(self, event_type: str | None) -> tuple[Signal, Signal]:
        return (
            Signal(LOSS, event_type, self.clicks_each, self.sensitivity),
            Signal(HIT_RATE, event_type, self.clicks_each, self.sensitivity),
        )

    @property
    def mean_loss(self) -> float:
        """The mean loss of the latest clicks, in nats."""
        return round(self._signals[None][0].lately, 4)

    def update(
        self, types: Sequence[str], losses: Iterable[float], hits: Iterable[bool], times: Iterable[float]
    ) -> list[Alarm]:
        """Adds N clicks in order.

        Args:
            types: their event types.
            losses: in nats.
            hits: whether each click's item was in the first places of the served list.
            times: stream times, in seconds since 1970.

        Returns:
            Alarms, of both directions; only those for the worse need a reaction.
        """
        alarms = []
        for event_type, loss, hit, time_s in zip(types, losses, hits, times, strict=True):
            if self.watched % self.clicks_each == 0:
                self._times.append((self.watched, float(time_s)))
            self.watched += 1
            for signal, figure in self._figures(event_type, float(loss), float(hit)):
                change = signal.update(self.watched, figure)
                if change is not None and (alarm := self._alarm(signal, change, float(time_s))) is not None:
                    alarms.append(alarm)
        return alarms

    def _figures(self, event_type: str, loss: float, hit: float) -> Iterator[tuple[Signal, float]]:
        """Yields the signals of a click with its figures."""
        if event_type not in self._signals and len(self._signals) > self.types_max:
            event_type = OTHER_TYPES
        if event_type not in self._signals:
            self._signals[event_type] = self._pair(event_type)
        for key in (None, event_type):
            losses, hits = self._signals[key]
            yield losses, loss
            yield hits, hit

    def _alarm(self, signal: Signal, change: Detection, time_s: float) -> Alarm | None:
        last = self.last_alarm if change.worse else self.last_improvement
        if last is not None and self.watched - last["at"] < self.cooling_clicks:
            return None
        alarm = Alarm(
            at=self.watched,
            at_s=time_s,
            signal=signal.name,
            event_type=signal.event_type,
            detector=change.detector,
            direction=WORSE if change.worse else BETTER,
            before=round(change.before, 4),
            after=round(change.after, 4),
            since=change.since,
            since_s=self._time_of(change.since),
        )
        if alarm.worse:
            self.alarms += 1
            self.last_alarm = alarm.as_dict()
            for pair in self._signals.values():
                for one in pair:
                    one.restart([], [])
        else:
            self.improvements += 1
            self.last_improvement = alarm.as_dict()
        return alarm

    def _time_of(self, click: int) -> float:
        """Returns the stream time of a click, to `clicks_each` clicks; the earliest known if it is too long ago."""
        at = bisect_right(self._times, click, key=lambda one: one[0])
        return self._times[max(0, at - 1)][1]

    def to_state(self) -> dict[str, Any]:
        return {
            "watched": self.watched,
            "alarms": self.alarms,
            "improvements": self.improvements,
            "last_alarm": self.last_alarm,
            "last_improvement": self.last_improvement,
            "times": [list(one) for one in self._times],
            "signals": [
                {"event_type": event_type, "loss": losses.to_state(), "hits": hits.to_state()}
                for event_type, (losses, hits) in self._signals.items()
            ],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Loads what `to_state` returned."""
        self.watched, self.alarms, self.improvements = state["watched"], state["alarms"], state["improvements"]
        self.last_alarm, self.last_improvement = state["last_alarm"], state["last_improvement"]
        self._times.clear()
        self._times.extend((click, time_s) for click, time_s in state["times"])
        self._signals = {}
        for saved in state["signals"]:
            pair = self._pair(saved["event_type"])
            pair[0].load_state(saved["loss"])
            pair[1].load_state(saved["hits"])
            self._signals[saved["event_type"]] = pair
