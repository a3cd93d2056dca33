"""Candidates and their features against a loop over users that is slow and obviously right."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online import candidates
from online.candidates import FEATURES, NETWORK, OWN_DECAY, gather
from online.counts import Counts
from online.history import Latest

ROWS, LENGTH = 12, 5
clicked = st.lists(st.integers(0, ROWS - 1), max_size=LENGTH)


def latest_of(histories):
    rows = np.zeros((len(histories), LENGTH), np.int64)
    for at, history in enumerate(histories):
        rows[at, : len(history)] = history
    lengths = np.array([len(history) for history in histories], np.int64)
    return Latest(rows, np.zeros_like(rows), np.zeros(rows.shape), lengths)


def counts_of(pairs, held=3):
    counts = Counts(held, 20)
    counts.grow(ROWS)
    for previous, row in pairs:
        counts.add(previous, row)
    return counts


def slow(counts, history, *, exclude_seen, popular):
    """One user's candidates: {row: features}."""
    followed = [
        dict(zip(counts.followers[of].tolist(), counts.follow_counts[of].tolist(), strict=True)) if of else {}
        for of in [history[-1] if history else 0, history[-2] if len(history) > 1 else 0]
    ]
    rows = {*followed[0], *followed[1], *history, *counts.popular(popular).tolist()} - {0}
    if exclude_seen:
        rows -= set(history)
    found = {}
    for row in sorted(rows):
        since = history[::-1].index(row) if row in history else math.inf
        total = float(counts.follow_totals[history[-1]]) if history else 0.0
        found[row] = [
            math.log1p(followed[0].get(row, 0)),
            followed[0].get(row, 0) / (total + 1),
            math.log1p(followed[1].get(row, 0)),
            math.log1p(history.count(row)),
            OWN_DECAY**since if since < math.inf else 0.0,
            math.log1p(float(counts.recent_popularity(np.array([row]))[0])),
            0.0,
        ]
    return found


@given(
    pairs=st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS - 1)), max_size=80),
    histories=st.lists(clicked, min_size=1, max_size=6),
    exclude_seen=st.booleans(),
)
def test_candidates_and_features_are_those_of_a_loop_over_users(pairs, histories, exclude_seen):
    counts = counts_of(pairs)
    found = gather(counts, latest_of(histories), exclude_seen=exclude_seen)
    assert found.features.shape == (len(found.rows), len(FEATURES))
    assert found.starts[0] == 0
    assert found.starts[-1] == len(found.rows)
    for user, history in enumerate(histories):
        mine = slice(found.starts[user], found.starts[user + 1])
        expected = slow(counts, history, exclude_seen=exclude_seen, popular=candidates.POPULAR_CANDIDATES)
        assert (found.owners[mine] == user).all()
        assert found.rows[mine].tolist() == list(expected)
        if expected:
            np.testing.assert_allclose(found.features[mine], list(expected.values()), rtol=1e-6)


def test_only_so_many_popular_ones_are_looked_at(monkeypatch):
    monkeypatch.setattr(candidates, "POPULAR_CANDIDATES", 2)
    counts = counts_of([(0, row) for row in (1, 2, 2, 3, 3, 3, 4)])
    found = gather(counts, latest_of([[], [1]]), exclude_seen=False)
    assert found.rows[found.owners == 0].tolist() == [2, 3]
    assert found.rows[found.owners == 1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_nothing_counted_and_nobody_known_gives_no_candidates(exclude_seen):
    found = gather(counts_of([]), latest_of([[], []]), exclude_seen=exclude_seen)
    assert found.starts.tolist() == [0, 0, 0]
    assert found.places_of(np.array([3, 0])).tolist() == [-1, -1]
    assert [rows.tolist() for rows, _ in found.best(np.zeros(0, np.float32), 5)] == [[], []]


def test_excluding_what_was_seen_leaves_nothing_of_it():
    counts = counts_of([(1, 2), (2, 1), (1, 3)] * 3)
    found = gather(counts, latest_of([[1, 2], [1, 2, 3]]), exclude_seen=True)
    assert found.rows[found.owners == 0].tolist() == [3]
    assert found.rows[found.owners == 1].tolist() == []


@given(histories=st.lists(clicked, min_size=1, max_size=5), data=st.data())
def test_targets_are_found_where_they_stand(histories, data):
    found = gather(counts_of([(1, 2), (2, 5), (5, 7)]), latest_of(histories), exclude_seen=False)
    targets = data.draw(st.lists(st.integers(0, 40), min_size=len(histories), max_size=len(histories)))
    for user, (place, target) in enumerate(zip(found.places_of(np.array(targets)).tolist(), targets, strict=True)):
        mine = list(range(found.starts[user], found.starts[user + 1]))
        expected = [at for at in mine if found.rows[at] == target]
        assert [place] == (expected or [-1])


@given(histories=st.lists(clicked, min_size=1, max_size=5), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_best_come_first_and_equal_ones_by_row(histories, count, seed):
    found = gather(counts_of([(1, 2), (2, 5), (5, 7)]), latest_of(histories), exclude_seen=False)
    scores = np.random.default_rng(seed).integers(0, 4, len(found.rows)).astype(np.float32)
    for user, (rows, values) in enumerate(found.best(scores, count)):
        mine = range(found.starts[user], found.starts[user + 1])
        expected = sorted((-float(scores[at]), int(found.rows[at])) for at in mine)[:count]
        assert [(-value, row) for value, row in zip(values.tolist(), rows.tolist(), strict=True)] == expected


def test_the_table_of_features_names_the_network_last_and_silent_at_first():
    assert FEATURES[NETWORK][0] == "network"
    assert FEATURES[NETWORK][-1] == 0.0
    assert all(weight > 0 for *_, weight in FEATURES[:NETWORK])
