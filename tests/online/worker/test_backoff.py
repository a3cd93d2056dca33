"""Waiting for what is away: ever longer, within bounds, and out loud."""

import logging
import threading

import pytest

from online.config.settings import Settings
from online.worker import backoff as module
from online.worker.backoff import Backoff, StoppedError, retry_until
from stream.source import SourceError, UnavailableError


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_waits_double_up_to_the_longest_and_begin_anew_after_a_success():
    backoff = Backoff(1.0, 5.0, random=lambda: 0.0)
    assert [backoff.failed() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.succeeded()
    assert backoff.failed() == 1.0


def test_chance_makes_them_up_to_half_shorter():
    assert Backoff(1.0, 5.0, random=lambda: 1.0).failed() == 0.5


def test_an_attempt_is_due_once_the_wait_is_over():
    clock = Clock()
    backoff = Backoff(1.0, 5.0, monotonic=clock, random=lambda: 0.0)
    assert backoff.due
    backoff.failed()
    assert not backoff.due
    clock.now += 1.0
    assert backoff.due
    backoff.failed()
    backoff.succeeded()
    assert backoff.due


def test_attempts_that_take_long_to_fail_get_a_fifth_of_the_time_at_most():
    assert Backoff(1.0, 5.0, random=lambda: 0.0).failed(took_s=2.0) == 8.0


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, retry_s_min=1e-6, retry_s_max=1e-6)


def failing(times, error):
    """Raises so many times, then returns 7."""
    errors = [error] * times

    def attempt():
        if errors:
            raise errors.pop()
        return 7

    return attempt


def retried(settings, attempt, stop=None, **more):
    stop = stop or threading.Event()
    return retry_until(attempt, settings=settings, stop=stop, unavailable=(UnavailableError,), **more)


def test_what_is_unavailable_is_tried_until_it_is_there_and_reported_once(settings, caplog):
    caplog.set_level(logging.INFO, "online.worker.backoff")
    told = []
    assert retried(settings, failing(3, UnavailableError("no Kafka answers")), report=told.append) == 7
    assert told == ["no Kafka answers"] * 3 + [None]
    assert [record.message for record in caplog.records] == [
        "waiting for 0 s: no Kafka answers",
        "available after 0 s",
    ]


def test_it_is_reported_again_after_a_while(settings, caplog, monkeypatch):
    monkeypatch.setattr(module, "REPORTED_EVERY_S", 0.0)
    retried(settings, failing(3, UnavailableError("no Kafka answers")))
    assert sum("no Kafka answers" in record.message for record in caplog.records) == 3


def test_what_would_not_pass_is_raised_at_once(settings):
    with pytest.raises(SourceError, match="not a click log"):
        retried(settings, failing(1, SourceError("not a click log")))


def test_a_stop_ends_the_wait(settings):
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        retried(settings, failing(99, UnavailableError("no Kafka answers")), stop)
