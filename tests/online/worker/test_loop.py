"""The loop's promise: whatever step it is killed at, nothing is lost, and nothing is in the surviving weights twice."""

import json
import logging
import re
import threading

import numpy as np
import pytest

from online.worker import redis_link
from online.worker.checkpoint import CheckpointError
from online.worker.micro_batches import ReceivedClick, micro_batches
from online.worker.progress import Progress
from stream.dead_letters import dead_letter
from stream.events import Click, encode
from stream.source import Partition, Record, UnavailableError
from tests.online.conftest import NOW

POLL = 32
CLICKS = 160  # five full polls
BAD = {3: b"no json", 40: b"[]", 41: b"", 100: None, 159: b'{"user_id": "", "item_id": "i", "timestamp": 1}'}


@pytest.fixture
def values(town_clicks):
    """What the topic holds: clicks, with something that is none at the places in BAD."""
    return [BAD.get(place, click) for place, click in enumerate(town_clicks[:CLICKS])]


# --- killed at any step ------------------------------------------------------------------------------------------


def owner_of(loop, step):
    part, name = step.split(".")
    return {"loop": loop, "lists": loop.writer.lists}.get(part) or getattr(loop, part), name


STEPS = [
    *[("source.poll", call) for call in (1, 5)],
    *[("dead_letters.put", call) for call in (1, 3, 5)],
    *[("learner.learn", call) for call in (1, 9)],
    *[("lists.write", call) for call in (1, 7)],
    *[("supervisor.on_batch", call) for call in (4,)],
    *[("dead_letters.flush", call) for call in (2, 5)],
    *[("checkpoints.save", call) for call in (1, 5)],
    *[("source.commit", call) for call in (1, 3)],
]


@pytest.fixture(scope="module")
def undisturbed():
    """What a run without faults leaves, computed once."""
    return {}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("killed_at", STEPS, ids=str)
def test_killed_at_any_step_it_ends_as_if_nothing_had_happened(new_world, values, undisturbed, killed_at, after):
    step, call = killed_at
    if not undisturbed:
        quiet = new_world()
        quiet.publish(values)
        undisturbed.update(quiet.everything(quiet.run()))
        undisturbed["dead"] = quiet.dead()

    world = new_world()
    world.publish(values)
    first = world.loop()
    world.crash(*owner_of(first, step), call=call, after=after)
    world.crashes(first)
    vars(world.lists).pop("write", None)  # Redis itself goes on
    turns_saved = first.checkpoints.numbers()[-1] if first.checkpoints.numbers() else 0

    second = world.run()
    assert second.source.began_at == [{world.partition(): turns_saved * POLL}]
    assert second.progress.learned == CLICKS - len(BAD)
    assert second.progress.dead_letters == {
        "malformed-json": 2, "not-an-object": 1, "tombstone": 1, "invalid-user_id": 1,
    }  # fmt: skip
    assert world.broker.committed == {world.partition(): CLICKS}
    found = world.everything(second)
    assert {name for name in undisturbed if name != "dead" and found[name] != undisturbed[name]} == set()
    assert [(letter.key, letter.value, letter.headers) for letter in world.dead()] == [
        (letter.key, letter.value, letter.headers) for letter in undisturbed["dead"]
    ]


@pytest.mark.parametrize("at", [0, 31, 32, 90, 159])
def test_an_abort_in_the_stream_replays_from_the_checkpoint_and_nothing_else(new_world, values, at):
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish([*values[:at], world.abort, *values[at:]])
    world.crashes(world.loop())
    seen = []
    second = world.begin(world.loop())
    learn = second.learner.learn
    second.learner.learn = lambda clicks, **how: (seen.extend(clicks), learn(clicks, **how))[1]
    world.drain(second)

    resumed = at // POLL * POLL  # the poll that met ABORT gave nothing; every turn before it had its checkpoint
    assert second.source.began_at == [{world.partition(): resumed}]
    assert seen == [value for value in values[resumed:] if isinstance(value, Click)]
    assert world.everything(second) == quiet.everything(quiet.run())


