"""The event time of a record, by which records of several partitions are merged."""

import time
from collections.abc import Callable

from online.config.settings import Settings
from stream.events import BadEvent, Forget, parse
from stream.merge import EventTime
from stream.source import Record


def event_time(settings: Settings, clock: Callable[[], float] = time.time) -> EventTime:
    """Returns a function that parses a record as the worker will, and gives its event time; None if it is no event.

    To read each record twice is less work than to carry what was read along: some microseconds, where learning a click
    takes milliseconds.
    """
    limits, names = settings.limits, settings.click_names

    def seconds(record: Record) -> float | None:
        try:
            event = parse(record.value, now=clock(), limits=limits, names=names)
        except Exception:  # a bug of ours; the intake meets it too, and tells of it
            return None
        if isinstance(event, BadEvent):
            return None
        if isinstance(event, Forget):  # any time is allowed there, and it must not wait for that
            return min(event.timestamp, arrived_at(record))
        return not_ahead(event.timestamp, record, settings.future_s_max)

    return seconds


def not_ahead(seconds: float, record: Record, future_s_max: float) -> float:
    """A clock that is ahead must not move the stream's: a click counts as made when it arrived at the latest, by the
    broker's clock. Where the two are further apart than any click may be, it is the broker's that is wrong."""
    latest = arrived_at(record)
    return latest if 0 < seconds - latest <= future_s_max else seconds


def arrived_at(record: Record) -> float:
    """In seconds since 1970: the end of that millisecond."""
    return (record.timestamp_ms + 1) / 1_000
