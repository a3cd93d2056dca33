"""Diversified lists: against brute force, the order at 0, and caps on tags."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.asking import Answerer, Question
from online.learner.diversity import (
    diversified,
    gini,
    intra_list_similarity,
    likeness,
    relevance,
    tag_cosines,
    varied,
)
from stream.items import Item
from tests.online.learner.conftest import learn, ring

seeds = st.integers(0, 2**32 - 1)


def candidates(seed, C=None):
    random = np.random.default_rng(seed)
    C = C or int(random.integers(1, 12))
    tags = [list(random.choice(list("abcdef"), random.integers(0, 4), replace=False)) for _ in range(C)]
    scores = -np.sort(-random.normal(size=C).astype(np.float32))
    return scores, likeness(random.normal(size=(C, 4)), tags), tags


def chosen_by_definition(scores, alike, k, *, diversity, most, tags):
    """In plain Python, all pairs again for each place."""
    scaled = relevance(scores)
    chosen = []
    while len(chosen) < k:
        best = None
        for one in range(len(scores)):
            if one in chosen:
                continue
            if most is not None and any(sum(tag in tags[other] for other in chosen) >= most for tag in tags[one]):
                continue
            likenesses = sum(alike[one, other] for other in chosen)
            gain = (1 - diversity) * scaled[one] - diversity * likenesses if chosen else scaled[one]
            if best is None or gain > best[0] + 1e-12:
                best = gain, one
        if best is None:
            break
        chosen.append(best[1])
    return chosen


@given(seeds, st.integers(1, 12), st.sampled_from([0.05, 0.3, 0.7, 1.0]), st.sampled_from([None, 1, 2]))
def test_a_list_is_what_its_definition_says(seed, k, diversity, most):
    scores, alike, tags = candidates(seed)
    got = diversified(scores, alike, k, diversity=diversity, max_per_tag=most, tags=tags)
    expected = chosen_by_definition(scores, alike, min(k, len(scores)), diversity=diversity, most=most, tags=tags)
    assert got.tolist() == expected


@given(seeds, st.integers(0, 12))
def test_without_diversity_the_order_is_untouched_and_likeness_is_not_computed(seed, k):
    scores, _, tags = candidates(seed)

    def never():
        raise AssertionError

    assert diversified(scores, never, k).tolist() == list(range(min(k, len(scores))))
    capped = diversified(scores, never, k, max_per_tag=len(scores), tags=tags)
    assert capped.tolist() == list(range(min(k, len(scores))))


@given(seeds, st.integers(1, 12), st.sampled_from([0.0, 0.4, 1.0]), st.integers(1, 3))
def test_no_tag_stands_more_often_than_its_cap(seed, k, diversity, most):
    scores, alike, tags = candidates(seed)
    got = diversified(scores, alike, k, diversity=diversity, max_per_tag=most, tags=tags).tolist()
    assert len(set(got)) == len(got) <= k
    counts = [sum(tag in tags[one] for one in got) for tag in "abcdef"]
    assert max(counts) <= most
    if len(got) < min(k, len(scores)):  # only because nothing more may be chosen
        full = {tag for tag, count in zip("abcdef", counts, strict=True) if count == most}
        assert all(full & set(tags[one]) for one in set(range(len(scores))) - set(got))


def test_copies_of_the_best_item_give_way_to_another():
    vectors = np.eye(4)[[0, 0, 0, 1]]
    got = diversified(np.array([4.0, 3.9, 3.8, 3.0]), likeness(vectors), 2, diversity=0.5)
    assert got.tolist() == [0, 3]


def test_lists_are_on_average_less_alike_the_more_diversity_is_asked_for():
    means = []
    for diversity in (0.0, 0.3, 0.6, 0.9):
        found = []
        for seed in range(60):
            scores, alike, _ = candidates(seed, 30)
            found.append(intra_list_similarity(alike, diversified(scores, alike, 8, diversity=diversity)))
        means.append(np.mean(found))
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.7 * means[0]


@pytest.mark.parametrize("scores", [[1.0, np.nan, -np.inf], [2.0, 2.0], [np.nan, np.nan], [5.0], []])
def test_scores_that_are_equal_or_not_finite_give_a_list(scores):
    got = diversified(np.array(scores), np.eye(len(scores)), 10, diversity=0.5)
    assert sorted(got.tolist()) == list(range(len(scores)))


def test_wrong_parameters_are_refused():
    for diversity in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="diversity must be from 0 to 1"):
            diversified(np.ones(2), np.eye(2), 2, diversity=diversity)
    with pytest.raises(ValueError, match="max_per_tag must be at least 1"):
        diversified(np.ones(2), np.eye(2), 2, max_per_tag=0, tags=[["a"], []])


def test_likeness_is_by_tags_and_vectors_where_both_are_known():
    vectors = np.array([[1.0, 0], [1, 0], [0, 2], [-1, 0], [0, 0]])
    tags = [["a", "b"], ["a"], ["c"], [], ["a"]]
    assert likeness(vectors)[0].tolist() == [1, 1, 0, 0, 0]  # opposite vectors are no more unlike than others
    assert tag_cosines(tags)[0] == pytest.approx([1, 0.5**0.5, 0, 0, 0.5**0.5])
    both = likeness(vectors, tags)
    assert both[0] == pytest.approx([1, (1 + 0.5**0.5) / 2, 0, 0, 0.5 * 0.5**0.5])
    assert likeness(None, tags)[1, 4] == pytest.approx(1)
    assert (both == both.T).all()
    with pytest.raises(ValueError, match="vectors or tags"):
        likeness(None)


def test_similarity_of_a_list_is_the_mean_over_its_pairs():
    _, alike, _ = candidates(5, 9)
    places = np.array([3, 0, 7, 8])
    expected = np.mean([alike[a, b] for a, b in itertools.combinations(places, 2)])
    assert intra_list_similarity(alike, places) == pytest.approx(expected)
    assert intra_list_similarity(alike, places[:1]) == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_gini_is_half_the_mean_difference_by_the_mean(counts):
    counts = np.array(counts, float)
    expected = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean()) if counts.any() else 0
    assert gini(counts) == pytest.approx(expected)


def test_a_question_s_candidates_are_varied_by_vectors_and_tags(learner):
    learn(learner, ring(300))
    answerer = Answerer(learner, learner.queries)
    answer = answerer.answer([Question(user_id="1", k=30)])[0]
    rows, shares = answer.rows, np.array(answer.scores)
    plain = varied(learner, rows, shares, 10)
    assert plain.tolist() == list(range(10))
    vectors = learner.weights.vectors.vectors.detach().numpy()[rows]
    means = []
    for diversity in (0.0, 0.4, 1.0):
        places = varied(learner, rows, shares, 10, diversity=diversity)
        assert len(set(places.tolist())) == 10
        assert places[0] == 0
        means.append(intra_list_similarity(likeness(vectors), places))
    assert means[0] > means[1] >= means[2]
    learner.put_items([Item(item_id=f"i{number}", tags=("even",) if number % 2 == 0 else ()) for number in range(40)])
    for diversity in (0.0, 0.5):
        places = varied(learner, rows, shares, 10, diversity=diversity, max_per_tag=2)
        items = learner.vocabulary.items_of(rows[places].tolist())
        assert 1 <= sum(int(item[1:]) % 2 == 0 for item in items) <= 2
    assert not len(varied(learner, rows[:0], shares[:0], 10, diversity=0.5))


def test_shares_give_the_relevance_of_scores():
    scores = np.array([3.0, 1.0, -2.0])
    shares = np.exp(scores) / np.exp(scores).sum()
    assert relevance(np.log(shares)) == pytest.approx(relevance(scores))