def test_many_crashes_in_one_run_change_nothing(new_world, values):
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish(values)
    for step, call, after in (
        ("lists.write", 3, True), ("source.commit", 2, False), ("checkpoints.save", 1, False),
        ("learner.learn", 2, True),
    ):  # fmt: skip
        loop = world.loop()
        world.crash(*owner_of(loop, step), call=call, after=after)
        world.crashes(loop)
        vars(world.lists).pop("write", None)
    assert world.everything(world.run()) == quiet.everything(quiet.run())


def test_with_rare_checkpoints_everything_since_the_last_is_learned_again_and_counted_once(world, values):
    world.publish(values)
    first = world.loop(checkpoint_interval_s=3_600.0)
    world.crash(first.source, "poll", call=4)
    world.crashes(first)
    assert first.progress.learned > 0
    assert first.checkpoints.numbers() == []
    second = world.run()
    assert second.source.began_at == [{world.partition(): 0}]
    assert second.progress.learned == second.learner.scores.scored == CLICKS - len(BAD)
    assert len(world.dead()) == len(BAD)


def test_of_several_partitions_each_record_is_learned_once_and_each_dead_letter_stands_once(world, town_clicks):
    world.publish(town_clicks[:200], partitions=3)
    for partition, at in ((0, 5), (1, 20), (2, 30), (2, 31)):
        world.broker.topics[world.partition(partition)][at] = Record("clicks", partition, at, 0, None, b"no json")
    total = sum(len(world.broker.records(world.partition(number))) for number in range(3))
    for step, call, after in (
        ("dead_letters.flush", 2, True), ("dead_letters.flush", 1, True), ("lists.write", 3, True),
        ("checkpoints.save", 2, False), ("source.commit", 1, True),
    ):  # fmt: skip
        loop = world.loop(poll_records_max=20 + call)  # other turns each time
        world.crash(*owner_of(loop, step), call=call, after=after)
        world.crashes(loop)
        vars(world.lists).pop("write", None)
    last = world.run()
    assert last.progress.learned == last.learner.scores.scored == total - 4
    assert last.progress.next_offsets == last.source.ends()
    places = [(letter.partition, letter.offset) for letter in map(dead_letter, world.dead())]
    assert sorted(places) == [(0, 5), (1, 20), (2, 30), (2, 31)]


def test_a_seeded_run_repeats_bit_for_bit_and_another_seed_does_not(new_world, values):
    runs = []
    for seed in (7, 7, 8):
        world = new_world()
        world.publish(values)
        runs.append(world.everything(world.run(seed=seed, layers=("local", "lsh"))))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_stopping_and_starting_after_every_turn_changes_nothing(new_world, values):
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish(values)
    for _ in range(6):
        loop = world.begin(world.loop())
        loop.turn()
        loop.finish()
    assert world.everything(loop) == quiet.everything(quiet.run())


# --- the order of effects ----------------------------------------------------------------------------------------


def recorded(loop, *steps):
    """The names of the steps in the order in which they were finished."""
    calls = []

    def recording(step):
        owner, name = owner_of(loop, step)
        method = getattr(owner, name)

        def call(*args, **kwargs):
            result = method(*args, **kwargs)
            calls.append(step)
            return result

        setattr(owner, name, call)

    for step in steps:
        recording(step)
    return calls


def test_lists_come_before_the_checkpoint_and_the_checkpoint_before_the_commit(world, values):
    world.publish(values[:POLL])
    loop = world.begin(world.loop())
    calls = recorded(loop, "lists.write", "dead_letters.flush", "checkpoints.save", "source.commit")
    loop.turn()
    assert calls == ["lists.write"] * calls.count("lists.write") + [
        "dead_letters.flush",
        "checkpoints.save",
        "source.commit",
    ]


def test_what_is_committed_is_in_the_checkpoint_never_less(world, values):
    world.publish(values)
    loop = world.begin(world.loop())
    while loop.turn():
        number, _, state = loop.checkpoints.load()
        assert number == loop.checkpointer.last_saved.number
        saved = Progress()
        saved.load_state(state["progress"])
        assert loop.source.commits[-1] == saved.next_offsets == loop.source.positions()


