"""What is reported of many rows at once: how many are no clicks, and how often time goes back."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import count, takewhile

from stream.event_files.columns import COLUMNS
from stream.event_files.errors import EventFileError, shown
from stream.event_files.event_file import EventFile
from stream.event_files.messages import Message
from stream.events import BadEvent, Click, Limits, parse_click

#: A file with a larger share of rows that are no clicks is refused.
BAD_ROWS_MAX = 0.05
#: Rows that are judged before the first one is published: some seconds. Those beyond are judged as they are published.
CHECKED_ROWS_MAX = 200_000

_LIMITS = Limits()
_EXAMPLE_CHARACTERS_MAX = 160
_FIELD_OF = {f"{what}-{name}": name for what in ("missing", "invalid") for name in COLUMNS}


@dataclass
class RowTally:
    """Of the rows so far, in order."""

    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # by reason: a worker's dead letters
    examples: dict[str, str] = field(default_factory=dict)  # the first one of each reason
    backward: int = 0  # clicks that are earlier than one before them
    backward_s_max: float = 0.0
    latest: float = float("-inf")

    def add(self, message: Message, event: Click | BadEvent) -> None:
        self.rows += 1
        if isinstance(event, BadEvent):
            self.bad[event.reason] += 1
            if event.reason not in self.examples:
                self.examples[event.reason] = f"row {message.row:,}: {shown(event.detail)}"[:_EXAMPLE_CHARACTERS_MAX]
        elif event.timestamp < self.latest:
            self.backward += 1
            self.backward_s_max = max(self.backward_s_max, self.latest - event.timestamp)
        else:
            self.latest = event.timestamp

    @property
    def bad_share(self) -> float:
        return self.bad.total() / max(1, self.rows)

    def order_line(self) -> str | None:
        """A line about rows that are not in order of time; None where all are."""
        if not self.backward:
            return None
        share = percent(self.backward / max(1, self.rows - self.bad.total()))
        return (
            f"not in order of time: {self.backward:,} of {self.rows - self.bad.total():,} clicks ({share}) are earlier "
            f"than one before them, by up to {_duration(self.backward_s_max)}"
        )

    def refuse_if_bad(self, file: EventFile, share_max: float = BAD_ROWS_MAX, consequence: str = "") -> None:
        """Raises EventFileError where more than that share of the rows are no clicks, or all of them."""
        bad = self.bad.total()
        # Without an example none is bad of those that were looked at now; those before were taken all the same.
        if not self.examples or (self.bad_share <= share_max and bad < self.rows) or share_max == 1:
            return
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.bad.most_common())
        reason = max(self.examples, key=lambda one: self.bad[one])
        column = file.columns.get(_FIELD_OF.get(reason, ""))
        where = f"column {column!r}, " if column else ""
        raise EventFileError(
            f"{file.name}: {bad:,} of {self.rows:,} rows ({percent(self.bad_share)}) cannot be read as clicks"
            f"{consequence}: {reasons}; {where}{self.examples[reason]}; {self._way_on(file, reason)}"
        )

    def _way_on(self, file: EventFile, reason: str) -> str:
        example = self.examples[reason]
        if reason == "invalid-timestamp" and "no offset" in example:
            return "--timezone UTC (or Europe/Berlin, …) says which zone its times are in"
        if reason == "invalid-timestamp":
            return "needed are seconds, or milliseconds, since 1970, or ISO 8601 as in 2026-11-28T10:03:00+00:00"
        if reason == "invalid-utf8" and (encoding := file.encoding_hint()) is not None:
            return f"it may be {encoding}: --encoding {encoding} reads it so"
        if self.bad.total() < self.rows:
            return f"--bad-rows-max {percent(min(1.0, self.bad_share + 0.005), 0)} takes the others all the same"
        return "--columns says which column is which"


def check_rows(
    file: EventFile,
    *,
    limits: Limits = _LIMITS,
    skip: int = 0,
    bad_before: Counter[str] | None = None,
    limit: int | None = None,
) -> RowTally:
    """Judges the rows after `skip`, no more than CHECKED_ROWS_MAX, and goes through the rest of the file.

    Going through finds quotes left open and damaged data, a hundred times as fast as rows are published. `bad_before`
    counts what was wrong with the first `skip`. Raises EventFileError for what cannot be read, so that it is refused
    before the first row is out.
    """
    tally = RowTally(rows=skip, bad=Counter(bad_before))
    last = skip + CHECKED_ROWS_MAX if limit is None else min(limit, skip + CHECKED_ROWS_MAX)
    for message in takewhile(lambda message: message.row <= last, file.messages(skip=skip)):
        tally.add(message, parse_click(message.value, limits=limits))
    if tally.rows == last and (limit is None or limit > last):  # there may be more
        for _ in file.messages(skip=sys.maxsize):
            pass
    return tally


def parse_share(text: str) -> float:
    """`5%` or `0.05` as a share. Raises ValueError with one line."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is no share: give 5% or 0.05")
    return share


def percent(share: float, digits: int | None = None) -> str:
    """A share as text, with as many digits as it takes to be more than 0."""
    digits = next((d for d in count(1) if round(100 * share, d) > 0 or d > 3), 1) if digits is None else digits
    return f"{100 * share:.{digits}f}%".replace(".0%", "%")


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}".replace(".0 ", " ")
    return f"{seconds:,.1f} s"
