"""Lists that are drawn come with the exact probability of each item, and are drawn with it."""

import numpy as np
import pytest
from scipy import special

from online.learner.asking import Question
from online.learner.exploration import draw_from_shares, slot_probabilities
from online.learner.learner import Learner

EXPLORE, TEMPERATURE, K = 0.6, 2.0, 4
DRAWS = 1_500


@pytest.fixture
def learner(small, town_clicks):
    learner = Learner(small(users_held=200))
    for start in range(0, 160, 16):
        learner.learn(town_clicks[start : start + 16])
    return learner


@pytest.fixture
def user(town_clicks):
    return town_clicks[3].user_id


def drawn(learner, request_id, **fields):
    wanted = {"k": K, "explore": EXPLORE, "temperature": TEMPERATURE, "request_id": request_id, **fields}
    (answer,) = learner.answerer.answer([Question(**wanted)])
    return answer


def scores_of(learner, user, **fields):
    """The candidates that can be drawn, and the logarithms of their shares."""
    plain = drawn(learner, "", user_id=user, k=500, explore=0.0, **fields)
    shares = np.array(plain.scores)
    return [item for item, share in zip(plain.items, shares, strict=True) if share > 0], np.log(shares[shares > 0])


def test_what_is_not_explored_has_no_propensities(learner, user):
    plain = drawn(learner, "r", user_id=user, explore=0.0)
    assert (plain.propensities, plain.drawn) == (None, None)
    assert plain.items == drawn(learner, "s", user_id=user, explore=0.0).items
    assert plain.items == drawn(learner, "s", user_id=user, temperature=0.0).items


def test_the_first_item_is_drawn_as_often_as_its_propensity_says(learner, user):
    items, scores = scores_of(learner, user)
    expected = slot_probabilities(
        scores, np.ones(len(items), np.bool_), explore=EXPLORE, temperature=TEMPERATURE
    )  # fmt: skip
    found: dict[str, int] = dict.fromkeys(items, 0)
    for number in range(0, DRAWS, 30):
        questions = [
            Question(user_id=user, k=1, explore=EXPLORE, temperature=TEMPERATURE, request_id=f"r{n}")
            for n in range(number, number + 30)
        ]
        for answer in learner.answerer.answer(questions):
            found[answer.items[0]] += 1
            assert answer.propensities[0] == pytest.approx(expected[items.index(answer.items[0])], rel=1e-5)
    often = expected * DRAWS >= 5  # the others in one cell, as the test asks for
    counts = np.array([found[item] for item in items])
    observed = np.array([*counts[often], counts[~often].sum()])
    wanted = np.array([*(expected[often] * DRAWS), expected[~often].sum() * DRAWS])
    wanted *= DRAWS / wanted.sum()
    assert often.sum() > 5
    # Pearson's chi-squared test
    assert special.chdtrc(len(wanted) - 1, ((observed - wanted) ** 2 / wanted).sum()) > 0.01


def test_propensities_are_given_the_items_above(learner, user):
    items, scores = scores_of(learner, user)
    for number in range(20):
        answer = drawn(learner, f"r{number}", user_id=user)
        left = np.ones(len(items), np.bool_)
        for item, propensity in zip(answer.items, answer.propensities, strict=True):
            at = items.index(item)
            exact = slot_probabilities(scores, left, explore=EXPLORE, temperature=TEMPERATURE)[at]
            assert propensity == pytest.approx(exact, rel=1e-5)
            left[at] = False


def test_the_same_request_id_gives_the_same_list(learner, user):
    one, same = drawn(learner, "r-1", user_id=user), drawn(learner, "r-1", user_id=user)
    assert (one.items, one.propensities, one.drawn) == (same.items, same.propensities, same.drawn)
    assert any(drawn(learner, f"r-{n}", user_id=user).items != one.items for n in range(2, 8))


def test_rules_hold_for_drawn_lists_and_scores_follow_their_items(learner, user):
    items, _ = scores_of(learner, user)
    plain = dict(zip(items, drawn(learner, "", user_id=user, k=500, explore=0.0).scores, strict=False))
    for number in range(10):
        answer = drawn(learner, f"r{number}", user_id=user, exclude=items[:2], where=lambda rows: rows % 2 == 0)
        assert not set(answer.items) & set(items[:2])
        assert (answer.rows % 2 == 0).all()
        answer = drawn(learner, f"r{number}", user_id=user, explain=True)
        assert answer.scores == pytest.approx([plain[item] for item in answer.items], rel=1e-5)
        assert len(answer.explanations) == K


def test_candidates_of_which_nothing_is_known_come_last_for_certain(learner, user):
    items, _ = scores_of(learner, user)
    given = [items[0], "new-1", items[1], "new-2"]
    answer = drawn(learner, "r", user_id=user, candidates=given, explore=1.0)
    assert set(answer.items[:2]) == {items[0], items[1]}
    assert answer.items[2:] == ["new-1", "new-2"]
    assert answer.propensities[1:] == [1.0, 1.0, 1.0]
    assert 0 < answer.propensities[0] < 1
    assert answer.drawn == [True, True, False, False]


def test_candidates_without_a_share_follow_in_their_order():
    shares = np.array([0.6, 0.4, 0.0, 0.0, 0.0], np.float32)
    found = draw_from_shares(shares, 4, explore=1.0, temperature=1.0, request_id="r")
    assert sorted(found.order[:2].tolist()) == [0, 1]
    assert found.order[2:].tolist() == [2, 3]
    assert found.propensity[1:].tolist() == [1.0, 1.0, 1.0]
    assert found.explored.tolist() == [True, True, False, False]
    none = draw_from_shares(shares[:0], 4, explore=1.0, temperature=1.0, request_id="r")
    assert (len(none.order), len(none.propensity)) == (0, 0)
    assert draw_from_shares(shares[2:], 1, explore=1.0, temperature=1.0, request_id="r").order.tolist() == [0]