def test_without_news_no_checkpoint_is_written(world, values):
    world.publish(values[:POLL])
    loop = world.run()
    for _ in range(5):
        loop.turn()
    loop.finish()
    assert loop.checkpoints.numbers() == [1]
    assert set(map(str, loop.source.commits)) == {str({world.partition(): POLL})}
    again = world.run()
    assert again.checkpoints.numbers() == [1]


def full(*_):
    raise CheckpointError("cannot write: no space left")


def test_while_no_checkpoint_can_be_written_learning_goes_on_and_nothing_is_committed(new_world, values):
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish(values)
    loop = world.begin(world.loop())
    loop.turn()
    save, loop.checkpoints.save = loop.checkpoints.save, full
    loop.turn()
    loop.turn()
    assert loop.checkpointer.failing_since == NOW
    assert (loop.progress.learned, loop.notices.counts) == (3 * POLL - 3, {"checkpoint_failed": 1})
    assert "cannot write: no space left; learning goes on" in loop.notices.latest[-1].text
    assert world.broker.committed == {world.partition(): POLL}
    with pytest.raises(CheckpointError, match="no space"):
        loop.finish()
    loop.checkpoints.save = save
    world.drain(loop)
    assert loop.checkpointer.failing_since is None
    assert loop.notices.counts == {"checkpoint_failed": 1, "checkpoint_recovered": 1}
    assert world.broker.committed == {world.partition(): CLICKS}
    found, expected = (what_was_learned(*one) for one in ((world, loop), (quiet, quiet.run())))
    assert {name for name in expected if found[name] != expected[name]} == {
        "versions"
    }  # fewer checkpoints were written


def test_killed_while_no_checkpoint_can_be_written_nothing_is_lost_or_learned_twice(new_world, values):
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish(values)
    loop = world.begin(world.loop())
    loop.turn()
    loop.checkpoints.save = full
    loop.turn()
    loop.turn()
    assert world.everything(world.run()) == quiet.everything(quiet.run())


def test_no_version_is_published_while_it_could_not_be_saved(world, values):
    world.publish(values)
    loop = world.begin(world.loop())
    loop.turn()
    loop.supervisor.ask_finetuning("a test")
    save, loop.checkpoints.save = loop.checkpoints.save, full
    loop.turn()  # published, and then it cannot be saved
    assert loop.learner.version == 2
    assert loop.versions.unsaved
    loop.supervisor.ask_finetuning("a test")
    loop.turn()
    assert (loop.learner.version, loop.supervisor.state) == (2, "asked")
    loop.checkpoints.save = save
    world.drain(loop)
    assert loop.versions.live.checkpoint == loop.checkpointer.last_saved.number or loop.learner.version == 3
    for version in loop.versions.all()[1:]:
        _, state = loop.checkpoints.read(version.checkpoint)
        assert state["learner"]["version"] == version.number


def test_a_list_says_what_it_reflects(world, town_clicks):
    world.publish(town_clicks[:20])
    loop = world.run()
    last_of = {click.user_id: (place, click) for place, click in enumerate(town_clicks[:20])}
    assert world.lists.held.keys() == last_of.keys()
    for user, (place, click) in last_of.items():
        top = world.lists.held[user]
        assert (top.offset, top.clicked_at) == (f"0:{place + 1}", int(1000 * click.timestamp))
        assert (top.version, top.source) == (1, "personal")
        assert len(top.items) == len(set(top.items)) == len(top.scores)
        assert top.scores == sorted(top.scores, reverse=True)
    assert world.lists.popular_list.offset == "0:20"
    assert world.lists.popular_list.source == "popular"
    assert loop.learner.popular().items == world.lists.popular_list.items


def test_the_popular_list_names_the_last_click_though_its_user_came_earlier_too(world):
    world.publish([Click(user_id=user, item_id=user, timestamp=at) for at, user in enumerate("aba", start=1)])
    world.run()
    assert (world.lists.popular_list.offset, world.lists.popular_list.clicked_at) == ("0:3", 3_000)


