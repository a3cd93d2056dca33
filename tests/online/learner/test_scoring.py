"""What a list says of scored candidates: places, ranks and the best, against plain sorted lists.

Letters: `N` queries, `C` candidates of all of them (flat), `K` candidates kept of a query, `F` features.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.learner.facts.store import Gathered
from online.learner.prune import keep_best
from online.learner.scoring import ScoredCandidates

ROWS = 12
quarters = st.integers(-40, 40).map(lambda n: n / 4)
some_scores = st.dictionaries(st.integers(1, ROWS - 1), st.tuples(quarters, quarters), max_size=6)


def scored_of(queries, K=6):
    """By row of each query: what the linear score says, and what the ranker says, if it is kept."""
    nothing: Any = None
    starts = np.cumsum([0, *map(len, queries)])
    rows = np.array([row for mine in queries for row in mine], np.int32)
    first = np.array([score for mine in queries for score, _ in mine.values()], np.float32)
    rankers = np.array([score for mine in queries for _, score in mine.values()], np.float32)
    kept = np.empty((len(queries), K), np.int64)
    keep_best(starts, first, kept)
    present = torch.from_numpy(kept >= 0)
    scores = torch.full(kept.shape, -torch.inf)
    scores[present] = torch.from_numpy(rankers[kept[kept >= 0]])
    gathered = Gathered(starts, rows, *[nothing] * 5)
    features = scores[..., None].nan_to_num(0, 0, 0)
    return ScoredCandidates(gathered, first, kept, features, present, scores, scores[..., None])


def kept_rows(mine, K):
    """Rows that are kept, best first by the linear score."""
    order = {row: at for at, row in enumerate(mine)}
    return sorted(mine, key=lambda row: (-mine[row][0], order[row]))[:K]


def softmax(mine):
    total = sum(math.exp(score) for score in mine.values())
    return {row: math.exp(score) / total for row, score in mine.items()}


# --- where items stand -------------------------------------------------------------------------------------------


@given(st.lists(some_scores, max_size=4), st.integers(1, 8), st.data())
def test_items_are_found_among_all_candidates_and_among_the_kept(queries, K, data):
    scored = scored_of(queries, K)
    targets = np.array([data.draw(st.integers(0, ROWS - 1)) for _ in queries], np.int64)
    positions = scored.positions(targets)
    places = scored.places(positions)
    rows = scored.rows()
    for q, (mine, row) in enumerate(zip(queries, targets.tolist(), strict=True)):
        kept = kept_rows(mine, K)
        assert rows[q].tolist() == kept + [0] * (K - len(kept))
        assert (positions[q] >= 0) == (row in mine)
        assert places[q] == (kept.index(row) if row in kept else -1)
        if row in mine:
            assert scored.gathered.rows[positions[q]] == row
            assert scored.gathered.starts[q] <= positions[q] < scored.gathered.starts[q + 1]


@given(st.lists(some_scores, max_size=4), st.integers(1, 4), st.data())
def test_ranks_go_by_the_ranker_among_the_kept_and_by_the_linear_score_behind_them(queries, K, data):
    targets = np.array([data.draw(st.integers(0, ROWS - 1)) for _ in queries], np.int64)
    scored = scored_of(queries, K)
    ranks = scored.ranks(scored.positions(targets))
    for found, mine, row in zip(ranks.tolist(), queries, targets.tolist(), strict=True):
        kept = kept_rows(mine, K)
        if row not in mine:
            assert found == math.inf
            continue
        which, group = (1, kept) if row in kept else (0, [one for one in mine if one not in kept])
        ahead = sum(mine[one][which] > mine[row][which] for one in group)
        tied = sum(mine[one][which] == mine[row][which] for one in group) - 1
        assert found == (0 if row in kept else len(kept)) + ahead + tied / 2


def test_a_score_that_is_no_number_is_behind_all_others_and_no_hit():
    scored = scored_of([{1: (3.0, 0.5), 2: (2.0, math.nan), 3: (1.0, -2.0)}], 3)
    assert not scored.finite()
    assert scored.ranks(scored.positions(np.array([2]))).tolist() == [2.0]
    assert scored_of([{1: (3.0, 0.5)}]).finite()
    assert not scored_of([{1: (math.inf, 0.5)}]).finite()


def test_without_candidates_there_is_nothing_to_find():
    scored = scored_of([{}, {}], 3)
    targets = np.array([0, 5])
    assert scored.positions(targets).tolist() == [-1, -1]
    assert scored.places(scored.positions(targets)).tolist() == [-1, -1]
    assert scored.ranks(scored.positions(targets)).tolist() == [math.inf] * 2
    assert scored.rows().tolist() == scored.tops(3).tolist() == [[0] * 3] * 2
    rows, scores = scored.best(np.arange(2), 2)
    assert rows.tolist() == [[0] * 2] * 2
    assert scores.tolist() == [[-math.inf] * 2] * 2
    assert scored.finite()


# --- the best ----------------------------------------------------------------------------------------------------


@given(st.lists(some_scores, max_size=4), st.integers(1, 9))
def test_the_tops_are_those_of_lists_sorted_by_the_ranker(queries, count):
    found = scored_of(queries).tops(count)
    assert found.shape == (len(queries), count)
    for rows, mine in zip(found.tolist(), queries, strict=True):
        here = rows[: min(count, len(mine))]
        assert len(set(here)) == len(here)
        assert [mine[row][1] for row in here] == sorted((score for _, score in mine.values()), reverse=True)[:count]
        assert not any(rows[len(here) :])


@given(st.lists(st.lists(some_scores, min_size=1, max_size=4), max_size=4), st.integers(1, 8))
def test_several_moments_of_one_user_become_the_mean_of_their_softmaxes(users, count):
    """A candidate that is none at some of the moments has no share in these."""
    queries = [mine for user in users for mine in user]
    of_user = np.array([number for number, user in enumerate(users) for _ in user], np.int64)
    rows, scores = scored_of(queries).best(of_user, count)
    assert rows.shape == scores.shape == (len(users), count)
    for found, its, user in zip(rows.tolist(), scores.tolist(), users, strict=True):
        shares = [softmax({row: score for row, (_, score) in mine.items()}) for mine in user]
        expected = {row: sum(mine.get(row, 0.0) for mine in shares) / len(user) for mine in shares for row in mine}
        n = min(count, len(expected))
        assert len(set(found[:n])) == n
        assert its[:n] == pytest.approx(sorted(expected.values(), reverse=True)[:n], rel=1e-4)
        assert its[:n] == pytest.approx([expected[row] for row in found[:n]], rel=1e-4)
        assert found[n:] == [0] * (count - n)
        assert its[n:] == [-math.inf] * (count - n)


@given(st.lists(some_scores, max_size=4), st.integers(1, 6))
def test_with_one_moment_each_the_order_is_that_of_the_scores(queries, count):
    scored = scored_of(queries)
    rows, _ = scored.best(np.arange(len(queries)), count)
    for found, mine, top in zip(rows.tolist(), queries, scored.tops(count).tolist(), strict=True):
        assert [mine[row][1] for row in found if row] == [mine[row][1] for row in top if row]


@given(st.lists(some_scores, max_size=4))
def test_shares_are_the_softmax_of_the_kept_and_0_beside_them(queries):
    shares = scored_of(queries).shares().numpy()
    for found, mine in zip(shares, queries, strict=True):
        expected = softmax({row: mine[row][1] for row in kept_rows(mine, 6)})
        np.testing.assert_allclose(found, [*expected.values()] + [0.0] * (6 - len(mine)), rtol=1e-5, atol=1e-30)
