"""When a click was made: a number since 1970 in one of four units, or ISO 8601 with an offset -> seconds since 1970.

The unit follows from the magnitude. Each unit has three decades of its own, which reach from 1973 to the year 5138 (for
seconds from 1970), so no plausible time is ambiguous:

| number | unit |
| --- | --- |
| below 1e11 | seconds |
| 1e11 up to 1e14 | milliseconds |
| 1e14 up to 1e17 | microseconds |
| 1e17 up to 1e20 | nanoseconds |

Numeric text is the number it spells. What looks like a date by its digits is none of these: 20261128 (YYYYMMDD) would
be August 1970 in seconds. So whole numbers that are a date of the calendar from 1900 to 2099 are refused, as YYYYMMDD,
YYYYMMDDhhmm, YYYYMMDDhhmmss, and with milli- or microseconds after that. Everything else is taken at its word, from 0
on: a made-up clock may count 1, 2, 3 or in steps of 60, and 2026 may be a second of it.
"""

import math
import re
from datetime import UTC, datetime
from typing import Any

from stream.redact import kind, short

#: (below this number, how many of the unit are a second, the unit)
UNITS = (
    (10**11, 1, "seconds"),
    (10**14, 10**3, "milliseconds"),
    (10**17, 10**6, "microseconds"),
    (10**20, 10**9, "nanoseconds"),
)
_NO_DATE_FROM, _SECONDS_BELOW = 1e8, 1e11  # whole numbers in between are seconds, and dates of none of the forms
_NUMBERS = (float, int)
_DATE_FORMS = {
    8: "YYYYMMDD",
    12: "YYYYMMDDhhmm",
    14: "YYYYMMDDhhmmss",
    17: "YYYYMMDDhhmmss and milliseconds",
    20: "YYYYMMDDhhmmss and microseconds",
}
_DATE_PLACES = ((0, 4), (4, 2), (6, 2), (8, 2), (10, 2), (12, 2))  # where year, month, ... begin, and their digits
_DATE_YEARS = range(1900, 2100)
_TEXT_CHARACTERS_MAX = 64
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_NEEDED = "needed is a number since 1970, or ISO 8601 with an offset, as in 2024-11-22T00:00:00Z"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?"
#: Near misses of ISO 8601, each with what to do about it; the first that matches is reported.
_NEAR_MISSES = tuple(
    (re.compile(pattern, re.IGNORECASE), hint)
    for pattern, hint in (
        (rf"{_DATE}", "a date alone: a time and an offset are needed too, as in T00:00:00Z"),
        (rf"{_DATE}[T ]24:00(?::00(?:[.,]0+)?)?(?![0-9:]).*", "24:00 is written as 00:00 of the next day"),
        (rf"{_DATE}[T ][0-9]:.*", "hours have two digits"),
        (rf"{_DATE}[T ]{_TIME} ?\S*\[.*\]", "leave out the name of the zone in brackets"),
        (rf"{_DATE}[T ]{_TIME} ?(?:UTC|GMT)", "write Z for UTC, right after the time"),
        (rf"{_DATE}[T ]{_TIME} ?[+-][0-9:]+ \S+", "leave out the name of the zone after the offset"),
        (rf"{_DATE}[T ]{_TIME} ?[a-z]+(?:/[a-z_/]+)?", "the name of a zone is no offset: write it as in +01:00"),
        (r"[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{4}.*", "the year comes first, as in 2024-11-22T00:00:00Z"),
        (r"[0-9]{4}[./][0-9]{1,2}[./][0-9]{1,2}.*", "a date has hyphens, as in 2024-11-22T00:00:00Z"),
        (r"[0-9]{4}-(?:[0-9]-[0-9]{1,2}|[0-9]{2}-[0-9])(?![0-9]).*", "months and days have two digits"),
        (r"[0-9]+,[0-9]+", "a decimal point is needed, not a comma"),
        (r"[0-9]+ ?(?:s|ms|us|µs|ns|sec|seconds|millis)", "leave out the unit: it follows from the magnitude"),
    )
)


class TimestampError(Exception):
    """Why it is no time. `reason` is one of `stream.events.REASONS`; `detail` quotes the value, `hint` never does."""

    def __init__(self, reason: str, what: str, value: Any = None, hint: str = "") -> None:
        shown = "" if value is None else f": {short(value)}"
        self.reason, self.hint = reason, hint
        self.detail = f"timestamp {what}{shown}" + (f"; {hint}" if hint else "")
        super().__init__(self.detail)


def seconds_of(value: Any, *, now: float, ahead_s_max: float) -> float:
    """A click's `timestamp` as JSON has it -> seconds since 1970, as exactly as a float holds them.

    Args:
        value: what stands in the message.
        now: this machine's clock, in seconds since 1970.
        ahead_s_max: how far ahead of it a time may lie, in seconds.

    Raises:
        TimestampError: it is missing, no time, or too far ahead.
    """
    if type(value) in _NUMBERS and _NO_DATE_FROM <= value < _SECONDS_BELOW and value <= now + ahead_s_max:
        return float(value)  # as nearly all are
    if value is None:
        raise TimestampError("missing-timestamp", "is missing or null")
    seconds, unit = _in_text(value) if isinstance(value, str) else _in_seconds(value, value)
    if seconds > now + ahead_s_max:
        raise _ahead(seconds, now, unit, value)
    return seconds