# --- messages ----------------------------------------------------------------------------------------------------


def test_event_ids_are_learned_once_also_across_restarts_and_crashes(world, town_clicks):
    named = [
        click.model_copy(update={"event_id": f"e{number}"}) for number, click in enumerate(town_clicks[: 2 * POLL])
    ]
    world.publish([*named[:POLL], *named[:4]])
    assert world.run().progress.duplicates == 4
    world.publish([*named[POLL - 8 :], *named])
    crashed = world.loop()
    world.crash(crashed.checkpoints, "save", call=2)
    world.crashes(crashed)
    last = world.run()
    assert last.progress.learned == last.learner.scores.scored == 2 * POLL
    assert last.progress.duplicates == 4 + 8 + 2 * POLL
    assert world.broker.committed == {world.partition(): POLL + 4 + 8 + POLL + 2 * POLL}


def test_clicks_without_an_event_id_are_all_learned(world, town_clicks):
    world.publish([town_clicks[0]] * 5)
    assert world.run().progress.learned == 5


def test_dead_letters_keep_value_place_and_reason_and_disturb_nothing_else(new_world, town_clicks):
    clean, broken = new_world(), new_world()
    bad = [b"{", b"\xff\xfe", b"x" * 70_000, encode(town_clicks[0]).replace(b"173", b"973"), b"null"]
    clean.publish(town_clicks[:20])
    broken.publish([*town_clicks[:20], *bad])
    clean.run()
    loop = broken.run()
    assert broken.lists.held == clean.lists.held
    letters = list(map(dead_letter, broken.dead()))
    assert [(letter.topic, letter.partition, letter.offset, letter.reason) for letter in letters] == [
        ("clicks", 0, 20, "malformed-json"),
        ("clicks", 0, 21, "invalid-utf8"),
        ("clicks", 0, 22, "too-large"),
        ("clicks", 0, 23, "future-timestamp"),
        ("clicks", 0, 24, "not-an-object"),
    ]
    assert [letter.record.value for letter in letters] == bad
    assert sum(loop.progress.dead_letters.values()) == len(bad)


def test_nothing_but_broken_messages_moves_on_too(world):
    world.publish([b"no json"] * 40)
    loop = world.run()
    assert world.broker.committed == {world.partition(): 40}
    assert (loop.progress.learned, len(world.dead()), world.lists.held) == (0, 40, {})
    assert world.run().source.began_at == [{world.partition(): 40}]
    assert len(world.dead()) == 40


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


# --- two workers of a group --------------------------------------------------------------------------------------


def test_a_list_is_written_by_who_has_the_partition_and_anew_by_who_gets_it(world, town_clicks):
    world.publish(town_clicks[:100], partitions=2)
    loop = world.begin(world.loop())
    world.drain(loop)
    people = {
        number: {c.user_id for c in town_clicks[:100] if sum(c.user_id.encode()) % 2 == number} for number in (0, 1)
    }
    loop.source.revoking = [world.partition(1)]
    loop.turn()
    world.lists.held = {}
    loop.writer.renew_all()
    while loop.writer.stale:
        loop.turn()
    assert world.lists.held.keys() == people[0]
    loop.source.assign([world.partition(1)])
    loop.turn()
    while loop.writer.stale:
        loop.turn()
    assert world.lists.held.keys() == people[0] | people[1]


def test_while_no_partition_is_assigned_lists_are_written_as_before(world, town_clicks):
    world.publish(town_clicks[:60])
    loop = world.begin(world.loop())
    world.drain(loop)
    loop.source.revoking = [world.partition()]
    users, world.lists.held = set(world.lists.held), {}
    loop.writer.renew_all()
    for _ in range(3):
        loop.turn()
    assert set(world.lists.held) == users


# --- partitions come and go --------------------------------------------------------------------------------------


