"""Publishes a file of events, at the pace that was asked for, so that it may be interrupted and repeated at any time.

The order is: rows are sent, the broker acknowledges them, then the progress file says so. After a crash in between, the
rows are published again with the same event ids, by which the worker recognises them.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from online.commands.replay_progress import Progress
from stream.event_files import EventFile, EventFileError, RowTally
from stream.events import BadEvent, Limits, parse_click
from stream.source import Producer

_UNACKNOWLEDGED_ROWS_MAX = 5_000
_UNACKNOWLEDGED_S_MAX = 1.0
_SHORTEST_SLEEP_S = 0.02  # what falls due in this time is sent together


@dataclass(frozen=True)
class Pace:
    """How fast to publish: `rate` events/s, or stream time multiplied by `speedup`; neither: as fast as can be."""

    rate: float | None = None
    speedup: float | None = None

    def due_s(self, published: int, first_timestamp: float | None, timestamp: float | None) -> float:
        """When the next row is due, in seconds from the beginning. A row without a readable time is due at once."""
        if self.rate is not None:
            return published / self.rate
        if self.speedup is not None and first_timestamp is not None and timestamp is not None:
            return (timestamp - first_timestamp) / self.speedup
        return 0.0


_AT_ONCE = Pace()
_LIMITS = Limits()


@dataclass
class Replayed:
    """What a replay has done: `rows` of the file are on the topic, `published` of them in this run."""

    rows: int
    resumed_at: int
    published: int = 0
    complete: bool = False
    stopped: bool = False
    seconds: float = 0.0
    #: There was nothing left to publish.
    already_done: bool = False
    #: Rows sent in this run that will be dead letters, by reason.
    broken: Counter[str] = field(default_factory=Counter)
    #: All rows of the file so far, those of runs before too.
    tally: RowTally = field(default_factory=RowTally)


def replay(
    file: EventFile,
    producer: Producer,
    topic: str,
    progress: Progress,
    *,
    pace: Pace = _AT_ONCE,
    limit: int | None = None,
    stop: threading.Event | None = None,
    limits: Limits = _LIMITS,
    on_progress: Callable[[Replayed], None] = lambda _: None,
) -> Replayed:
    """Publish the rows of `file` that `progress` does not have yet; only the file's first `limit`, where given.

    Begins after the rows that `progress` has loaded. Ends early when `stop` is set; what is acknowledged by then is
    kept. Raises EventFileError, SourceError or ReplayError; the next run goes on where this one ended, in each case.
    """
    stop = stop or threading.Event()
    rows = progress.rows
    done = Replayed(rows=rows, resumed_at=rows, tally=RowTally(rows=rows, bad=progress.bad.copy()))
    if limit is not None and rows >= limit:
        done.already_done = True
        return done
    progress.refuse_unwritable()
    started = acknowledged_at = time.monotonic()
    first_timestamp: float | None = None
    sent = 0  # since the last acknowledgement

    def acknowledge() -> None:
        nonlocal sent, acknowledged_at
        if sent:
            producer.flush()
            done.rows, done.published, sent = done.rows + sent, done.published + sent, 0
            progress.save(done.tally.bad)
        acknowledged_at = time.monotonic()
        done.seconds = acknowledged_at - started
        on_progress(done)

    try:
        for message in file.messages(skip=rows):
            if limit is not None and message.row > limit:
                break
            click = parse_click(message.value, limits=limits)
            timestamp = None if isinstance(click, BadEvent) else click.timestamp
            first_timestamp = timestamp if first_timestamp is None else first_timestamp
            early_s = started + pace.due_s(done.published + sent, first_timestamp, timestamp) - time.monotonic()
            if early_s > 0:
                acknowledge()
                stop.wait(max(early_s, _SHORTEST_SLEEP_S))
            if stop.is_set():
                done.stopped = True
                break
            producer.send(topic, key=message.key, value=message.value)
            progress.add(message)
            sent += 1
            done.tally.add(message, click)
            if isinstance(click, BadEvent):
                done.broken[click.reason] += 1
            if sent >= _UNACKNOWLEDGED_ROWS_MAX or time.monotonic() - acknowledged_at > _UNACKNOWLEDGED_S_MAX:
                acknowledge()
        else:
            done.complete = True
    except EventFileError:  # what was sent before the fault is not sent again once it is mended
        acknowledge()
        raise
    acknowledge()
    done.already_done = done.complete and done.published == 0
    return done
