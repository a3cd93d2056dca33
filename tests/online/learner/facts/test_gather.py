"""One pass over a micro-batch against a slow version in plain lists and dicts, one click at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from online.learner.facts import gather
from online.learner.facts.tables import NEAR, copy_of_rows, neighbours
from tests.online.learner.facts.streams import (
    NOBODY,
    START,
    Answer,
    Ask,
    Click,
    Event,
    Move,
    Player,
    Slow,
    SlowAnswer,
    column_names,
    few,
    stream,
)

ROOT = Path(__file__).resolve().parents[4]
SIZES = (1, 7, 64)  # of micro-batches
seeds = st.integers(0, 2**32 - 1)
changed_settings = st.sampled_from(
    [
        {},
        {"exclude_seen": True},
        {"exclude_seen": True, "history_max": 6, "recall_latest": 9},
        {"history_max": 6, "recall_latest": 6, "recall_ring": 1, "recall_probes": 1},
        {"popularity_half_lives": (1, 10, 1_000), "recall_latest": 1, "recall_probes": 4, "world_buckets": 2},
        {"successors_held": 40, "neighbours_held": 12, "moments_held": 1_000, "recall_buckets": 8},
        {"reformer": False, "successors_held": 1, "neighbours_held": 1},
    ]
)


def is_the_same(found: Answer, expected: SlowAnswer, names: list[str]) -> None:
    """Candidates, features, moments and followers."""
    assert len(set(found.rows)) == len(found.rows)
    assert set(found.rows) == expected.features.keys()
    for row, values in zip(found.rows, found.features, strict=True):
        mine = dict(zip(names, values, strict=True))
        assert mine == pytest.approx(expected.features[row], rel=1e-4, abs=1e-5)
    assert found.moment == pytest.approx(expected.moment, rel=1e-6)
    for mine, theirs in ((found.own, expected.own), (found.world, expected.world)):
        assert len(set(mine)) == len(mine)
        assert set(mine) == theirs
    assert found.followers == expected.followers


def players(**changed) -> list[Player]:
    """One for each size of micro-batches."""
    return [Player(few(**changed), size) for size in SIZES]


# --- the slow version ---------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=seeds, clicks=st.integers(1, 120), size=st.sampled_from(SIZES), changed=changed_settings)
@example(seed=1, clicks=400, size=7, changed={})  # all rings have gone round several times
def test_every_answer_is_that_of_a_loop_over_single_clicks(seed, clicks, size, changed):
    """Few users and items; clicks that are flagged, late, or on items without a row; several half-lives; lists at
    several moments, also of users nothing is known of; blocked and forgotten rows, and decays."""
    events, player = stream(seed, clicks), Player(few(**changed), size)
    slow = Slow(player.settings, player.store.index.rotation)
    names = column_names(player.settings.popularity_half_lives)
    found, expected = player.play(events), slow.play(events)
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        is_the_same(mine, theirs, names)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_where_there_are_too_many_the_best_become_candidates(exclude_seen):
    """A hub stands before everything, and each of the limits is reached."""
    random = np.random.default_rng(4)
    hub, rows, events = 1, 260, []
    for at in range(900):
        row = hub if at % 3 == 0 else 2 + int(rows * random.random() ** 2)
        events.append(Click(at // 3 % 5, row, START + at, START + at, trainable=True))
        if at > 600 and at % 20 == 0:
            events.append(Ask(at // 3 % 5, (START + at,), (START + at,)))
    changed = {"successors_held": 200, "neighbours_held": 200, "reformer": False, "exclude_seen": exclude_seen}
    player = Player(few(**changed), 64)
    slow = Slow(player.settings, player.store.index.rotation)
    answers = player.play(events)
    found = [answers[at] for at, event in enumerate(events) if isinstance(event, Ask)]
    names = column_names(player.settings.popularity_half_lives)
    for mine, theirs in zip(found, slow.play(events, clicks=False), strict=True):
        is_the_same(mine, theirs, names)
    assert len(slow.tables["second"].of(hub)) > gather.SECOND_MAX
    assert len(slow.near(0, lambda _: True)) > gather.NEAR_MAX
    assert len(slow.popularity(20)) > gather.POPULAR_MAX


# --- what must not matter -----------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=seeds, clicks=st.integers(1, 150), changed=changed_settings)
def test_micro_batches_of_any_size_give_the_same_bit_for_bit(seed, clicks, changed):
    events, each = stream(seed, clicks), players(**changed)
    one_by_one, *others = (player.play(events) for player in each)
    state, *states = (player.store.to_state()[0] for player in each)
    for answers in others:
        assert answers == one_by_one
    for arrays in states:
        assert {name: array.tobytes() for name, array in arrays.items()} == {
            name: array.tobytes() for name, array in state.items()
        }


@settings(max_examples=20)
@given(seed=seeds, keep=seeds, clicks=st.integers(1, 100), changed=changed_settings)
def test_an_answer_does_not_depend_on_who_else_is_asked_about(seed, keep, clicks, changed):
    events = stream(seed, clicks)
    kept = np.random.default_rng(keep).random(len(events)) < 0.3
    some = [event for event, is_kept in zip(events, kept, strict=True) if is_kept or not isinstance(event, Ask)]
    answers = {id(event): found for event, found in by_event(Player(few(**changed), 64), events)}
    for event, found in by_event(Player(few(**changed), 64), some):
        assert found == answers[id(event)]


def by_event(player: Player, events: list[Event]) -> list[tuple[Event, list[Answer]]]:
    """What was found at each event."""
    answers = iter(player.play(events))
    sizes = [len(event.times) if isinstance(event, Ask) else int(isinstance(event, Click)) for event in events]
    return [(event, [next(answers) for _ in range(size)]) for event, size in zip(events, sizes, strict=True)]


@settings(max_examples=20)
@given(seed=seeds, other=seeds, clicks=st.integers(1, 40), changed=changed_settings)
def test_nothing_of_a_later_click_is_seen_within_a_micro_batch(seed, other, clicks, changed):
    before = stream(seed, clicks, moves=False)
    after = [stream(one, 20, moves=False) for one in (other, other ^ 1)]
    expected = Player(few(**changed), 64).play(before)
    for more in after:
        assert Player(few(**changed), 64).play(before + more)[: len(expected)] == expected


def test_a_flagged_click_changes_nothing_for_other_users():
    """It is part of its own user's history and moments, and of nothing else."""
    player = Player(few(exclude_seen=False), 7)
    player.play([Click(0, row, START + row, START + row, trainable=row != 4) for row in (1, 2, 3, 4, 5)])
    player.play([Click(1, 3, START + 19, START + 19, trainable=True)])
    others, no_user, own = player.play([Ask(user, (START + 20,), (START + 20,)) for user in (1, NOBODY, 0)])
    assert set(others.rows) == set(no_user.rows) == {1, 2, 3, 5}
    assert others.world == []  # what followed 3 was flagged
    assert 4 in own.rows
    assert (4, 4) in own.own  # their fourth moment
    for table in player.store.tables:
        assert not (copy_of_rows(table, slice(None)).others == 4).any()
        assert not table.totals[4]
    assert player.store.items.clicks[4] == player.store.items.popular[4].sum() == 0


