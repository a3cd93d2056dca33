"""What is kept of a query's candidates, and how all of them are ordered, against plain sorted lists.

Letters: `N` queries, `C` candidates of all of them (flat), `K` candidates kept of a query.
"""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.prune import find_rows, join_views, keep_best, put_inputs, rank_behind

# Few different numbers, so that many are equal.
numbers = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.inf, -math.inf]))
scores_of_queries = st.lists(st.lists(numbers | st.just(math.nan), max_size=7), max_size=4)


def starts_of(queries):
    """(N + 1,)"""
    return np.cumsum([0, *map(len, queries)])


def flat(queries, dtype=np.float32):
    """(C,)"""
    return np.array([one for mine in queries for one in mine], dtype)


def kept_of(queries, K):
    kept = np.full((len(queries), K), -7)
    keep_best(starts_of(queries), flat(queries), kept)
    return kept


def as_order(score):
    return -math.inf if math.isnan(score) else score


# --- what is kept ------------------------------------------------------------------------------------------------


@given(scores_of_queries, st.integers(1, 9))
def test_the_best_are_kept_in_order_of_equal_ones_the_first_and_nan_last(queries, K):
    for start, mine, kept in zip(starts_of(queries), queries, kept_of(queries, K), strict=False):
        order = sorted(range(len(mine)), key=lambda at: (-as_order(mine[at]), at))[:K]
        assert kept.tolist() == [start + at for at in order] + [-1] * (K - len(order))


# --- ranks -------------------------------------------------------------------------------------------------------


@given(scores_of_queries, st.integers(1, 5), st.data())
def test_what_is_not_kept_is_ranked_behind_all_that_is_and_among_itself_by_its_score(queries, K, data):
    starts, kept = starts_of(queries), kept_of(queries, K)
    targets = np.array(
        [
            start + data.draw(st.integers(0, len(mine) - 1)) if mine else -1
            for start, mine in zip(starts, queries, strict=False)
        ],
        np.int64,
    )
    ranks = np.full(len(queries), -5.0)
    rank_behind(starts, flat(queries), kept, targets, ranks)
    for q, (mine, target) in enumerate(zip(queries, targets.tolist(), strict=True)):
        held = {at - starts[q] for at in kept[q].tolist() if at >= 0}
        if target < 0 or target - starts[q] in held:
            assert ranks[q] == -5.0  # left as it was
            continue
        its = as_order(mine[target - starts[q]])
        others = [as_order(score) for at, score in enumerate(mine) if at not in held]
        ahead, tied = sum(score > its for score in others), sum(score == its for score in others)
        assert ranks[q] == len(held) + ahead + (tied - 1) / 2


def test_without_a_target_a_rank_is_left_as_it_was():
    ranks = np.array([math.inf])
    rank_behind(np.array([0, 3]), np.ones(3, np.float32), np.array([[0]]), np.array([-1]), ranks)
    assert ranks[0] == math.inf


# --- rows --------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(1, 9), unique=True, max_size=6), max_size=5), st.data())
def test_rows_are_found_among_their_own_query_s_candidates_alone(queries, data):
    wanted = np.array([data.draw(st.integers(0, 9)) for _ in queries], np.int64)
    found, starts = np.full(len(queries), -7), starts_of(queries)
    find_rows(starts, flat(queries, np.int32), wanted, found)
    for q, (mine, row) in enumerate(zip(queries, wanted.tolist(), strict=True)):
        assert found[q] == (starts[q] + mine.index(row) if row in mine else -1)


# --- joined views ------------------------------------------------------------------------------------------------

shares = st.dictionaries(st.integers(1, 9), st.integers(1, 50).map(lambda n: n / 8), max_size=5)


def joined(users, count):
    """Shares by row of each user's moments -> rows (U, count) and scores (U, count)."""
    views = [view for mine in users for view in mine]
    of_user = np.array([at for at, mine in enumerate(users) for _ in mine], np.int64)
    rows = flat([list(view) for view in views], np.int32)
    kept, given_shares = np.full((len(views), 6), -1), np.zeros((len(views), 6), np.float32)
    for q, (start, view) in enumerate(zip(starts_of(views), views, strict=False)):
        kept[q, : len(view)] = start + np.arange(len(view))
        given_shares[q, : len(view)] = list(view.values())
    best, scores = np.full((len(users), count), -7), np.zeros((len(users), count), np.float32)
    join_views(rows, kept, given_shares, of_user, best, scores)
    return best, scores


@given(st.lists(st.lists(shares, min_size=1, max_size=4), max_size=4), st.integers(1, 8))
def test_a_list_of_several_moments_goes_by_the_mean_of_the_shares(users, count):
    best, scores = joined(users, count)
    for rows, found, mine in zip(best.tolist(), scores.tolist(), users, strict=True):
        means = {row: sum(view.get(row, 0.0) for view in mine) / len(mine) for view in mine for row in view}
        here = [row for row in rows if row]
        assert len(here) == len(set(here)) == min(count, len(means))
        assert rows == here + [0] * (count - len(here))  # the best first, nothing after
        assert found[: len(here)] == pytest.approx(sorted(means.values(), reverse=True)[:count], rel=1e-5)
        assert [means[row] for row in here] == pytest.approx(found[: len(here)], rel=1e-5)
        assert found[len(here) :] == [-math.inf] * (count - len(here))


def test_of_equal_ones_the_first_that_was_met_comes_first():
    best, _ = joined([[{4: 0.5, 2: 0.5}, {2: 0.25, 9: 0.5, 4: 0.25}]], 3)
    assert best.tolist() == [[4, 2, 9]]


# --- the ranker's inputs ---------------------------------------------------------------------------------------------


def test_inputs_are_features_lifts_and_both_memories_and_zero_without_candidate():
    random = np.random.default_rng(0)
    features, own, world = (random.random((5, width), np.float32) for width in (3, 2, 4))
    lifts, rows = random.random(5, np.float32), np.arange(10, 15, dtype=np.int32)
    places = np.array([[4, 0, -1], [2, -1, -1]])
    items, inputs = np.full((2, 3), 99), np.full((6, 3 + 1 + 2 + 4 + 1), np.nan, np.float32)
    put_inputs(places, rows, features, lifts, own, world, items, inputs)
    whole = np.concatenate([features, lifts[:, None], own, world, np.zeros((5, 1), np.float32)], 1)
    expected = np.where(places[..., None] >= 0, whole[places], 0).reshape(6, -1)
    np.testing.assert_array_equal(inputs, expected)
    assert items.tolist() == [[14, 10, 0], [12, 0, 0]]


# --- without the compiler ----------------------------------------------------------------------------------------


def test_without_compiler_the_plain_python_gives_the_same():
    code = f"""
import runpy, types
import numpy as np
test = runpy.run_path({__file__!r})
assert isinstance(test["keep_best"], types.FunctionType)
assert test["kept_of"]([[1.0, 3.0, np.nan, 3.0], [], [2.0]], 3).tolist() == [[1, 3, 0], [-1, -1, -1], [4, -1, -1]]
ranks = np.zeros(1)
test["rank_behind"](np.array([0, 4]), np.float32([1, 3, 0, 0]), np.array([[1]]), np.array([2]), ranks)
assert ranks[0] == 2.5
found = np.zeros(2, np.int64)
test["find_rows"](np.array([0, 2, 3]), np.int32([5, 6, 6]), np.array([6, 5]), found)
assert found.tolist() == [1, -1]
assert test["joined"]([[{{4: 0.5}}, {{2: 0.5, 4: 0.25}}]], 2)[0].tolist() == [[4, 2]]
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, check=True)
