"""Exploration: the probability that is reported is the one with which the list is drawn."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.exploration import draw_list, position_propensities, slot_probabilities

scores_of = st.lists(st.floats(-5, 5), min_size=1, max_size=6).map(np.array)
shares = st.floats(0, 1)
temperatures = st.floats(0.05, 10)


def probability_of(scores, order, *, explore, temperature):
    """Of a whole list, in plain Python from the definition: slot by slot, best or softmax among what is left."""
    left, product = list(range(len(scores))), 1.0
    for item in order:
        best = max(left, key=lambda one: scores[one])
        softmax = np.exp((scores[left] - scores[best]) / temperature)
        softmax /= softmax.sum()
        product *= explore * softmax[left.index(item)] + (1 - explore) * (item == best)
        left.remove(item)
    return product


@given(scores_of, shares, temperatures, st.integers(1, 4))
def test_the_probabilities_of_all_lists_add_up_to_1(scores, explore, temperature, k):
    k = min(k, len(scores))
    lists = permutations(range(len(scores)), k)
    total = sum(probability_of(scores, one, explore=explore, temperature=temperature) for one in lists)
    assert total == pytest.approx(1)


@given(scores_of, shares, temperatures, st.integers(1, 8), st.text(max_size=20))
def test_a_list_s_propensity_is_the_product_by_definition(scores, explore, temperature, k, request_id):
    drawn = draw_list(scores, k, explore=explore, temperature=temperature, request_id=request_id)
    assert len(set(drawn.order.tolist())) == len(drawn.order) == min(k, len(scores))
    expected = probability_of(scores, drawn.order.tolist(), explore=explore, temperature=temperature)
    assert np.prod(drawn.propensity) == pytest.approx(expected)


@pytest.mark.parametrize("explore", [0.3, 1.0])
def test_lists_occur_as_often_as_their_propensity_says(explore):
    scores, draws = np.array([1.0, 0.5, 0.0, -1.0]), 20_000
    counts: dict[tuple[int, ...], int] = {}
    for number in range(draws):
        drawn = draw_list(scores, 3, explore=explore, temperature=0.8, request_id=f"r{number}")
        counts[tuple(drawn.order.tolist())] = counts.get(tuple(drawn.order.tolist()), 0) + 1
    for order in permutations(range(4), 3):
        expected = probability_of(scores, order, explore=explore, temperature=0.8)
        error = 4.5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9
        assert abs(counts.get(order, 0) / draws - expected) < error, order


@pytest.mark.parametrize(("explore", "temperature"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1e-9), (0.5, 1e-300)])
def test_without_exploration_or_temperature_it_is_the_plain_list(explore, temperature):
    scores = np.random.default_rng(0).normal(size=50)
    drawn = draw_list(scores, 10, explore=explore, temperature=temperature, request_id="r")
    assert drawn.order.tolist() == np.argsort(-scores)[:10].tolist()
    assert drawn.propensity == pytest.approx(np.ones(10))


def test_the_same_request_gets_the_same_list_and_others_get_others():
    scores, how = np.zeros(100), {"explore": 1.0, "temperature": 1.0}
    lists = [draw_list(scores, 10, request_id=f"r{n % 50}", **how).order.tolist() for n in range(100)]
    assert lists[:50] == lists[50:]
    assert len(set(map(tuple, lists))) == 50


def test_the_share_of_slots_is_explored():
    drawn = [draw_list(np.arange(30.0), 10, explore=0.3, temperature=1, request_id=str(n)) for n in range(400)]
    assert np.mean([one.explored for one in drawn]) == pytest.approx(0.3, abs=0.03)
    for one in drawn:
        if not one.explored.any():
            assert one.order.tolist() == list(range(29, 19, -1))


@pytest.mark.parametrize("explore", [0.4, 1.0])
def test_position_propensities_agree_with_all_lists_counted(explore):
    scores = np.array([1.0, 0.2, 0.0, -1.0, -2.0])
    exact = np.zeros((3, 5))
    for order in permutations(range(5), 3):
        share = probability_of(scores, order, explore=explore, temperature=1.0)
        for slot, item in enumerate(order):
            exact[slot, item] += share
    found = position_propensities(scores, 3, explore=explore, temperature=1.0, draws=4_000)
    assert found.sum(axis=1) == pytest.approx(np.ones(3))
    assert found[0] == pytest.approx(exact[0])
    assert found == pytest.approx(exact, abs=0.03)


@given(scores_of, shares, temperatures)
def test_a_slot_s_probabilities_add_up_and_leave_out_what_is_gone(scores, explore, temperature):
    left = np.ones(len(scores), dtype=bool)
    left[1:2] = False
    found = slot_probabilities(scores, left, explore=explore, temperature=temperature)
    assert found.sum() == pytest.approx(1)
    assert not found[~left].any()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"explore": 1.5}, "explore"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"k": -1}, "k must"),
        ({"scores": np.array([1.0, np.nan])}, "finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, why):
    given_ = {"scores": np.ones(3), "k": 2, "explore": 0.5, "temperature": 1.0, "request_id": "r"} | change
    with pytest.raises(ValueError, match=why):
        draw_list(given_.pop("scores"), given_.pop("k"), **given_)


def test_no_candidates_give_an_empty_list():
    drawn = draw_list(np.array([]), 5, explore=0.5, temperature=1, request_id="r")
    assert len(drawn.order) == len(drawn.propensity) == 0