def test_revoked_partitions_are_in_a_checkpoint_and_committed_before_they_go(world, town_clicks):
    world.publish(town_clicks[:100], partitions=2)
    loop = world.begin(world.loop(checkpoint_interval_s=3_600.0))
    loop.turn()
    assert loop.source.commits == []
    at = dict(loop.source.positions())
    loop.source.revoking = [world.partition(1)]
    loop.turn()
    assert loop.source.commits == [at]  # while it still was ours, and nothing of the poll that followed
    _, _, state = loop.checkpoints.load()
    saved = Progress()
    saved.load_state(state["progress"])
    assert saved.next_offsets == at
    world.drain(loop)
    assert loop.source.commits[-1].keys() == {world.partition(0)}
    assert loop.progress.next_offsets[world.partition(1)] == at[world.partition(1)]


def test_a_partition_that_comes_back_goes_on_where_these_weights_left_it(world, town_clicks):
    world.publish(town_clicks[:100], partitions=2)
    loop = world.begin(world.loop())
    loop.turn()
    at = loop.source.positions()[world.partition(1)]
    loop.source.revoking = [world.partition(1)]
    world.drain(loop)
    world.broker.committed[world.partition(1)] = at + 5  # somebody else's
    loop.source.assign([world.partition(1)])
    assert loop.source.positions()[world.partition(1)] == at
    world.drain(loop)
    assert loop.progress.learned == 100


def test_what_the_broker_has_committed_decides_nothing(world, town_clicks):
    world.publish(town_clicks[:100])
    world.broker.committed[world.partition()] = 77
    assert world.run().progress.learned == 100


def test_a_new_partition_begins_at_its_earliest_record(world, town_clicks):
    world.publish(town_clicks[:50])
    world.run()
    for click in town_clicks[50:60]:
        world.broker.append("clicks", encode(click), partition=1)
    loop = world.run()
    assert loop.source.began_at == [{world.partition(0): 50, world.partition(1): 0}]
    assert loop.progress.learned == 60


def test_a_partition_given_up_before_anything_was_read_needs_no_checkpoint(world):
    world.broker.topics[world.partition()] = []
    loop = world.begin(world.loop())
    loop.source.revoking = [world.partition()]
    loop.turn()
    assert loop.checkpoints.numbers() == []


# --- fine-tuning -------------------------------------------------------------------------------------------------


def test_a_drift_alarm_asks_for_fine_tuning_which_gives_the_next_version(world, town_clicks, caplog):
    world.publish(town_clicks)
    loop = world.begin(world.loop(drift_delta=0.5, drift_clicks_each=1))
    loop.changes.drift.update(["click"] * 300, [0.1] * 300, [True] * 300, range(300))
    loop.turn()
    assert loop.changes.drift.alarms > 0
    assert loop.progress.finetunings == 1
    assert loop.learner.version == 2
    assert loop.supervisor.state == "idle"
    assert "alarm: the loss has risen from " in caplog.text
    loop.turn()
    assert {top.version for top in world.lists.held.values()} >= {2}


