"""What users hide is written in slices, again in time, and by the worker that leads alone."""

import pytest

from online.learner.hidden import HiddenItems
from online.worker.hidden_writer import EVICTING_S, SLICE, HiddenWriter
from stream.hidden_items import RENEWALS
from stream.user_ids import digest_of
from tests.online.conftest import MemoryLists


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def scene():
    """300 users who have hidden something, what is written for them, and the clock."""
    hidden = HiddenItems(1_000, 5, now=lambda: 100.0, vocabulary=lambda: None)
    for n in range(300):
        hidden.hide(f"u{n}", "i", None if n else 50.0)  # that of the first is over
    clock, lists = Clock(), MemoryLists()
    lists.hidden.ttl_s = 10_000
    return HiddenWriter(hidden, lists.hidden, monotonic=clock), hidden, lists.hidden, clock


def steps(writer, **given):
    count = 0
    while writer.waits(**given):
        writer.step(**given)
        count += 1
    return count


def test_nothing_is_written_before_it_is_begun(scene):
    writer, _, written, clock = scene
    clock.now = 1e9
    assert not writer.waits()
    assert written.writes == []


def test_a_pass_goes_in_slices_and_what_has_changed_goes_first(scene):
    writer, hidden, written, _ = scene
    writer.renew()
    hidden.hide("new", "i")
    writer.note("new")
    writer.step()
    assert written.held == {"new": {"i": None}}
    assert steps(writer) == 3
    assert len(written.held) == 300  # the first one hides nothing any more
    assert max(written.writes) == SLICE


def test_all_is_renewed_in_time_and_more_often_while_redis_evicts(scene):
    writer, _, _, clock = scene
    writer.renew()
    steps(writer)
    clock.now = EVICTING_S
    assert not writer.waits()
    assert steps(writer, evicting=True) == 3
    clock.now += 10_000 / RENEWALS
    assert steps(writer) == 3


def test_what_another_worker_writes_is_dropped(scene):
    writer, _, written, clock = scene
    writer.renew()
    writer.note("u1")
    writer.stop()
    clock.now = 1e9
    assert not writer.waits()
    assert written.writes == []


def test_more_changes_than_users_are_held_become_a_pass(scene):
    writer, hidden, written, _ = scene
    hidden.users_max = 10
    for n in range(30):
        writer.note(f"u{n}")
    assert steps(writer) < 5
    assert len(written.held) == 299


def test_a_forgotten_user_is_not_written_again(scene):
    writer, hidden, written, _ = scene
    writer.renew()
    writer.note("u7")
    hidden.forget(digest_of("u7"))
    writer.forget(digest_of("u7"))
    steps(writer)
    assert "u7" not in written.held
    assert sum(written.writes) == 299
