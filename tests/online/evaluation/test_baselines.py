"""Counting methods against hand-made numbers, and against a slow version that scores every item."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from online.evaluation.baselines import METHODS, Baselines
from online.metrics import K

Stream = list[tuple[int, int]]


def ranks_of(stream: Stream, *, exclude_seen: bool = False, depth: int = K) -> list[dict[str, float]]:
    counting = Baselines(exclude_seen=exclude_seen, depth=depth)
    found = []
    for user, item in stream:
        found.append(dict(zip(METHODS, counting.ranks(user, item).tolist(), strict=True)))
        counting.learn(user, item)
    return found


def test_ranks_of_a_stream_that_was_counted_by_hand() -> None:
    #            new     new     new     tied with 0, of the three   again 1: behind 0, tied with 2
    stream = [(0, 0), (0, 1), (1, 2), (1, 0), (0, 1)]
    found = ranks_of(stream)
    assert [one["popular"] for one in found] == [math.inf, math.inf, math.inf, 1.0, 1.5]
    # Item 0 was clicked first, so it is the least recent of three; then it leads, before 2, before 1.
    assert [one["recent"] for one in found[3:]] == [2.0, 2.0]
    # User 1 has had 2; 0 comes behind the more recent 1. User 0 has had 1 last.
    assert [one["own"] for one in found[3:]] == [2.0, 0.0]
    # Nothing ever followed 2; after 1 nothing did either.
    assert [one["markov"] for one in found[3:]] == [2.0, 2.0]
    # User 1's only item 2 was near nothing. User 0 had 0 and 1, which were near each other, and 2 was near 0:
    # 1 gets 0.85 from 0, halved by nothing; 0 gets 0.5 from 1 and the worse root; 2 gets 0.85 · 0.5 from 0.
    assert [one["knn"] for one in found[3:]] == [2.0, 0.0]


def test_an_item_that_was_never_clicked_is_a_miss_for_every_method() -> None:
    assert set(ranks_of([(0, 0), (1, 1)])[1].values()) == {math.inf}


def test_items_a_user_has_had_are_neither_found_nor_in_the_way() -> None:
    stream = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2), (2, 1), (0, 1), (0, 0)]
    found = ranks_of(stream, exclude_seen=True)
    # Before the seventh click 0 has three clicks, 1 has two and 2 has one; user 0 had 0.
    assert found[6]["popular"] == 0.0
    assert set(found[7].values()) == {math.inf}


def every_score(past: Stream, user: int, *, exclude_seen: bool) -> dict[str, dict[int, float]]:
    """Scores of all items that occurred, straight from the table of methods: nothing is kept between clicks."""
    items = {item for _, item in past}
    clicks = Counter(item for _, item in past)
    recent = {i: sum(2 ** (-(len(past) - at) / 3000) for at, (_, j) in enumerate(past) if i == j) for i in items}
    recent = {i: value / max(recent.values()) for i, value in recent.items()}
    histories: dict[int, list[int]] = {}
    for one, item in past:
        histories.setdefault(one, []).append(item)
    mine = histories.get(user, [])
    own = dict.fromkeys(items, 0.0)
    if not exclude_seen:
        for i in set(mine):
            own[i] = math.sqrt(mine.count(i)) * 0.98 ** mine[::-1].index(i)
    followed = dict.fromkeys(items, 0.0)
    beside: Counter[tuple[int, int]] = Counter()
    for history in histories.values():
        for before, item in pairwise(history):
            if mine and before == mine[-1]:
                followed[item] += 1
        for at, item in enumerate(history):
            for before in set(history[max(0, at - 20) : at]) - {item}:
                beside[before, item] += 1
                beside[item, before] += 0.5  # type: ignore[assignment]
    near = dict.fromkeys(items, 0.0)
    for age, before in enumerate(mine[:-21:-1]):
        for i in items:
            near[i] += 0.85**age * beside[before, i] / math.sqrt((clicks[before] + 5) * (clicks[i] + 5))

    def to_one(scores: dict[int, float]) -> dict[int, float]:
        best = max(scores.values())
        return {i: score / (best + 1e-9) for i, score in scores.items()}

    parts = [to_one(part) for part in (near, own, followed)]
    return {
        "popular": {i: float(clicks[i]) for i in items},
        "recent": recent,
        "own": {i: own[i] + 1e-3 * recent[i] for i in items},
        "markov": {i: followed[i] + 0.1 * recent[i] for i in items},
        "knn": {i: near[i] + 1e-4 * recent[i] for i in items},
        "blend": {i: sum(part[i] for part in parts) + 0.3 * recent[i] for i in items},
    }


def slow_rank(scores: dict[int, float], item: int, left_out: set[int]) -> float:
    others = [score for i, score in scores.items() if i != item and i not in left_out]
    ahead = sum(score > scores[item] * (1 + 1e-13) for score in others)
    tied = sum(math.isclose(score, scores[item], rel_tol=1e-13) for score in others)
    return ahead + tied / 2


streams = st.integers(2, 30).flatmap(
    lambda items: st.lists(st.tuples(st.integers(0, 3), st.integers(0, items - 1)), min_size=1, max_size=80)
)


@given(streams, st.booleans(), st.sampled_from([3, K, 20]))
@example([(0, 0)] * 30, False, K)
@example([(at % 2, at % 25) for at in range(80)], True, K)
def test_fast_and_slow_counting_agree(raw: Stream, exclude_seen: bool, depth: int) -> None:
    numbers: dict[int, int] = {}
    stream = [(user, numbers.setdefault(item, len(numbers))) for user, item in raw]
    found = ranks_of(stream, exclude_seen=exclude_seen, depth=depth)
    for at in range(max(1, len(stream) - 12), len(stream)):
        user, item = stream[at]
        had = {j for one, j in stream[:at] if one == user} if exclude_seen else set()
        if item in had or all(item != j for _, j in stream[:at]):
            assert set(found[at].values()) == {math.inf}
            continue
        scores = every_score(stream[:at], user, exclude_seen=exclude_seen)
        for method in METHODS:
            rank = slow_rank(scores[method], item, had)
            assert found[at][method] == (rank if rank < depth else math.inf), (at, method)


@given(streams, st.booleans())
def test_scores_are_the_ones_of_the_table(raw: Stream, exclude_seen: bool) -> None:
    numbers: dict[int, int] = {}
    stream = [(user, numbers.setdefault(item, len(numbers))) for user, item in raw]
    counting = Baselines(exclude_seen=exclude_seen)
    for one in stream:
        counting.learn(*one)
    user = stream[-1][0]
    had = {item for one, item in stream if one == user} if exclude_seen else set()
    wanted = every_score(stream, user, exclude_seen=exclude_seen)
    for row, method in zip(counting.scores(user), METHODS, strict=True):
        expected = [-math.inf if item in had else wanted[method][item] for item in range(len(numbers))]
        np.testing.assert_allclose(row, expected, rtol=1e-7, err_msg=method)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_asking_changes_nothing(exclude_seen: bool) -> None:
    rng = np.random.default_rng(0)
    stream = [
        (int(user), int(item)) for user, item in zip(rng.integers(0, 5, 300), rng.integers(0, 40, 300), strict=True)
    ]
    quiet, asked = Baselines(exclude_seen=exclude_seen), Baselines(exclude_seen=exclude_seen)
    for user, item in stream:
        for other in range(0, 40, 7):
            asked.ranks(user, other)
        np.testing.assert_array_equal(asked.ranks(user, item), quiet.ranks(user, item))
        asked.learn(user, item)
        quiet.learn(user, item)


def test_weights_that_were_scaled_back_rank_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    stream = [
        (int(user), int(item)) for user, item in zip(rng.integers(0, 9, 400), rng.zipf(1.5, 400) % 30, strict=True)
    ]
    numbers: dict[int, int] = {}
    stream = [(user, numbers.setdefault(item, len(numbers))) for user, item in stream]
    before = ranks_of(stream)
    monkeypatch.setattr("online.evaluation.baselines._RESCALE_ABOVE", 1.01)
    assert ranks_of(stream) == before