def test_fine_tuning_may_be_asked_for_by_another_thread_and_twice_is_once(world, town_clicks):
    world.publish(town_clicks[:100])
    loop = world.begin(world.loop())
    loop.turn()
    threads = [threading.Thread(target=loop.supervisor.ask_finetuning, args=["by the clock"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loop.supervisor.state == "asked"
    world.drain(loop)
    assert (loop.progress.finetunings, loop.learner.version) == (1, 2)
    _, _, state = loop.checkpoints.load()
    assert state["learner"]["version"] == 2


def test_fine_tuning_in_slices_takes_turns_with_clicks(world, town_clicks):
    world.publish(town_clicks[:200])
    loop = world.begin(world.loop(finetune_batch=1))
    loop.turn()
    loop.supervisor.ask_finetuning("a test")
    calls = recorded(loop, "learner.learn")
    loop.turn()
    # The first was over within one slice; now slices of one step.
    loop.supervisor.finetuning = tuning = loop.supervisor._begin_finetuning({"why": "a test", "drift": False})
    run_for = tuning.run_for
    tuning.run_for = lambda seconds: run_for(0.0)  # noqa: ARG005
    slices = 0
    while loop.supervisor.state == "running":
        loop.turn()
        slices += 1
    assert slices > 5
    assert len(calls) > 4  # clicks were learned meanwhile
    assert loop.progress.finetunings == 2


def test_asked_without_anybody_to_learn_from_nothing_happens(world, caplog):
    caplog.set_level(logging.INFO, "online.worker.notices")
    world.publish([Click(user_id="a", item_id="i", timestamp=1)])
    loop = world.begin(world.loop())
    loop.supervisor.ask_finetuning("a test")
    world.drain(loop)
    assert (loop.learner.version, loop.progress.finetunings, loop.supervisor.state) == (1, 0, "idle")
    assert "finetuning: left out" in caplog.text


def test_fine_tuning_that_was_asked_for_is_not_forgotten_in_a_crash(world, town_clicks):
    world.publish(town_clicks[:64])
    first = world.begin(world.loop())
    first.supervisor.ask_finetuning("a test")
    first.supervisor._finetune = lambda: None  # killed before it came to it
    first.turn()
    assert world.run().progress.finetunings == 1


# --- restore, and what it is given -------------------------------------------------------------------------------


def test_a_checkpoint_of_another_shape_is_refused_in_one_line_that_says_what_to_do(world, town_clicks):
    world.publish(town_clicks[:20])
    world.run()
    with pytest.raises(CheckpointError) as refused:
        world.loop(width=16, layers=("local",)).restore()
    message = str(refused.value)
    assert "NEXTCLICK_WIDTH=8" in message
    assert "NEXTCLICK_LAYERS=['lsh']" in message
    assert "NEXTCLICK_DATA_DIR" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mine: [*mine[:3], "dwell", *mine[3:]], "was written by another version (with dwell among"),
        (lambda mine: mine[:-2], "(without world_6, network among"),
        (lambda mine: ["dwell", *mine[1:]], "(with dwell and without followed_last among"),
        (lambda mine: [mine[1], mine[0], *mine[2:]], "(with share_last, followed_last in another order among"),
    ],
    ids=["removed", "added", "replaced", "reordered"],
)
def test_a_checkpoint_with_other_features_is_refused_in_one_line_that_names_them(
    world, town_clicks, monkeypatch, change, said
):
    world.publish(town_clicks[:20])
    world.run()
    loop = world.loop()
    number, arrays, state = loop.checkpoints.load()
    state["shape"]["features"] = change(state["shape"]["features"])
    monkeypatch.setattr(loop.checkpoints, "load", lambda: (number, arrays, state))
    monkeypatch.setattr(loop.learner, "load_state", lambda *_: pytest.fail("weights must not be loaded"))
    with pytest.raises(CheckpointError) as refused:
        loop.restore()
    message = str(refused.value)
    assert said in message
    assert "go on with that, or set NEXTCLICK_DATA_DIR to another folder to start anew" in message
    assert "\n" not in message


def test_a_checkpoint_with_other_half_lives_is_refused_and_names_setting_and_features(world, town_clicks):
    world.publish(town_clicks[:20])
    world.run()
    with pytest.raises(CheckpointError) as refused:
        world.loop(popularity_half_lives=(10, 50)).restore()
    message = str(refused.value)
    assert (
        "was made with NEXTCLICK_POPULARITY_HALF_LIVES=[10, 100] (with popularity_100 and without popularity_50"
        in message
    )
    assert "set it back" in message
    assert "\n" not in message


def test_smaller_limits_are_taken_up_at_a_restart(world, town_clicks):
    world.publish(town_clicks[:200])
    world.run()
    world.publish(town_clicks[200:300])
    loop = world.run(users_held=16, history_max=6, items_held=10, successors_held=3, online_history=4,
                     neighbours_held=5)  # fmt: skip
    assert loop.progress.learned == 300
    assert len(loop.learner.histories) == 16
    assert loop.learner.store.tables.first.others.shape[1] == 3
    assert loop.learner.store.tables.near.others.shape[1] == 5
    top = world.lists.held[town_clicks[299].user_id]
    assert set(top.items) <= {click.item_id for click in town_clicks[:300]}


