"""Times of day are checked when settings are, with a line that says what is wrong."""

from datetime import UTC, datetime

import pytest

from online.config.cron import cron_trigger
from online.config.settings import SettingsError, load_settings

MONDAY = datetime(2024, 11, 18, 12, 0, tzinfo=UTC)


def test_the_next_time_is_that_of_a_crontab_in_utc():
    assert cron_trigger("30 3 * * mon-fri").get_next_fire_time(None, MONDAY) == datetime(
        2024, 11, 19, 3, 30, tzinfo=UTC
    )
    assert cron_trigger("0 */6 * * sun").get_next_fire_time(None, MONDAY) == datetime(2024, 11, 24, tzinfo=UTC)
    assert cron_trigger("0 0 * * */2").get_next_fire_time(None, MONDAY) == datetime(2024, 11, 20, tzinfo=UTC)


def test_jitter_moves_it_no_further_than_its_limit():
    times = {cron_trigger("30 3 * * *", 60).get_next_fire_time(None, MONDAY) for _ in range(50)}
    assert len(times) > 10
    assert all(abs((time - datetime(2024, 11, 19, 3, 30, tzinfo=UTC)).total_seconds()) <= 60 for time in times)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nightly", "five fields are needed: .* like '30 3 .*'; these are 1"),
        ("61 3 * * *", r"'61'.*maximum value \(59\)"),
        ("0 3 * * 1-5", "weekdays go by name, like mon-fri or sat,sun, not '1-5'"),
        ("0 3 * nov-sep *", "nov|range"),
        ("0 3 31 feb *", "'0 3 31 feb \\*' never comes"),
    ],
)
def test_an_invalid_time_is_refused_with_the_name_of_the_setting(monkeypatch, text, line):
    monkeypatch.setenv("NEXTCLICK_FINETUNE_CRON", text)
    with pytest.raises(SettingsError, match=f"NEXTCLICK_FINETUNE_CRON: .*{line}"):
        load_settings()


def test_without_one_nothing_is_scheduled_by_the_timetable(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_FINETUNE_CRON", "")
    assert load_settings().finetune_cron is None