# --- edges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_without_counts_and_histories_there_are_no_candidates(exclude_seen):
    asks = [Ask(NOBODY, (START, START + 5), (START, START + 5)), Ask(3, (START,), (START,))]
    for player in players(exclude_seen=exclude_seen):
        for answer in player.play(asks):
            assert answer == Answer([], [], (0, 0, *answer.moment[2:3], 0.0), [], [], [0] * gather.SHOWN)


def test_who_has_no_history_gets_what_is_popular_and_not_blocked():
    clicks = [Click(0, row, START + row, START + row, trainable=True) for row in (2, 2, 5)]
    ask = Ask(NOBODY, (START + 9,), (START + 9,))
    answers = Player(few(), 7).play([*clicks, Move("set_blocked", ([5], [True])), ask])
    assert answers[-1].rows == [2]


def test_clicks_on_items_without_a_row_are_candidates_of_nothing():
    clicks = [Click(user, 0, START + at, START + at, trainable=True) for at in range(9) for user in (0, 1)]
    player = Player(few(), 7)
    assert all(answer.rows == [] for answer in player.play([*clicks, Ask(0, (START + 9,), (START + 9,))]))
    for table in player.store.tables:
        assert not table.used.any()
        assert not table.totals.any()
    assert not player.store.items.clicks.any()
    assert not player.store.items.popular.any()


# --- what is taken back -------------------------------------------------------------------------------------------


def taken_back(player: Player, user: int, row: int) -> tuple:
    """What `FeatureStore.take_back` is told of a user's clicks on an item, as the abuse filter finds it; flagged
    from here on."""
    newest = player.histories.newest_first(player.histories.find([str(user)]), player.settings.history_max)
    rows, numbers, length = newest.rows[0], newest.numbers[0], int(newest.lengths[0])
    total, size = int(player.store.log.total[0]), len(player.flagged)
    heard = [not player.flagged[number % size] for number in numbers[:length].tolist()]
    its = [heard[at] and rows[at] == row for at in range(length)]
    some, earlier, ages = [], [], []
    for at in range(length):
        before = [0] * NEAR
        for place in range(min(NEAR, length - 1 - at)):
            then = at + 1 + place
            if heard[then] and (its[at] or its[then]):
                before[place] = int(rows[then])
        if its[at] or (heard[at] and any(before)):
            some.append(at)
            earlier.append(before)
            since = np.arange(numbers[at] + 1, total + 1) % size
            ages.append(float((~player.flagged[since]).sum()) if its[at] else -1.0)
    mine = numbers[:length][its]
    player.flagged[mine % size] = True
    return rows[some], np.array(earlier, np.int64).reshape(len(some), NEAR), np.array(ages), mine