def as_json(seconds: float) -> float | str:
    """What `seconds_of` reads as these seconds: the number itself, or ISO 8601 where that would be another time."""
    if _NO_DATE_FROM <= seconds < _SECONDS_BELOW or (seconds < _NO_DATE_FROM and date_form(seconds) is None):
        return seconds
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError):  # no message can hold it: it lies after the year 9999
        return seconds


def date_form(number: float) -> str | None:
    """How a whole number is a date by its digits, as in YYYYMMDD; None: it looks like none."""
    if isinstance(number, float) and not number.is_integer():
        return None
    digits = str(int(number)) if 0 <= number < 10**20 else ""
    form = _DATE_FORMS.get(len(digits))
    return form if form is not None and _is_date(digits) else None


def _is_date(digits: str) -> bool:
    year, month, day, hour, minute, second = (int(digits[at : at + n] or 0) for at, n in _DATE_PLACES)
    try:
        datetime(year, month, day, hour, minute, 59 if second == 60 else second, tzinfo=UTC)
    except ValueError:
        return False
    return year in _DATE_YEARS


def _in_seconds(number: Any, value: Any) -> tuple[float, str | None]:
    """-> seconds, and the unit they were given in, if one. `value`: as it stood there."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TimestampError("invalid-timestamp", f"is {kind(number)}; {_NEEDED}")
    # Compared before it becomes a float: an integer of a thousand digits does not fit one.
    if not number >= 0 or number == math.inf:
        raise TimestampError("invalid-timestamp", "is negative or not finite", value)
    if (form := date_form(number)) is not None:
        hint = f"it looks like a date ({form}): write it as in 2024-11-22T00:00:00Z, or as seconds since 1970"
        raise TimestampError("invalid-timestamp", "is no number since 1970", value, hint)
    for below, per_second, unit in UNITS:
        if number < below:
            return number / per_second, unit
    raise TimestampError("future-timestamp", "is larger than any time in nanoseconds since 1970", value)


def _in_text(text: str) -> tuple[float, str | None]:
    """As `_in_seconds`. An integer stays exact: nanoseconds have more digits than a float."""
    stripped = text.strip()
    if len(stripped) > _TEXT_CHARACTERS_MAX:
        raise TimestampError("invalid-timestamp", f"has {len(text):,} characters; {_NEEDED}")
    if stripped[4:5] != "-" and _NUMBER.fullmatch(stripped):
        return _in_seconds(int(stripped) if stripped.isdecimal() else float(stripped), text)
    seconds = _moment(stripped, text)
    if seconds < 0:
        raise TimestampError("invalid-timestamp", "lies before 1970", text)
    return seconds, None


def _moment(stripped: str, text: str) -> float:
    """A leap second counts as the first second of the next day, as POSIX has it: those since 1970 know of none."""
    leap = stripped[16:19] == ":60"
    iso = stripped[:16] + ":59" + stripped[19:] if leap else stripped
    try:
        moment = datetime.fromisoformat(iso[:-1] + "Z" if iso.endswith("z") else iso)
    except ValueError:
        hint = next((hint for pattern, hint in _NEAR_MISSES if pattern.fullmatch(stripped)), _NEEDED)
        raise TimestampError("invalid-timestamp", "is no ISO 8601 time", text, hint) from None
    if moment.tzinfo is None:
        is_date = re.fullmatch(_DATE, stripped) is not None
        hint = _NEAR_MISSES[0][1] if is_date else "write Z at its end for UTC, or as in +01:00"
        raise TimestampError("invalid-timestamp", "has no offset from UTC", text, hint)
    if leap and (int(moment.timestamp()) + 1) % 86_400:
        raise TimestampError("invalid-timestamp", "has a leap second within a day: they end a day in UTC", text)
    return moment.timestamp() + leap


def _ahead(seconds: float, now: float, unit: str | None, value: Any) -> TimestampError:
    """Says by how much, and what it was taken for."""
    as_unit = "" if unit is None else f", taken as {unit}"
    digits = f"{seconds:.0f}" if unit == "seconds" else ""
    is_date = len(digits) == 10 and _is_date(digits)
    hint = "it looks like a date (YYYYMMDDhh): write it as in 2024-11-22T00:00:00Z" if is_date else ""
    where = f"lies {span(seconds - now)} ahead of this machine's clock{as_unit}"
    return TimestampError("future-timestamp", where, value, hint)


def span(seconds: float) -> str:
    """A duration in words."""
    for size, unit in ((365.25 * 86_400, "years"), (86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"
