"""A uniform sample of all clicks, each with what led to it."""

import json

import numpy as np

from online.learner.history import UserHistories
from online.learner.reservoir import Reservoir


def clicked(reservoir, count, *, users=5, batch=3, first=0, histories=None):
    """Click n is of user n mod `users`, on row n, at second n."""
    histories = histories or UserHistories(100, 8)
    for start in range(first, first + count, batch):
        numbers = np.arange(start, min(start + batch, first + count))
        slots = histories.slots([str(number % users) for number in numbers])
        histories.append(slots, numbers, numbers % 3, numbers.astype(float))
        behind = np.array([int((slots[at + 1 :] == slot).sum()) for at, slot in enumerate(slots)])
        reservoir.offer(histories, slots, behind)
    return histories


def ends(reservoir):
    found = reservoir.sample(1_000, np.random.default_rng(0))
    return found.rows[np.arange(len(found.lengths)), found.lengths - 1]


def test_an_excerpt_is_a_click_with_what_its_owner_clicked_before():
    reservoir = Reservoir(50, 4, seed=0)
    clicked(reservoir, 40, batch=7)
    found = reservoir.sample(1_000, np.random.default_rng(0))
    assert sorted(ends(reservoir)) == list(range(5, 40))  # the first ones had nothing before
    for rows, types, times, length in zip(*found, strict=True):
        end = int(rows[length - 1])
        expected = list(range(end % 5, end + 1, 5))[-4:]
        assert rows[:length].tolist() == expected
        assert types[:length].tolist() == [row % 3 for row in expected]
        assert times[:length].tolist() == expected
        assert not rows[length:].any()


def test_every_click_is_kept_with_the_same_chance_however_long_ago():
    kept = np.zeros(400)
    for seed in range(300):
        reservoir = Reservoir(20, 2, seed=seed)
        clicked(reservoir, 400, batch=16)
        kept[ends(reservoir)] += 1
    # 300 draws of 20 in 400: 15 of each on average; a hundred clicks together 1,500 +- 37.
    assert np.abs(kept.reshape(4, 100).sum(1) - [1_425, 1_500, 1_500, 1_500]).max() < 4 * 37


def test_different_excerpts_are_sampled_as_many_as_there_are():
    reservoir = Reservoir(50, 4, seed=0)
    assert len(reservoir.sample(9, np.random.default_rng(0)).lengths) == 0
    clicked(reservoir, 40)
    found = reservoir.sample(9, np.random.default_rng(0))
    assert len({tuple(rows) for rows in found.rows.tolist()}) == 9


def test_rows_that_lost_their_item_are_unknown_clicks():
    reservoir = Reservoir(50, 4, seed=0)
    clicked(reservoir, 40)
    reservoir.forget_rows([7, 12])
    rows = reservoir.sample(1_000, np.random.default_rng(0)).rows
    assert not np.isin([7, 12], rows).any()
    assert 17 in rows


def test_restored_it_goes_on_as_if_nothing_had_happened():
    whole, restored = Reservoir(20, 4, seed=0), Reservoir(20, 4, seed=1)
    histories = clicked(whole, 15)
    arrays, state = whole.to_state()
    restored.load_state(arrays, json.loads(json.dumps(state)))
    again = clicked(Reservoir(20, 4, seed=0), 15)
    clicked(whole, 200, first=15, histories=histories)
    clicked(restored, 200, first=15, histories=again)
    assert sorted(ends(whole)) == sorted(ends(restored))
    other = Reservoir(20, 6, seed=1)
    other.load_state(*whole.to_state())
    assert len(other) == 0
