"""Clicks that stop coming are noticed as what they are, whether they come slowly or not at all."""

import json

import numpy as np
import pytest

from online.evaluation import worlds
from online.lifecycle.click_rates import RateWatch, rate_text

START = 1_730_000_000.0


def poisson(seed, rate_hz, count, begin):
    return (begin + np.random.default_rng(seed).exponential(1 / rate_hz, count).cumsum()).tolist()


def watched(share=0.2, clicks_each=100, count=3_000):
    rates = RateWatch(share, clicks_each)
    times = poisson(0, 2.0, count, START)
    assert rates.update(times) == []
    return rates, times[-1]


def test_a_rate_that_falls_to_a_tenth_is_an_outage_until_it_is_back():
    rates, end = watched()
    assert rates.expected_hz == pytest.approx(2.0, rel=0.1)
    slow = poisson(1, 0.2, 200, end)
    begun = rates.update(slow)
    assert [notice.kind for notice in begun] == ["outage"]
    assert begun[0].at <= 3_000 + 100
    assert begun[0].rate_hz < 0.2 * begun[0].expected_hz
    assert rates.falling
    ended = rates.update(poisson(2, 2.0, 300, slow[-1]))
    assert [notice.kind for notice in ended] == ["outage_over"]
    assert ended[0].at <= 3_200 + 100
    assert rates.outages == 1
    assert rates.last_outage == begun[0].as_dict()


def test_a_rate_that_falls_to_a_half_is_none():
    rates, end = watched()
    assert rates.update(poisson(1, 1.0, 2_000, end)) == []


def test_silence_is_noticed_while_it_lasts_and_reported_once():
    rates, end = watched()
    assert rates.silence(100.0) is None
    notice = rates.silence(1_000.0)
    assert notice is not None
    assert (notice.kind, notice.at, notice.at_s) == ("outage", 3_000, end + 1_000.0)
    assert "clicks are missing" in str(notice)
    assert rates.silence(2_000.0) is None
    assert rates.missing
    after = rates.update(poisson(1, 2.0, 300, end + 5_000.0))
    assert (rates.outages, rates.missing) == (1, False)
    assert [notice.kind for notice in after] == ["outage_over"]
    assert "as they used to" in str(after[0])


def test_after_a_silence_that_was_only_a_delay_it_is_over_with_the_first_click():
    rates, end = watched()
    assert rates.silence(1_000.0) is not None
    assert [(notice.kind, notice.at) for notice in rates.update(poisson(1, 2.0, 5, end))] == [("outage_over", 3_001)]


def test_what_the_clock_has_reported_is_not_in_the_state():
    rates, _ = watched()
    before = json.dumps(rates.to_state())
    rates.silence(1_000.0)
    assert json.dumps(rates.to_state()) == before


def test_nothing_is_expected_before_enough_was_seen():
    rates = RateWatch(0.2, 100)
    times = poisson(0, 2.0, 400, START)
    assert rates.update(times) == []
    assert rates.expected_hz is None
    assert rates.silence(1e6) is None


def test_a_rate_that_stays_low_becomes_the_expected_one():
    rates, end = watched()
    found = rates.update(poisson(1, 0.3, 60_000, end))
    assert [notice.kind for notice in found] == ["outage", "outage_over"]
    assert rates.expected_hz == pytest.approx(0.3, rel=0.2)


def test_clicks_that_come_late_count_as_now():
    rates, end = watched()
    assert rates.update([end - 1e6] * 50) == []
    assert rates.update([end + 1.0]) == []


@pytest.mark.parametrize("cut", [0, 1, 50, 777, 1_080, 1_400])
def test_restored_from_json_it_goes_on_as_if_nothing_had_happened(cut):
    times = poisson(0, 2.0, 1_000, START)
    times += poisson(1, 0.1, 120, times[-1])
    times += poisson(2, 2.0, 500, times[-1])
    whole, stopped, restored = RateWatch(0.2, 100), RateWatch(0.2, 100), RateWatch(0.2, 100)
    before = whole.update(times[:cut])
    stopped.update(times[:cut])
    restored.load_state(json.loads(json.dumps(stopped.to_state())))
    assert [*before, *restored.update(times[cut:])] == [*before, *whole.update(times[cut:])]
    assert whole.outages == 1
    assert restored.to_state() == whole.to_state()


def test_with_spells_of_another_length_after_a_restart_the_rate_is_learned_anew():
    rates, end = watched()
    other = RateWatch(0.2, 50)
    other.load_state(rates.to_state())
    assert other.expected_hz is None
    assert other.update(poisson(1, 2.0, 1_000, end)) == []
    assert other.expected_hz == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("seed", range(4))
def test_in_worlds_an_outage_is_reported_and_nothing_else(seed):
    def told(world):
        rates = RateWatch(0.2, 200)
        return [(one.kind, one.at) for one in rates.update(click.timestamp for click in world.clicks(7_000))]

    assert told(worlds.quiet(seed)) == []
    assert told(worlds.sudden(seed, change_at=3_000)) == []
    for world in (worlds.outage(seed, kept=0.05), worlds.silence(seed)):
        (begun, began), (ended, over) = told(world)
        assert (begun, ended) == ("outage", "outage_over")
        assert 5_000 <= began <= over <= 5_800


def test_a_burst_spoils_nothing_that_is_expected_whether_it_comes_first_or_later():
    """An import that is over in seconds is no pace that has to be kept."""
    rates, end = watched()
    assert rates.update(poisson(3, 3_900.0, 24_000, end)) == []
    assert rates.expected_hz == pytest.approx(2.0, rel=0.2)
    assert rates.update(poisson(4, 2.0, 1_000, end + 10.0)) == []
    first = RateWatch(0.2, 100)
    assert first.update(poisson(3, 3_900.0, 24_000, START)) == []
    assert first.silence(50.0) is None  # nothing is expected after seconds
    assert first.update(poisson(4, 2.0, 2_000, START + 10.0)) == []
    assert first.expected_hz == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("at", [0, 100, 2_000])
def test_a_gap_of_a_week_spoils_nothing_that_is_expected(at):
    rates, times = RateWatch(0.2, 100), poisson(0, 2.0, 40_000, START)
    rates.update([time + 7 * 86_400.0 * (number >= at) for number, time in enumerate(times)])
    assert rates.expected_hz == pytest.approx(2.0, rel=0.5)
    assert not rates.missing


@pytest.mark.parametrize(
    ("hz", "spoken"),
    [
        (3_900.0, "3,900 a second"), (4_021.7, "4,000 a second"), (12.0, "12 a second"), (1.5, "1.5 a second"),
        (0.2, "12 a minute"), (1 / 60, "1 a minute"), (0.999 / 60, "1 a minute"), (0.01, "36 a hour"),
        (1e-5, "less than 1 a day"), (3 / 86_400, "3 a day"), (0.0, "none"), (1.2e6, "1,200,000 a second"),
    ],
)  # fmt: skip
def test_rates_are_written_in_units_that_are_easy_to_read(hz, spoken):
    assert rate_text(hz) == spoken.replace("a hour", "an hour")


def test_after_slow_clicks_only_a_long_silence_is_reported():
    rates, end = watched()
    rates.update(end + 600.0 * number for number in range(1, 150))  # read all at once, when it was long over
    assert rates.silence(0.01) is None
    assert rates.silence(60.0) is None
    assert rates.silence(1e5) is not None
