"""Redis or the topic of dead letters is missing, slow or has lost its data: the loop goes on and makes up for it."""

import logging
import re

from online.worker import redis_link
from stream.events import Click
from stream.source import UnavailableError
from tests.online.worker.conftest import CLICKS, POLL

# --- without Redis -----------------------------------------------------------------------------------------------


def test_without_redis_learning_goes_on_and_lists_are_brought_up_to_date(new_world, values, caplog):
    caplog.set_level(logging.INFO, "online.worker.list_writer")
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish(values)
    there = quiet.run()

    loop = world.begin(world.loop(refresh_lists_max=7))
    loop.turn()
    world.lists.away = True
    while loop.turn():
        pass
    assert loop.writer.redis_waits_since is not None
    assert loop.progress.learned == there.progress.learned
    behind = set(loop.writer.stale)
    assert behind == {value.user_id for value in values[POLL:] if isinstance(value, Click)}
    world.lists.away = False
    turns = 0
    while left := len(loop.writer.stale):
        loop.turn()
        turns += len(loop.writer.stale) < left  # others come before Redis is asked again
    assert turns == -(-len(behind) // 7)
    assert loop.writer.redis_waits_since is None
    assert {user: top.offset for user, top in world.lists.held.items()} == {
        user: top.offset for user, top in quiet.lists.held.items()
    }
    for user in behind:
        (ranking,) = loop.learner.rank([user], [loop.writer.stream_clock.now()])
        assert world.lists.held[user].items == ranking.items
    assert world.lists.popular_list == quiet.lists.popular_list
    away, back = [record.message for record in caplog.records if "Redis" in record.message]
    assert away == "no Redis answers at memory; learning goes on, lists will be brought up to date"
    assert re.fullmatch(rf"Redis takes lists again after \d+ s; {len(behind)} lists are behind", back)


def test_lists_that_were_behind_at_a_stop_are_written_after_the_start(world, values):
    world.publish(values)
    world.lists.away = True
    world.run()
    assert world.lists.held == {}
    world.lists.away = False
    world.run()
    assert world.lists.held.keys() == {value.user_id for value in values if isinstance(value, Click)}
    assert world.lists.popular_list.offset == f"0:{CLICKS - 1}"  # the very last message is no click


def test_while_redis_is_away_it_is_not_asked_with_every_micro_batch(world, values):
    world.publish(values)
    world.lists.away = True
    calls = []
    write = world.lists.write
    world.lists.write = lambda *args, **kwargs: (calls.append(1), write(*args, **kwargs))[1]
    world.run(retry_s_min=3_600.0, retry_s_max=3_600.0)
    assert len(calls) == 1  # for 10 micro-batches


def test_what_waits_for_redis_is_bounded(world):
    world.publish([Click(user_id=f"u{number}", item_id="i", timestamp=number) for number in range(300)])
    world.lists.away = True
    loop = world.run(users_held=16)
    assert len(loop.writer.stale) == len(loop.learner.histories) == 16
    world.lists.away = False
    while loop.writer.stale:
        loop.turn()
    assert world.lists.held.keys() == {f"u{number}" for number in range(284, 300)}


# --- a slow Redis ------------------------------------------------------------------------------------------------


def test_lists_wait_together_for_a_slow_redis_and_none_is_missing_from_the_checkpoint(world, values):
    world.publish(values)
    loop = world.begin(world.loop())
    loop.writer.link._pause_until = float("inf")  # as after an answer that took for ever
    writes = []
    write = world.lists.write
    world.lists.write = lambda *args, **kwargs: (writes.append(args), write(*args, **kwargs))[1]
    loop.turn()
    assert len(writes) == 1  # for two micro-batches: at the checkpoint
    clicks = [value for value in values[:POLL] if isinstance(value, Click)]
    assert world.lists.held.keys() == {click.user_id for click in clicks}
    assert not loop.writer.behind


def test_a_slow_redis_gets_half_of_the_time(world, values, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(redis_link.time, "monotonic", lambda: now[0])
    world.publish(values)
    loop = world.begin(world.loop())

    def slow():
        now[0] += 1.0

    assert loop.writer.link.due
    loop.writer.link.do(slow)
    assert not loop.writer.link.due
    now[0] += 1.0
    assert loop.writer.link.due


# --- a Redis that has lost its data ------------------------------------------------------------------------------


def test_a_redis_found_empty_at_a_start_is_filled_again(world, town_clicks):
    world.publish(town_clicks)
    world.run()
    before, popular = dict(world.lists.held), world.lists.popular_list
    world.lists.lose_everything()
    world.drain(world.begin(world.loop()))
    assert world.lists.held.keys() == before.keys()
    for user, top in world.lists.held.items():
        assert (top.offset, top.clicked_at) == (before[user].offset, before[user].clicked_at)
    assert world.lists.popular_list.items == popular.items
    assert world.lists.popular_list.offset == popular.offset


def test_a_redis_that_comes_back_empty_is_filled_again(world, town_clicks):
    world.publish(town_clicks)
    loop = world.begin(world.loop())
    world.drain(loop)
    users = set(world.lists.held)
    world.lists.away = True
    world.publish([town_clicks[-1]])
    world.drain(loop)
    world.lists.lose_everything()
    world.lists.away = False
    for _ in range(20):
        loop.turn()
    assert set(world.lists.held) == users
    assert not loop.writer.stale


def test_a_redis_that_is_emptied_between_two_writes_is_filled_again(world, town_clicks):
    world.publish(town_clicks[:100])
    loop = world.begin(world.loop())
    world.drain(loop)
    users = set(world.lists.held)
    world.lists.lose_everything()
    world.publish([town_clicks[99]])  # one list and the popular one stand there again at once
    while loop.turn() or loop.writer.stale:
        pass
    assert set(world.lists.held) == users


def test_while_no_clicks_come_an_emptied_redis_is_filled_again_too(world, town_clicks):
    world.publish(town_clicks[:100])
    loop = world.begin(world.loop())
    world.drain(loop)
    users = set(world.lists.held)
    world.lists.lose_everything()
    loop.writer.check()  # as the worker does when it reports
    while loop.writer.stale:
        loop.turn()
    assert set(world.lists.held) == users
    assert world.lists.popular_list is not None


def test_of_a_redis_that_went_back_a_little_only_what_came_last_is_written_again(world, town_clicks):
    world.publish(town_clicks[:POLL])
    loop = world.begin(world.loop())
    world.drain(loop)
    kept = dict(world.lists.held), dict(world.lists.marks)
    world.publish(town_clicks[POLL : POLL + 3])
    world.drain(loop)
    (world.lists.held, world.lists.marks), refreshed = kept, loop.progress.refreshes
    loop.writer.check()
    while loop.writer.stale:
        loop.turn()
    lasts = {click.user_id: f"0:{place + 1}" for place, click in enumerate(town_clicks[: POLL + 3])}
    assert {user: top.offset for user, top in world.lists.held.items()} == lasts
    assert loop.progress.refreshes - refreshed == len({click.user_id for click in town_clicks[POLL : POLL + 3]})


# --- dead letters whose topic is away ------------------------------------------------------------------------------


def test_while_dead_letters_wait_nothing_more_is_taken_or_saved_and_afterwards_nothing_is_missing(new_world, values):
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish(values)
    there = quiet.run()
    loop = world.begin(world.loop())
    flush = loop.dead_letters._producer.flush

    def away():
        raise UnavailableError("no Kafka answers")

    loop.dead_letters._producer.flush = away
    for _ in range(4):
        loop.turn()
    assert loop.progress.next_offsets == {world.partition(): POLL}  # one poll
    assert loop.checkpoints.numbers() == []
    assert loop.source.commits == []
    assert loop.dead_letters.waits_for == "no Kafka answers"
    loop.dead_letters._producer.flush = flush
    while loop.turn() or loop.progress.next_offsets[world.partition()] < CLICKS:
        pass
    loop.finish()
    assert loop.dead_letters.waits_for is None
    assert loop.progress.to_state() == there.progress.to_state()
    assert [record.headers for record in world.dead()] == [record.headers for record in quiet.dead()]
