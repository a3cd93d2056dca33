"""Times in every unit and spelling, and the numbers that look like dates."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.timestamps import UNITS, TimestampError, as_json, date_form, seconds_of, span

NOW = 1_796_000_000.0
AHEAD = 86_400.0
PER_SECOND = [per_second for _, per_second, _ in UNITS]
plausible_s = st.integers(int(datetime(1975, 1, 1, tzinfo=UTC).timestamp()), 10**11 - 1)


def seconds(value, now=1e12):
    return seconds_of(value, now=now, ahead_s_max=AHEAD)


def refused(value, now=NOW):
    with pytest.raises(TimestampError) as caught:
        seconds_of(value, now=now, ahead_s_max=AHEAD)
    assert len(caught.value.detail) <= 300
    return caught.value


@given(plausible_s, st.sampled_from(PER_SECOND), st.integers(0, 10**9 - 1))
def test_every_plausible_time_is_read_in_every_unit_as_int_float_and_text(whole, per_second, fraction):
    ticks = whole * per_second + fraction % per_second
    exact = Decimal(ticks) / per_second
    if date_form(ticks):
        assert "looks like a date" in refused(ticks).hint
        return
    assert seconds(ticks) == seconds(str(ticks)) == float(exact)
    assert seconds(json.loads(json.dumps(ticks))) == float(exact)
    # A float holds 16 digits: the nearest one may be the first number of the next unit, or a date by its digits.
    below = next(below for below, of_unit, _ in UNITS if of_unit == per_second)
    if float(ticks) < below and date_form(float(ticks)) is None:
        assert math.isclose(seconds(float(ticks)), exact, rel_tol=1e-15)
        assert math.isclose(seconds(repr(float(ticks))), exact, rel_tol=1e-15)


@given(plausible_s)
def test_the_units_of_a_time_agree(whole):
    found = {seconds(whole * per_second) for per_second in PER_SECOND if date_form(whole * per_second) is None}
    assert found <= {float(whole)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_732_233_600_250, 1_732_233_600.25),
        ("1732233600250", 1_732_233_600.25),
        ("1732233600.25", 1_732_233_600.25),
        (1_732_233_600_250_000, 1_732_233_600.25),
        (1_732_233_600_250_000_000, 1_732_233_600.25),
        ("1732233600250000000", 1_732_233_600.25),
        ("1.7322336e9", 1_732_233_600.0),
        (" 1732233600 ", 1_732_233_600.0),
        ("+5", 5.0),
        (99_999_999_999, 99_999_999_999.0),
        (100_000_000_000, 100_000_000.0),
        (10**14 - 1, 99_999_999_999.999),
        (10**14, 10.0**8),
        (10**17 - 8, 99_999_999_999.999992),
        (10**17, 10.0**8),
        (float(10**17 - 8), 10.0**8),  # no float lies between: it is the number it is
        (0, 0.0),
        (1, 1.0),
        (60, 60.0),
        (1_000, 1_000.0),
        (2026, 2_026.0),
        ("2026", 2_026.0),
        (261_128, 261_128.0),
        (20_261_328, 20_261_328.0),  # there is no 13th month
        (20_261_131, 20_261_131.0),  # nor a 31st of November
        (20_261_128.5, 20_261_128.5),
        (19_991_231 - 1_000_000, 18_991_231.0),
        ("2024-11-22t00:00:00z", 1_732_233_600.0),
        ("2024-11-22 00:00:00+00:00", 1_732_233_600.0),
        ("2024-11-22 00:00:00 +0000", 1_732_233_600.0),
        ("2024-W47-5T00:00:00Z", 1_732_233_600.0),
        ("2024-11-22T00:00Z", 1_732_233_600.0),
        ("2024-11-22T00:00:00,25Z", 1_732_233_600.25),
    ],
)
def test_what_is_read(value, expected):
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("number", "form"),
    [
        (20261128, "YYYYMMDD"),
        (20000229, "YYYYMMDD"),
        (19000101, "YYYYMMDD"),
        (20991231, "YYYYMMDD"),
        (202611281230, "YYYYMMDDhhmm"),
        (20261128123000, "YYYYMMDDhhmmss"),
        (20161231235960, "YYYYMMDDhhmmss"),
        (20261128123000123, "YYYYMMDDhhmmss and milliseconds"),
        (20261128123000123456, "YYYYMMDDhhmmss and microseconds"),
    ],
)
def test_a_date_by_its_digits_is_no_time(number, form):
    for value in (number, str(number), float(number), f"{number}.0"):
        if number > 2**53 and not isinstance(value, int | str):
            continue
        error = refused(value)
        assert error.reason == "invalid-timestamp"
        assert f"it looks like a date ({form})" in error.hint


def test_a_made_up_clock_is_refused_only_where_it_looks_like_a_date():
    for step in (1, 60, 1_000):
        refused_ones = [n * step for n in range(100_000) if _is_refused(n * step)]
        assert all(19_000_101 <= number <= 20_991_231 for number in refused_ones)
    assert not any(_is_refused(10**9 + 60 * n) for n in range(10_000))


def _is_refused(value):
    try:
        seconds(value)
    except TimestampError:
        return True
    return False


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (None, "missing-timestamp", "missing or null"),
        (True, "invalid-timestamp", "is true or false"),
        ({"$date": 1}, "invalid-timestamp", "is an object"),
        (-1, "invalid-timestamp", "negative"),
        ("-1", "invalid-timestamp", "negative"),
        (math.nan, "invalid-timestamp", "not finite"),
        (math.inf, "invalid-timestamp", "not finite"),
        ("1e999", "invalid-timestamp", "not finite"),
        ("nan", "invalid-timestamp", "needed is a number since 1970"),
        ("1_000", "invalid-timestamp", "needed is a number since 1970"),
        ("\u0661\u0662", "invalid-timestamp", "needed is a number since 1970"),
        ("9" * 10_000, "invalid-timestamp", "10,000 characters"),
        (10**20, "future-timestamp", "larger than any time in nanoseconds"),
        (10**400, "future-timestamp", "an integer of hundreds of digits"),
        ("2024-11-22", "invalid-timestamp", "a date alone"),
        ("2024-11-22T00:00:00", "invalid-timestamp", "write Z at its end"),
        ("2024-11-22 00:00:00", "invalid-timestamp", "write Z at its end"),
        ("2024-11-22 00:00:00 UTC", "invalid-timestamp", "write Z for UTC"),
        ("2024-11-22T00:00:00 Europe/Berlin", "invalid-timestamp", "the name of a zone is no offset"),
        ("2024-11-22T00:00:00+01:00[Europe/Berlin]", "invalid-timestamp", "leave out the name of the zone"),
        ("2024-11-22 10:00:00.1 +0000 UTC", "invalid-timestamp", "leave out the name of the zone"),
        ("2024-11-22T24:00:00Z", "invalid-timestamp", "00:00 of the next day"),
        ("2024-11-22T9:00:00Z", "invalid-timestamp", "hours have two digits"),
        ("2024-1-2T10:00Z", "invalid-timestamp", "months and days have two digits"),
        ("22.11.2024 10:00", "invalid-timestamp", "the year comes first"),
        ("11/22/2024", "invalid-timestamp", "the year comes first"),
        ("2024/11/22 10:00", "invalid-timestamp", "a date has hyphens"),
        ("1732233600,25", "invalid-timestamp", "a decimal point"),
        ("1732233600250ms", "invalid-timestamp", "leave out the unit"),
    ],
)
def test_what_is_refused_and_what_to_do(value, reason, words):
    error = refused(value)
    assert error.reason == reason
    assert words in error.detail


@pytest.mark.parametrize(("per_second", "unit"), [(1, "seconds"), (10**3, "milliseconds"), (10**9, "nanoseconds")])
def test_a_date_ahead_says_by_how_much_and_guesses_no_other_unit(per_second, unit):
    error = refused(int((NOW + 9 * 86_400) * per_second))
    assert error.reason == "future-timestamp"
    assert f"lies 9 days ahead of this machine's clock, taken as {unit}" in error.detail
    assert error.hint == ""
    assert "?" not in error.detail


def test_a_date_ahead_in_text_and_as_digits():
    assert "lies 9 days ahead of this machine's clock: " in refused("2026-12-07T23:33:20Z", NOW - 86_400).detail
    assert "YYYYMMDDhh" in refused(2027112812).hint


@given(st.floats(0, 2e11))
def test_what_is_written_is_read_as_the_same_time(moment):
    assert seconds(json.loads(json.dumps(as_json(moment)))) == moment


@pytest.mark.parametrize("moment", [20261128.0, 20000229.0, 1.5e11, 2.5e11 + 0.5])
def test_a_time_that_would_be_another_as_a_number_is_written_as_text(moment):
    assert isinstance(as_json(moment), str)
    assert seconds(as_json(moment)) == moment


@pytest.mark.parametrize(
    ("given_s", "text"),
    [(10, "10 seconds"), (119, "119 seconds"), (130, "2 minutes"), (7_300, "2 hours"), (9 * 86_400, "9 days"),
     (1e9, "32 years"), (1e12, "31,688 years")],
)  # fmt: skip
def test_spans_are_written_in_the_largest_fitting_unit(given_s, text):
    assert span(given_s) == text


@given(st.text(max_size=80) | st.integers() | st.floats() | st.binary().map(str))
def test_anything_is_read_or_refused_with_a_reason(value):
    try:
        found = seconds_of(value, now=NOW, ahead_s_max=AHEAD)
    except TimestampError as error:
        found, why = None, error
    if found is None:
        assert why.reason in ("invalid-timestamp", "future-timestamp")
        assert len(why.detail) <= 300
    else:
        assert 0 <= found <= NOW + AHEAD
