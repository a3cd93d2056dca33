"""Moments against plain lists: the ring that holds them, and the index that finds them again."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from online.learner.facts.jit import kernel
from online.learner.facts.moments import (
    BY_CLOCK,
    BY_ITEM,
    Hits,
    append,
    bucket_of_item,
    clock_scores,
    empty_index,
    empty_log,
    forget_hash,
    forget_items,
    held,
    load_log,
    log_to_state,
    places_held,
    put_own,
    put_world,
)
from online.learner.facts.store import FeatureStore
from online.learner.user_stores import UserKey
from tests.online.learner.facts.streams import START, Ask, Click, Player, few

WEEK = 604_800.0


@kernel
def append_one(log, rows, time, gap, user_hash):
    return append(log, rows[0], rows[1], rows[2], time, gap, user_hash)


@kernel
def put(log, index, slot, number, scores):
    put_world(index, log, number)
    put_own(index, log, slot, number, scores)


def clock_buckets(index, time, gap):
    """Best first."""
    scores = np.zeros(index.own.shape[2])
    clock_scores(index.rotation, time, gap, scores)
    return np.argsort(-scores, kind="stable").tolist()


# --- the log ------------------------------------------------------------------------------------------------------

row = st.integers(0, 6)


class LogAgainstList(RuleBasedStateMachine):
    """A ring of moments and a list of all there ever were."""

    @initialize(size=st.integers(4, 9))
    def begin(self, size):
        self.log = empty_log(size)
        self.model = []  # [item, last, before, time, gap, owner, private], of number 1 on
        self.first = 1  # numbers before were lost for good

    @rule(new=st.tuples(row, row, row), user_hash=st.integers(1, 3))
    def append(self, new, user_hash):
        time, gap = START + len(self.model), float(len(self.model))
        assert append_one(self.log, new, time, gap, user_hash) == len(self.model) + 1
        self.model.append([*new, time, gap, user_hash, False])
        self.first = max(self.first, len(self.model) - len(self.log.items) + 1)

    @rule(rows=st.sets(st.integers(1, 6), min_size=1, max_size=2))
    def forget_rows(self, rows):
        forget_items(self.log, np.isin(np.arange(7), sorted(rows)))
        for one in self.model:
            one[:3] = [0 if row in rows else row for row in one[:3]]

    @rule(user_hash=st.integers(1, 3))
    def forget_hash(self, user_hash):
        places = forget_hash(self.log, user_hash).tolist()
        mine = [at for at, one in enumerate(self.model, 1) if one[5] == user_hash and at >= self.first]
        assert sorted(places) == sorted(number % len(self.log.items) for number in mine)
        for number in mine:
            self.model[number - 1] = [0, 0, 0, 0.0, 0.0, 0, False]

    @rule(number=st.integers(1, 30))
    def keep_from_others(self, number):
        if self.first <= number <= len(self.model):
            self.log.private[number % len(self.log.items)] = True
            self.model[number - 1][6] = True

    @rule(size=st.integers(4, 9))
    def restart(self, size):
        """Perhaps with more or less room: what is too much is lost, and is not there again with more."""
        arrays = copy.deepcopy(log_to_state(self.log))
        self.log = empty_log(size)
        load_log(self.log, arrays)
        self.first = max(self.first, len(self.model) - size + 1)

    @invariant()
    def is_the_same(self):
        if not hasattr(self, "model"):
            return
        total, size = len(self.model), len(self.log.items)
        assert self.log.total.tolist() == [total]
        numbers = list(range(max(1, total - size + 1), total + 1))
        assert places_held(self.log).tolist() == [number % size for number in numbers]
        for number in numbers:
            found = [part[number % size] for part in self.log[:-1]]
            lost = [0, 0, 0, 0.0, 0.0, 0, False]  # points at nothing
            assert found == (self.model[number - 1] if number >= self.first else lost)


LogAgainstList.TestCase.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
TestLogAgainstList = LogAgainstList.TestCase


@given(total=st.integers(0, 30), size=st.integers(1, 9), number=st.integers(-1, 31))
def test_a_moment_is_held_until_as_many_others_came(total, size, number):
    there = list(range(1, total + 1))[-size:]
    if number <= total:
        assert bool(held(total, size, number)) == (number in there)


# --- buckets ------------------------------------------------------------------------------------------------------


@given(item=st.integers(0, 2**31 - 1), buckets=st.sampled_from([2, 6, 16, 4_096]))
def test_buckets_of_items_are_those_of_whole_numbers_of_any_length(item, buckets):
    """Also from rows of 32 bits, as they stand in the log."""
    expected = (item * 2_654_435_761 % 2**32) * buckets // 2**32
    assert bucket_of_item(item, buckets) == bucket_of_item(np.int32(item), buckets) == expected
    assert 0 <= expected < buckets


def test_buckets_of_items_are_equally_full():
    counts = np.bincount([bucket_of_item(item, 16) for item in range(16_000)], minlength=16)
    assert counts.min() > 900
    assert counts.max() < 1_100


def index_of(users=3, buckets=4, ring=3, *, seed=0):
    return empty_index(users, buckets, ring, world_buckets=4, world_ring=5, seed=seed)


@given(
    moments=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 400)), max_size=60),
    seed=st.integers(0, 5),
)
def test_each_bucket_holds_the_latest_that_belong_there_of_its_user_alone(moments, seed):
    log, index = empty_log(100), index_of(seed=seed)
    own, world = {}, {}
    for slot, last, hour in moments:
        time, gap = START + 3_600.0 * hour, float(hour % 11)
        number = append_one(log, (1, last, 0), time, gap, 1)
        put(log, index, slot, number, np.zeros(4))
        world.setdefault(bucket_of_item(last, 4), []).append(number)
        own.setdefault((slot, BY_ITEM, bucket_of_item(last, 4)), []).append(number)
        own.setdefault((slot, BY_CLOCK, clock_buckets(index, time, gap)[0]), []).append(number)
    for ring, numbers in [(index.own[key], mine) for key, mine in own.items()]:
        assert set(ring[ring > 0].tolist()) == set(numbers[-3:])
    for bucket, numbers in world.items():
        ring = index.world[bucket]
        assert set(ring[ring > 0].tolist()) == set(numbers[-5:])
    assert index.own_counts.sum() == 2 * len(moments)
    assert np.count_nonzero(index.own) == sum(min(3, len(mine)) for mine in own.values())


def test_the_clock_tells_hours_and_weekdays_and_long_gaps_from_short_ones():
    """What is a week later stands in the same bucket, and half of the buckets are opposites of the others."""
    index = index_of(buckets=16)
    for hour in range(0, 168, 5):
        time = START + 3_600.0 * hour
        order = clock_buckets(index, time, 3.0)
        assert order == clock_buckets(index, time + 52 * WEEK, 3.0)
        assert [(bucket + 8) % 16 for bucket in order[::-1]] == order
    used = {clock_buckets(index, START + 3_600.0 * hour, 3.0)[0] for hour in range(24)}
    assert len(used) > 3
    times = [START + 3_600.0 * hour for hour in range(24)]
    assert any(clock_buckets(index, time, 0.0)[0] != clock_buckets(index, time, 12.0)[0] for time in times)


def test_the_rotation_is_drawn_from_the_seed():
    assert np.array_equal(index_of(seed=4).rotation, index_of(seed=4).rotation)
    assert not np.array_equal(index_of(seed=4).rotation, index_of(seed=5).rotation)


# --- a user's own, and all users' ---------------------------------------------------------------------------------


def clicks_of(user, rows, *, start=START, step=5_000.0):
    times = [start + step * at for at in range(len(rows))]
    return [Click(user, row, time, time, trainable=True) for row, time in zip(rows, times, strict=True)]


def ask(player, user, time):
    (answer,) = player.play([Ask(user, (time,), (time,))])
    return answer


def rows_elsewhere(row, buckets, below):
    return [other for other in range(1, below) if bucket_of_item(other, buckets) != bucket_of_item(row, buckets)]


PATIENT = {"moments_held": 5_000, "recall_latest": 1, "successors_held": 8, "neighbours_held": 8}


def test_what_followed_an_item_is_found_by_it_at_any_later_time():
    player, others = Player(few(**PATIENT), 64), rows_elsewhere(7, 4, 300)
    player.play(clicks_of(0, [7, 8]))
    player.play(clicks_of(0, others, start=START + 10_000))  # at hours of the whole week
    later = START + 10_000 + 5_000 * len(others)
    player.play(clicks_of(0, [7], start=later))
    for hours in (0, 5, 12, 19):
        assert (2, 8) in ask(player, 0, later + 3_600 * hours).own


def test_what_was_clicked_at_a_time_is_found_by_it_whatever_item_stands_before():
    player = Player(few(**PATIENT, recall_probes=1), 64)
    index = player.store.index
    player.play(clicks_of(0, [7, 8], step=60.0))
    bucket = clock_buckets(index, START + 60, np.log1p(60.0))[0]
    later = START + WEEK
    player.play(clicks_of(0, [9], start=later))  # 8's moment is older than the latest
    found = ask(player, 0, later + 60)
    assert clock_buckets(index, later + 60, np.log1p(60.0))[0] == bucket
    assert (2, 8) in found.own


def test_more_buckets_of_the_time_are_looked_into_with_more_probes():
    found = []
    for probes in (1, 2, 4):
        player = Player(few(**PATIENT, recall_probes=probes, recall_ring=200), 64)
        player.play(clicks_of(0, [1 + at % 30 for at in range(100)], step=7_000.0))
        found.append(set(ask(player, 0, START + 700_100).own))
    assert found[0] < found[1] < found[2]
    assert len(found[2]) == 100  # all buckets, and the latest, which is always compared


def test_a_user_does_not_find_what_others_did_at_the_same_time():
    player = Player(few(**PATIENT), 64)
    player.play(clicks_of(0, [7, 8, 9, 7]))
    player.play(clicks_of(1, [5, 6], start=START))
    assert {number for number, _ in ask(player, 1, START).own} <= {5, 6}


def test_every_user_finds_what_followed_the_same_item_among_many_others():
    player, others = Player(few(**PATIENT), 64), rows_elsewhere(7, 4, 300)
    player.play(clicks_of(0, [7, 8]))
    for user, row in enumerate(others, 2):
        player.play(clicks_of(2 + user % 50, [row, row]))
    player.play([Click(1, 7, START, START, trainable=True)])
    found = ask(player, 1, START + 5)
    assert (2, 8) in found.world
    player.store.forget_user(UserKey(frozenset(), 1))  # user 0's hash
    assert (2, 8) not in ask(player, 1, START + 5).world


def test_who_was_here_longest_ago_makes_room_and_has_no_past_on_return():
    changed = {**PATIENT, "micro_batch_max": 2, "recall_users_held": 2, "recall_ring": 200, "recall_probes": 4}
    player = Player(few(**changed), 1)
    for user in (0, 1):
        player.play(clicks_of(user, [7, 8, 7]))
    player.play(clicks_of(0, [7]))  # seen again: user 1 is next
    slot = int(player.store.own_slots(["1"])[0])
    assert len(ask(player, 1, START).own) == 3
    player.play(clicks_of(2, [7]))
    assert player.store.own_slots(["0", "1", "2"]).tolist() == [1 - slot, -1, slot]
    assert len(ask(player, 1, START).own) == 1  # the latest, which needs no index
    assert len(ask(player, 0, START).own) == 4
    player.play(clicks_of(1, [7]))
    assert len(ask(player, 1, START).own) == 2  # the moment that has left the latest since


def test_older_moments_that_are_forgotten_are_found_by_no_user():
    player = Player(few(**PATIENT, recall_ring=200, recall_probes=4), 64)
    player.play(clicks_of(0, [7, 8, 7]))
    assert len(ask(player, 0, START).own) == 3
    user = UserKey(frozenset({"0"}), 0)
    assert player.store.forget_user(user)["recall_index"] == 1
    assert player.store.forget_user(user)["recall_index"] == 0
    assert len(ask(player, 0, START).own) == 1
    assert player.store.own_slots(["0"]).tolist() == [-1]


# --- a restart ----------------------------------------------------------------------------------------------------


def restarted(player, **changed):
    again = Player(few(**{**PATIENT, **changed}), player.size)
    arrays, state = player.store.to_state()
    again.store.load_state(copy.deepcopy(arrays), copy.deepcopy(state))
    again.histories.load_state(*copy.deepcopy(player.histories.to_state()))
    return again


def test_users_are_found_again_after_a_restart_and_make_room_in_the_same_order():
    held_now = {"micro_batch_max": 2, "recall_users_held": 2}
    player = Player(few(**{**PATIENT, **held_now}), 1)
    for user in (0, 1, 0):
        player.play(clicks_of(user, [7, 8, 7]))
    again = restarted(player, **held_now)
    for one in (player, again):
        one.play(clicks_of(2, [7, 8]))
    assert again.store.own_slots(["0", "1", "2"]).tolist() == player.store.own_slots(["0", "1", "2"]).tolist()
    for user in (0, 1, 2):
        assert ask(again, user, START + 9e5) == ask(player, user, START + 9e5)


@pytest.mark.parametrize(
    "changed",
    [{"recall_users_held": 65}, {"recall_ring": 5}, {"recall_buckets": 6}, {"world_ring": 9}, {"world_buckets": 8}],
)
def test_an_index_of_another_shape_loses_older_moments_and_nothing_else(changed):
    player = Player(few(**PATIENT), 64)
    player.play(clicks_of(0, [7, 8, 7, 8, 7]))
    again = restarted(player, **changed)
    assert again.store.own_slots(["0"]).tolist() == [-1]
    assert not again.store.index.own.any()
    assert not again.store.index.world.any()
    before, after = ask(player, 0, START + 9e5), ask(again, 0, START + 9e5)
    assert before.world
    assert after.world == []
    assert after.own == [(5, 7)]  # the latest
    assert sorted(after.rows) == sorted(before.rows)
    again.play(clicks_of(0, [8], start=START + 9e5))
    assert again.store.own_slots(["0"]).tolist() == [0]


@pytest.mark.parametrize("moments_held", [64, 10_000])
def test_with_room_for_another_number_of_moments_the_latest_are_found(moments_held):
    player = Player(few(**PATIENT, recall_ring=200, recall_probes=4), 64)
    player.play(clicks_of(0, [7, 8] * 100))
    again = restarted(player, moments_held=moments_held, recall_ring=200, recall_probes=4)
    own = ask(player, 0, START + 5e6).own
    expected = [hit for hit in own if hit[0] > 200 - moments_held]
    assert len(own) == 200
    assert sorted(ask(again, 0, START + 5e6).own) == sorted(expected)


def test_an_index_without_users_is_restored():
    store, again = FeatureStore(few()), FeatureStore(few())
    again.load_state(*store.to_state())
    assert again.own_slots(["0"]).tolist() == [-1]


def test_a_part_of_the_hits_is_that_of_its_queries():
    hits = Hits(np.array([0, 2, 2, 5]), np.arange(10, 15), np.array([0, 3, 7, 9, 8]))
    part = hits.part(1, 3, 6)
    assert [one.tolist() for one in part] == [[0, 0, 3], [12, 13, 14], [1, 3, 2]]