ROOMY = {
    "successors_held": 40,
    "neighbours_held": 40,
    "history_max": 200,
    "moments_held": 1_000,
    "world_ring": 200,
}


@settings(max_examples=15)
@given(seed=seeds, clicks=st.integers(2, 80))
def test_what_is_taken_back_was_never_counted_where_nothing_was_evicted(seed, clicks):
    events = stream(seed, clicks, moves=False)
    user, row = next((one.user, one.row) for one in events if isinstance(one, Click))
    without = [
        one._replace(trainable=one.trainable and (one.user, one.row) != (user, row)) if isinstance(one, Click) else one
        for one in events
    ]
    player, expected = Player(few(**ROOMY), 7), Player(few(**ROOMY), 7)
    player.play(events)
    expected.play(without)
    before = player.store.items.clicks.copy()
    player.store.take_back(*taken_back(player, user, row))
    if row > 0:
        for mine, theirs in zip(player.store.tables, expected.store.tables, strict=True):
            for of in range(13):
                held = [
                    dict(zip(*(part.tolist() for part in neighbours(table, of)), strict=True))
                    for table in (mine, theirs)
                ]
                assert held[0] == pytest.approx(held[1], abs=1e-4)
            np.testing.assert_allclose(mine.totals, theirs.totals, atol=1e-4)
        assert np.array_equal(player.store.items.clicks, expected.store.items.clicks)
    assert (before >= player.store.items.clicks).all()
    # Each counts as much as it did for the clicks since: also for those that were taken back.
    slow = [one for one in events if isinstance(one, Click) and one.trainable]
    for number, half_life in enumerate(player.settings.popularity_half_lives):
        sums = np.zeros(len(player.store))
        for at, click in enumerate(slow):
            if click.row > 0 and (click.user, click.row) != (user, row):
                sums[click.row] += 0.5 ** ((len(slow) - at) / half_life)
        np.testing.assert_allclose(player.store.popularity_by(number, len(player.store)), sums, atol=1e-9)
        some = player.store.popular(20, number)
        assert sums[some].tolist() == sorted(sums[sums > 1e-9], reverse=True)
    # And it precedes nothing from here on.
    more = stream(seed ^ 5, 15, moves=False)
    columns = column_names(player.settings.popularity_half_lives)
    late = [name for name in columns if name.startswith("popularity_") or name in ("elapsed", "lifetime")]
    kept = [at for at, name in enumerate(columns) if name not in late]
    for mine, theirs in zip(player.play(more), expected.play(more), strict=True):
        assert sorted(mine.rows) == sorted(theirs.rows)
        assert sorted(mine.world) == sorted(theirs.world)
        for of, values in zip(mine.rows, mine.features, strict=True):
            other = theirs.features[theirs.rows.index(of)]
            assert [values[at] for at in kept] == pytest.approx([other[at] for at in kept], rel=1e-3, abs=1e-3)


# --- without a compiler -------------------------------------------------------------------------------------------


def everything(seed: int) -> list[Answer]:
    """A stream with all there is, and what is taken back of it."""
    player = Player(few(popularity_half_lives=(1, 20), exclude_seen=seed % 2 == 1), 7)
    answers = player.play(stream(seed, 40))
    player.store.take_back(*taken_back(player, 0, 5))
    return answers + player.play(stream(seed + 1, 10))


def test_as_plain_python_the_same_comes_out():
    code = "import json\nfrom tests.online.learner.facts.test_gather import everything\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(json.dumps([everything(3), everything(4)]))"],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for plain, compiled in zip(json.loads(done.stdout), (everything(3), everything(4)), strict=True):
        for one, other in zip(plain, compiled, strict=True):
            rows, features, moment, own, world, followers = one
            assert rows == other.rows
            assert features == [pytest.approx(values, rel=1e-5, abs=1e-6) for values in other.features]
            assert moment == pytest.approx(other.moment)
            assert [own, world] == [[list(hit) for hit in hits] for hits in (other.own, other.world)]
            assert followers == other.followers


@given(values=st.lists(st.floats(0, 10, width=32), min_size=1, max_size=40), data=st.data())
def test_the_nth_largest_is_that_of_sorting(values, data):
    n = data.draw(st.integers(1, len(values)))
    given_values = np.array(values, np.float32)
    assert gather.nth_largest(given_values, n, np.zeros(64, np.float32)) == sorted(given_values, reverse=True)[n - 1]
    assert given_values.tolist() == np.array(values, np.float32).tolist()  # they stay in their order
