"""The loop ranks lists anew as they age, and that changes nothing that is learned."""

import numpy as np
import pytest

from stream.events import Click
from tests.online.conftest import NOW
from tests.online.worker.conftest import POLL, owner_of, what_was_learned


def drain_asking(loop, each=1):
    """`WorkerHarness.drain`, with lists that have aged looked for at each so many turns."""
    loop.writer.aging.ask()
    turn = 0
    while loop.turn():
        turn += 1
        if turn % each == 0:
            loop.writer.aging.ask()
    loop.finish()
    return loop


AGES = {"refresh_ages_s": (30.0, 120.0), "poll_records_max": 8}


def test_a_list_that_has_aged_is_ranked_for_now_and_says_so(harness, town_clicks):
    harness.publish(town_clicks[:20])
    start = NOW
    times = [start]
    loop = harness.begin(harness.loop(monotonic=lambda: times[0], refresh_ages_s=(600.0, 2_400.0)))
    loop.clock = loop.writer.clock = lambda: times[0]
    harness.drain(loop)
    before, last = dict(harness.lists.held), max(click.timestamp for click in town_clicks[:20])
    moments = []
    rank = loop.learner.rank
    loop.learner.rank = lambda users, now: (moments.append(dict(zip(users, now, strict=True))), rank(users, now))[1]

    times[0] += 3_000.0
    loop.turn()
    assert harness.lists.held == before  # it was not asked
    loop.writer.aging.ask()
    loop.turn()
    assert moments == [dict.fromkeys(before, pytest.approx(last + 3_000.0))]
    for user, top in harness.lists.held.items():
        assert (top.clicked_at, top.offset) == (before[user].clicked_at, before[user].offset)
        assert (top.written_at, before[user].written_at) == (int(1000 * times[0]), int(1000 * start))
    assert loop.progress.refreshes == len(before)

    times[0] += 1_000_000.0
    loop.writer.aging.ask()
    loop.turn()
    assert len(moments) == 1  # all ages were passed


def test_a_bounded_number_is_refreshed_each_time_it_is_asked(harness):
    harness.publish([Click(user_id=f"u{number}", item_id="i", timestamp=1_000.0 + number) for number in range(10)])
    harness.publish([Click(user_id="late", item_id="i", timestamp=9_000.0)])
    loop = harness.run(refresh_ages_s=(600.0,), refresh_lists_max=4)
    refreshed = []
    for _ in range(4):
        loop.writer.aging.ask()
        loop.turn()
        loop.turn()  # it is not asked
        refreshed.append(loop.progress.refreshes)
    assert refreshed == [4, 8, 10, 10]


def test_the_refreshes_of_a_replay_follow_its_clicks(harness, town_clicks):
    harness.publish(town_clicks)
    loop = drain_asking(harness.begin(harness.loop(**AGES)))
    assert loop.progress.refreshes > 20
    assert loop.writer.stream_clock.now() == max(click.timestamp for click in town_clicks)


def test_refreshing_changes_nothing_that_is_learned(new_harness, values):
    quiet, busy = new_harness(), new_harness()
    quiet.publish(values)
    busy.publish(values)
    few = {**AGES, "memory_users_held": 4, "micro_batch_max": 4, "online_history": 2}  # memories make room
    never = quiet.run(**few)
    often = drain_asking(busy.begin(busy.loop(**few)))
    assert often.progress.refreshes > 0
    assert what_was_learned(busy, often) == what_was_learned(quiet, never)


REFRESH_STEPS = [
    ("learner.rank", 2),
    ("lists.write", 12),
    ("checkpoints.save", 6),
    ("source.commit", 9),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("killed_at", REFRESH_STEPS, ids=str)
def test_a_crash_while_lists_are_refreshed_changes_no_weights_and_loses_no_list(new_harness, values, killed_at, after):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    step, call = killed_at
    first = harness.begin(harness.loop(**AGES))
    harness.crash(*owner_of(first, step), call=call, after=after)
    with pytest.raises(harness.aborted):
        drain_asking(first, each=2)
    vars(harness.lists).pop("write", None)
    second = drain_asking(harness.begin(harness.loop(**AGES)))
    undisturbed = quiet.run(**AGES)
    assert what_was_learned(harness, second) == what_was_learned(quiet, undisturbed)
    assert {user: top.offset for user, top in harness.lists.held.items()} == {
        user: top.offset for user, top in quiet.lists.held.items()
    }


def test_refreshes_without_clicks_are_in_a_checkpoint_too(harness, town_clicks):
    harness.publish(town_clicks[:POLL])
    loop = harness.run(refresh_ages_s=(1.0,))
    saved = loop.checkpointer.last_saved.number
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes > 0
    assert loop.checkpointer.last_saved.number == saved + 1
    loop.turn()
    assert loop.checkpointer.last_saved.number == saved + 1
    again = harness.begin(harness.loop(refresh_ages_s=(1.0,)))
    assert harness.everything(again) == harness.everything(loop)
    again.writer.aging.ask()
    again.turn()
    assert again.progress.refreshes == loop.progress.refreshes  # they are not due a second time


def test_a_restart_does_not_refresh_every_list(harness):
    old = [Click(user_id=f"old{number}", item_id="i", timestamp=1_000.0) for number in range(10)]
    times = np.arange(900_000.0, 1_000.0, -3_600.0)[::-1].tolist()  # without gaps that would not count
    harness.publish([*old, *(Click(user_id="new", item_id="i", timestamp=at) for at in times)])
    harness.run(refresh_ages_s=())
    loop = harness.begin(harness.loop(refresh_ages_s=(600.0, 3_600.0)))
    assert loop.writer.stream_clock.now() == 900_000.0
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes == 0
    harness.publish([Click(user_id="newer", item_id="i", timestamp=901_000.0)])
    loop.turn()
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes == 1  # new's


def test_without_redis_no_list_is_refreshed_and_afterwards_each_once(harness):
    harness.publish(
        [Click(user_id=user, item_id="i", timestamp=at) for user, at in (("ada", 1_000.0), ("ben", 3_000.0))]
    )
    loop = harness.run(refresh_ages_s=(600.0, 1_200.0))
    harness.lists.away = True
    harness.publish([Click(user_id="cleo", item_id="i", timestamp=3_700.0)])
    for _ in range(3):
        loop.writer.aging.ask()
        loop.turn()
    assert loop.progress.refreshes == 0
    harness.lists.away = False
    while loop.progress.refreshes < 3:  # a slow attempt is followed by a pause
        loop.writer.aging.ask()
        loop.turn()
    for _ in range(3):
        loop.writer.aging.ask()
        loop.turn()
    assert loop.progress.refreshes == 3  # cleo's, which Redis has never had, and then those that have aged
    assert not loop.writer.stale
