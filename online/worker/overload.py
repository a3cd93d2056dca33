"""The worker's lag behind the stream, and the measures against a lag that is too large.

The lag is what was written and not yet taken in: messages, and the age of the oldest of them, which the time of the
message read last tells to a second or so. A turn that leaves less than a poll takes is no lag: the next one takes it.

Lagging, the worker keeps the order and goes on with everything (`overload` = fall-behind), or leaves out training until
it has caught up (shed-training): histories, counts, memories and lists go on, weights wait. Either way fine-tuning
rests as long as clicks are late.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from online.config.settings import Settings
from online.lifecycle.emit import Emit
from online.worker.progress import Progress
from stream.source import Partition, Record, Source, SourceError

MEASURE_S = 1.0  # time between two measurements of the lag, for which the broker has to answer
ASK_PAUSES = 4.0  # least pause after a measurement, in times the duration of the broker's answer


class Lag(NamedTuple):
    """Messages that are written and not read yet."""

    messages: Mapping[Partition, int]
    seconds: Mapping[Partition, float]  # age of the oldest; only of partitions that have been read

    @property
    def total(self) -> int:
        return sum(self.messages.values())

    @property
    def oldest_s(self) -> float | None:
        """Age of the oldest message that waits, in seconds; None if it is not known."""
        return max(self.seconds.values(), default=None if self.total else 0.0)


class Overload:
    """Measures the lag, reports when it becomes too large and when that ends, and decides whether to skip training.

    It follows the computer's clock: after a crash the same clicks may be trained on, or not.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        progress: Progress,
        emit: Emit,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: the computer's, in seconds since 1970; `monotonic`: for how often the broker is asked."""
        self.settings, self.progress, self.clock = settings, progress, clock
        self._emit, self._monotonic = emit, monotonic
        self.lag: Lag | None = None  # as last measured; None while the broker does not say
        self.lagging = False  # a notice says so
        self.shedding = False  # training is left out
        self.late = False  # fine-tuning rests
        self._untrained_before = 0  # clicks that had not been trained on when this shedding began
        self._read_ms: dict[Partition, int] = {}  # when the message read last was written
        self._measure_at = float("-inf")  # not before

    def received(self, records: Sequence[Record]) -> None:
        """Notes the messages that were read, in order."""
        for record in records:
            partition = Partition(record.topic, record.partition)
            if record.timestamp_ms >= 0:
                self._read_ms[partition] = record.timestamp_ms
            else:  # some producers say no time, and then it is not known how old what follows is
                self._read_ms.pop(partition, None)

    def measure(self, source: Source) -> Lag | None:
        """Measures and returns the lag; None if the broker does not answer."""
        began = self._monotonic()
        try:
            ends, positions = source.ends(), source.positions()
        except SourceError:
            self.lag = None
            return None
        finally:
            now = self._monotonic()
            self._measure_at = now + max(MEASURE_S, ASK_PAUSES * (now - began))
        messages = {p: max(0, end - positions.get(p, end)) for p, end in ends.items()}
        now_ms = 1000 * self.clock()
        seconds = {p: round(max(0.0, now_ms - at) / 1000, 3) for p, at in self._read_ms.items() if messages.get(p)}
        self.lag = Lag(messages, seconds | {p: 0.0 for p, count in messages.items() if not count})
        return self.lag

    def update(self, source: Source) -> None:
        """Once a turn; measures every `MEASURE_S`, and decides."""
        if self._monotonic() < self._measure_at:
            return
        lag = self.measure(source)
        if lag is None:
            return
        settings = self.settings
        self.late = self._waits_longer(lag, settings.lag_over_s)
        notice_s = settings.lag_over_s if self.lagging else settings.lag_told_s
        lagging = bool(settings.lag_told_s) and self._waits_longer(lag, notice_s)
        shed_s = settings.lag_over_s if self.shedding else settings.shed_lag_s
        shedding = settings.overload == "shed-training" and self._waits_longer(lag, shed_s)
        figures = {"messages": lag.total, "seconds": lag.oldest_s}
        how = f"{lag.total:,} messages wait, the oldest for {lag.oldest_s or 0.0:.0f} s"
        if lagging != self.lagging:
            self.lagging = lagging
            kind = "lagging" if lagging else "lagging_over"
            self._emit(kind, f"{'more clicks come than can be learned' if lagging else 'caught up'}: {how}", figures)
        if shedding != self.shedding:
            self.shedding = shedding
            if shedding:
                self._untrained_before = self.progress.untrained
                self._emit("shedding", f"weights are not trained until the worker has caught up: {how}", figures)
            else:
                clicks = self.progress.untrained - self._untrained_before
                figures |= {"untrained": clicks}
                self._emit(
                    "shedding_over", f"weights are trained again; {clicks:,} clicks were not trained on", figures
                )

    def _waits_longer(self, lag: Lag, seconds: float) -> bool:
        """Returns whether more messages wait than one poll reads, and the oldest one for longer than `seconds`."""
        return lag.total > self.settings.poll_records_max and lag.oldest_s is not None and lag.oldest_s > seconds

    def to_state(self) -> dict[str, Any]:
        return {"behind": self.lagging, "shedding": self.shedding, "untrained_before": self._untrained_before}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned, so that each notice of a beginning gets its end."""
        self.lagging, self.shedding = state["behind"], state["shedding"]
        self.late = self.lagging or self.shedding  # until it is measured
        self._untrained_before = state["untrained_before"]
