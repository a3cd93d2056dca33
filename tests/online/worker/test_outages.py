"""Redis or the topic of dead letters is missing, slow or has lost its data: the loop goes on and makes up for it."""

import logging
import re

from online.worker import redis_link
from stream.events import Click
from stream.source import UnavailableError
from tests.online.worker.conftest import CLICKS, POLL

# --- without Redis -----------------------------------------------------------------------------------------------


def test_without_redis_learning_goes_on_and_lists_are_brought_up_to_date(new_harness, values, caplog):
    caplog.set_level(logging.INFO, "online.worker.list_writer")
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    there = quiet.run()

    loop = harness.begin(harness.loop(refresh_lists_max=7))
    loop.turn()
    harness.lists.away = True
    while loop.turn():
        pass
    assert loop.writer.redis_waits_since is not None
    assert loop.progress.learned == there.progress.learned
    behind = set(loop.writer.stale)
    assert behind == {value.user_id for value in values[POLL:] if isinstance(value, Click)}
    harness.lists.away = False
    turns = 0
    while left := len(loop.writer.stale):
        loop.turn()
        turns += len(loop.writer.stale) < left  # others come before Redis is asked again
    assert turns == -(-len(behind) // 7)
    assert loop.writer.redis_waits_since is None
    assert {user: top.offset for user, top in harness.lists.held.items()} == {
        user: top.offset for user, top in quiet.lists.held.items()
    }
    for user in behind:
        (ranking,) = loop.learner.rank([user], [loop.writer.stream_clock.now()])
        assert harness.lists.held[user].items == ranking.items
    assert harness.lists.popular_list == quiet.lists.popular_list
    away, back = [record.message for record in caplog.records if "Redis" in record.message]
    assert away == "no Redis answers at memory; learning goes on, lists will be brought up to date"
    assert re.fullmatch(rf"Redis takes lists again after \d+ s; {len(behind)} lists are behind", back)


def test_lists_that_were_behind_at_a_stop_are_written_after_the_start(harness, values):
    harness.publish(values)
    harness.lists.away = True
    harness.run()
    assert harness.lists.held == {}
    harness.lists.away = False
    harness.run()
    assert harness.lists.held.keys() == {value.user_id for value in values if isinstance(value, Click)}
    assert harness.lists.popular_list.offset == f"0:{CLICKS - 1}"  # the very last message is no click


def test_an_unavailable_redis_is_not_asked_with_every_micro_batch(harness, values):
    harness.publish(values)
    harness.lists.away = True
    calls = []
    write = harness.lists.write
    harness.lists.write = lambda *args, **kwargs: (calls.append(1), write(*args, **kwargs))[1]
    harness.run(retry_s_min=3_600.0, retry_s_max=3_600.0)
    assert len(calls) == 1  # for 10 micro-batches


def test_what_waits_for_redis_is_bounded(harness):
    harness.publish([Click(user_id=f"u{number}", item_id="i", timestamp=number) for number in range(300)])
    harness.lists.away = True
    loop = harness.run(users_held=16)
    assert len(loop.writer.stale) == len(loop.learner.histories) == 16
    harness.lists.away = False
    while loop.writer.stale:
        loop.turn()
    assert harness.lists.held.keys() == {f"u{number}" for number in range(284, 300)}


# --- a slow Redis ------------------------------------------------------------------------------------------------


def test_lists_wait_together_for_a_slow_redis_and_are_written_by_the_checkpoint(harness, values, monkeypatch):
    harness.publish(values)
    loop = harness.begin(harness.loop())
    monkeypatch.setattr(type(loop.writer.link), "due", False)  # as after an answer that took for ever
    writes = []
    write = harness.lists.write
    harness.lists.write = lambda *args, **kwargs: (writes.append(args), write(*args, **kwargs))[1]
    loop.turn()
    assert len(writes) == 1  # for two micro-batches: at the checkpoint
    clicks = [value for value in values[:POLL] if isinstance(value, Click)]
    assert harness.lists.held.keys() == {click.user_id for click in clicks}
    assert not loop.writer.behind


def test_a_slow_redis_gets_half_of_the_time(harness, values, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(redis_link.time, "monotonic", lambda: now[0])
    harness.publish(values)
    loop = harness.begin(harness.loop())

    def slow():
        now[0] += 1.0

    assert loop.writer.link.due
    loop.writer.link.do(slow)
    assert not loop.writer.link.due
    now[0] += 1.0
    assert loop.writer.link.due


# --- a Redis that has lost its data ------------------------------------------------------------------------------


def test_a_redis_found_empty_at_a_start_is_filled_again(harness, town_clicks):
    harness.publish(town_clicks)
    harness.run()
    before, popular = dict(harness.lists.held), harness.lists.popular_list
    harness.lists.lose_everything()
    harness.drain(harness.begin(harness.loop()))
    assert harness.lists.held.keys() == before.keys()
    for user, top in harness.lists.held.items():
        assert (top.offset, top.clicked_at) == (before[user].offset, before[user].clicked_at)
    assert harness.lists.popular_list.items == popular.items
    assert harness.lists.popular_list.offset == popular.offset


def test_a_redis_that_comes_back_empty_is_filled_again(harness, town_clicks):
    harness.publish(town_clicks)
    loop = harness.begin(harness.loop())
    harness.drain(loop)
    users = set(harness.lists.held)
    harness.lists.away = True
    harness.publish([town_clicks[-1]])
    harness.drain(loop)
    harness.lists.lose_everything()
    harness.lists.away = False
    for _ in range(20):
        loop.turn()
    assert set(harness.lists.held) == users
    assert not loop.writer.stale


def test_a_redis_that_is_emptied_between_two_writes_is_filled_again(harness, town_clicks):
    harness.publish(town_clicks[:100])
    loop = harness.begin(harness.loop())
    harness.drain(loop)
    users = set(harness.lists.held)
    harness.lists.lose_everything()
    harness.publish([town_clicks[99]])  # one list and the popular one stand there again at once
    while loop.turn() or loop.writer.stale:
        pass
    assert set(harness.lists.held) == users


def test_while_no_clicks_come_an_emptied_redis_is_filled_again_too(harness, town_clicks):
    harness.publish(town_clicks[:100])
    loop = harness.begin(harness.loop())
    harness.drain(loop)
    users = set(harness.lists.held)
    harness.lists.lose_everything()
    loop.writer.check()  # as the worker does when it reports
    while loop.writer.stale:
        loop.turn()
    assert set(harness.lists.held) == users
    assert harness.lists.popular_list is not None


def test_of_a_redis_that_went_back_a_little_only_what_came_last_is_written_again(harness, town_clicks):
    harness.publish(town_clicks[:POLL])
    loop = harness.begin(harness.loop())
    harness.drain(loop)
    kept = dict(harness.lists.held), dict(harness.lists.marks)
    harness.publish(town_clicks[POLL : POLL + 3])
    harness.drain(loop)
    (harness.lists.held, harness.lists.marks), refreshed = kept, loop.progress.refreshes
    loop.writer.check()
    while loop.writer.stale:
        loop.turn()
    lasts = {click.user_id: f"0:{place + 1}" for place, click in enumerate(town_clicks[: POLL + 3])}
    assert {user: top.offset for user, top in harness.lists.held.items()} == lasts
    assert loop.progress.refreshes - refreshed == len({click.user_id for click in town_clicks[POLL : POLL + 3]})


# --- dead letters whose topic is away ------------------------------------------------------------------------------


def test_while_dead_letters_wait_nothing_is_polled_or_saved_and_none_is_lost(new_harness, values):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    there = quiet.run()
    loop = harness.begin(harness.loop())
    flush = harness.producer.flush

    def away():
        raise UnavailableError("no Kafka answers")

    harness.producer.flush = away
    for _ in range(4):
        loop.turn()
    assert loop.progress.next_offsets == {harness.partition(): POLL}  # one poll
    assert loop.checkpoints.numbers() == []
    assert loop.source.commits == []
    assert loop.dead_letters.waits_for == "no Kafka answers"
    harness.producer.flush = flush
    while loop.turn() or loop.progress.next_offsets[harness.partition()] < CLICKS:
        pass
    loop.finish()
    assert loop.dead_letters.waits_for is None
    assert loop.progress.to_state() == there.progress.to_state()
    assert [record.headers for record in harness.dead()] == [record.headers for record in quiet.dead()]