def test_restoring_says_where_it_goes_on(world, town_clicks, caplog):
    caplog.set_level(logging.INFO, "online.worker.loop")
    world.publish(town_clicks[:20])
    world.run()
    assert world.loop().restore() == 1
    assert "checkpoint 1 restored: 20 clicks learned; reading from clicks:0 from 20" in caplog.text


def test_the_checkpoint_s_state_is_plain_json(world, values):
    world.publish(values)
    loop = world.run()
    text = (loop.checkpoints.folder / f"{loop.checkpointer.last_saved.number:08d}" / "state.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# --- micro-batches -----------------------------------------------------------------------------------------------


def arrived(users):
    return [
        ReceivedClick(Click(user_id=user, item_id="i", timestamp=0), Record("clicks", 0, at, 0, None, b""))
        for at, user in enumerate(users)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_micro_batches_keep_order_and_both_limits(seed):
    random = np.random.default_rng(seed)
    clicks = arrived([f"u{number}" for number in random.integers(0, random.integers(1, 6), 50)])
    size_max, per_user_max = (int(number) for number in random.integers(1, 9, 2))
    batches = list(micro_batches(clicks, size_max, per_user_max))
    assert [one for batch in batches for one in batch] == clicks
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        users = [one.click.user_id for one in batch]
        assert len(batch) <= size_max
        assert all(users.count(user) <= per_user_max for user in users)
        if following is not None:  # no batch ends earlier than it has to
            assert len(batch) == size_max or users.count(following[0].click.user_id) == per_user_max


def test_no_clicks_are_no_batches():
    assert list(micro_batches([], 8, 8)) == []


def test_an_offset_names_the_next_one_to_read():
    (one,) = arrived(["u"])
    assert one.offset == "0:1"


def test_a_ledger_starts_only_what_it_has_read():
    progress = Progress({Partition("clicks", 0): 7})
    assert progress.starts([Partition("clicks", 0), Partition("clicks", 1)]) == {Partition("clicks", 0): 7}


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


# --- lists are refreshed as they age -----------------------------------------------------------------------------


def drain_asking(loop, each=1):
    """`World.drain`, with lists that have aged looked for at each so many turns."""
    loop.writer.aging.ask()
    turn = 0
    while loop.turn():
        turn += 1
        if turn % each == 0:
            loop.writer.aging.ask()
    loop.finish()
    return loop


def what_was_learned(world, loop):
    """Everything but the lists, and what is counted and scored of them."""
    found = world.everything(loop)
    found |= {"learner": dict(found["learner"]), "progress": dict(found["progress"])}
    del found["lists"], found["popular"], found["history.served"], found["notices"]
    del found["learner"]["scores"], found["progress"]["refreshes"]
    return found


AGES = {"refresh_ages_s": (30.0, 120.0), "poll_records_max": 8}


def test_a_list_that_has_aged_is_ranked_for_now_and_says_so(world, town_clicks):
    world.publish(town_clicks[:20])
    loop = world.begin(world.loop(refresh_ages_s=(600.0, 2_400.0)))
    start = loop.clock()
    times = [start]
    loop.clock = loop.writer.clock = lambda: times[0]
    loop.writer.stream_clock._monotonic = loop.clock
    world.drain(loop)
    before, last = dict(world.lists.held), max(click.timestamp for click in town_clicks[:20])
    moments = []
    rank = loop.learner.rank
    loop.learner.rank = lambda users, now: (moments.append(dict(zip(users, now, strict=True))), rank(users, now))[1]

    times[0] += 3_000.0
    loop.turn()
    assert world.lists.held == before  # nobody asked
    loop.writer.aging.ask()
    loop.turn()
    assert moments == [dict.fromkeys(before, pytest.approx(last + 3_000.0))]
    for user, top in world.lists.held.items():
        assert (top.clicked_at, top.offset) == (before[user].clicked_at, before[user].offset)
        assert (top.written_at, before[user].written_at) == (int(1000 * times[0]), int(1000 * start))
    assert loop.progress.refreshes == len(before)

    times[0] += 1_000_000.0
    loop.writer.aging.ask()
    loop.turn()
    assert len(moments) == 1  # all ages were passed


def test_a_bounded_number_is_refreshed_each_time_it_is_asked(world):
    world.publish([Click(user_id=f"u{number}", item_id="i", timestamp=1_000.0 + number) for number in range(10)])
    world.publish([Click(user_id="late", item_id="i", timestamp=9_000.0)])
    loop = world.run(refresh_ages_s=(600.0,), refresh_lists_max=4)
    refreshed = []
    for _ in range(4):
        loop.writer.aging.ask()
        loop.turn()
        loop.turn()  # nobody asks
        refreshed.append(loop.progress.refreshes)
    assert refreshed == [4, 8, 10, 10]


def test_the_refreshes_of_a_replay_follow_its_clicks(world, town_clicks):
    world.publish(town_clicks)
    loop = drain_asking(world.begin(world.loop(**AGES)))
    assert loop.progress.refreshes > 20
    assert loop.writer.stream_clock.now() == max(click.timestamp for click in town_clicks)


def test_refreshing_changes_nothing_that_is_learned(new_world, values):
    quiet, busy = new_world(), new_world()
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
def test_killed_while_lists_are_refreshed_it_learns_the_same_and_everybody_has_a_list(
    new_world, values, killed_at, after
):
    quiet, world = new_world(), new_world()
    quiet.publish(values)
    world.publish(values)
    step, call = killed_at
    first = world.begin(world.loop(**AGES))
    world.crash(*owner_of(first, step), call=call, after=after)
    with pytest.raises(world.aborted):
        drain_asking(first, each=2)
    vars(world.lists).pop("write", None)
    second = drain_asking(world.begin(world.loop(**AGES)))
    undisturbed = quiet.run(**AGES)
    assert what_was_learned(world, second) == what_was_learned(quiet, undisturbed)
    assert {user: top.offset for user, top in world.lists.held.items()} == {
        user: top.offset for user, top in quiet.lists.held.items()
    }


def test_refreshes_while_nobody_clicks_are_in_a_checkpoint_too(world, town_clicks):
    world.publish(town_clicks[:POLL])
    loop = world.run(refresh_ages_s=(1.0,))
    saved = loop.checkpointer.last_saved.number
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes > 0
    assert loop.checkpointer.last_saved.number == saved + 1
    loop.turn()
    assert loop.checkpointer.last_saved.number == saved + 1
    again = world.begin(world.loop(refresh_ages_s=(1.0,)))
    assert world.everything(again) == world.everything(loop)
    again.writer.aging.ask()
    again.turn()
    assert again.progress.refreshes == loop.progress.refreshes  # they are not due a second time


def test_a_restart_does_not_refresh_everybody(world):
    old = [Click(user_id=f"old{number}", item_id="i", timestamp=1_000.0) for number in range(10)]
    times = np.arange(900_000.0, 1_000.0, -3_600.0)[::-1].tolist()  # without gaps that would not count
    world.publish([*old, *(Click(user_id="new", item_id="i", timestamp=at) for at in times)])
    world.run(refresh_ages_s=())
    loop = world.begin(world.loop(refresh_ages_s=(600.0, 3_600.0)))
    assert loop.writer.stream_clock.now() == 900_000.0
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes == 0
    world.publish([Click(user_id="newer", item_id="i", timestamp=901_000.0)])
    loop.turn()
    loop.writer.aging.ask()
    loop.turn()
    assert loop.progress.refreshes == 1  # new's


def test_without_redis_no_list_is_refreshed_and_afterwards_each_once(world):
    world.publish([Click(user_id=user, item_id="i", timestamp=at) for user, at in (("ada", 1_000.0), ("ben", 3_000.0))])
    loop = world.run(refresh_ages_s=(600.0, 1_200.0))
    world.lists.away = True
    world.publish([Click(user_id="cleo", item_id="i", timestamp=3_700.0)])
    for _ in range(3):
        loop.writer.aging.ask()
        loop.turn()
    assert loop.progress.refreshes == 0
    world.lists.away = False
    for _ in range(3):
        loop.writer.aging.ask()
        loop.turn()
    assert loop.progress.refreshes == 3  # cleo's, which Redis has never had, and then those that have aged
    assert not loop.writer.stale
