"""No click is scored with what is known only after it: neither itself nor a later one."""

import numpy as np
import pytest

from online.learner.history import SERVED
from online.learner.learner import Learner
from tests.online.learner.conftest import click, foreseen, learn, queries_of_lists, ring, scored_lists, states_read


def test_an_item_that_was_never_seen_is_always_a_miss(learner):
    for start in range(0, 400, 8):
        learner.learn([click(number % 5, number, number) for number in range(start, start + 8)])
    assert learner.scores.scored == 400
    assert set(map(tuple, learner.scores.total().values())) == {("hit@10", "ndcg@10")}
    assert all(value == 0 for method in learner.scores.total().values() for value in method.values())


@pytest.mark.parametrize("changed", [0, 3, 7])
def test_lists_that_are_scored_do_not_know_their_click_or_any_later_one(small, changed):
    """Two streams that are the same up to some click of a micro-batch: up to it, that click's own list included, the
    same lists are scored."""
    stream = ring(328, users=60)
    stream, batch = stream[:320], stream[320:]
    other = batch[:changed] + [click(number % 3, 39 - number, 328) for number in range(8 - changed)]
    other[changed] = other[changed].model_copy(update={"user_id": batch[changed].user_id})
    found = []
    for last in (batch, other):
        learner = Learner(small(online_history=10, history_max=40))
        learn(learner, stream)
        given = scored_lists(learner)
        learner.learn(last)
        found.append(given[-1][0])
    for method in ("served", "popular", "followed"):
        assert found[0][method][: changed + 1].tolist() == found[1][method][: changed + 1].tolist()


@pytest.mark.parametrize("changed", [0, 3, 7])
def test_no_candidate_of_a_click_is_scored_with_that_click_or_any_later_one(small, changed):
    """As above, for the scores that are learned from."""
    stream = ring(328, users=6)
    stream, batch = stream[:320], stream[320:]
    other = batch[:changed] + [click(number % 3, 39 - number, 328) for number in range(8 - changed)]
    other[changed] = batch[changed].model_copy(update={"item_id": "i20"})
    found = []
    for last in (batch, other):
        learner = Learner(small(online_history=10, history_max=40))
        learn(learner, stream)
        found.append(foreseen(learner, last)[: changed + 1])
    for one, other in zip(*found, strict=True):
        assert one[0] == other[0]
        for mine, its in zip(one[1:], other[1:], strict=True):
            np.testing.assert_allclose(mine, its, atol=1e-4)


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(["a", "a"], id="of the same user"),
        pytest.param(["b", "b", "b"], id="of another user"),
    ],
)
def test_a_click_s_state_does_not_depend_on_later_clicks_of_its_micro_batch(small, later):
    found = []
    for users in (["a"], ["a", *later]):
        learner = Learner(small(online_history=6, history_max=40))
        learn(
            learner, ring(400, users=1) + [click(user, at % 7, 400 + at) for at, user in enumerate("aabb" * 8)], size=8
        )
        read = states_read(learner)
        learner.learn([click(user, 3, 500 + at) for at, user in enumerate(users)])
        found.append(read[0][0][0].detach().numpy())
    assert found[0].any()
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_shuffling_the_future_changes_no_score_of_the_past(small):
    clicks = ring(600)
    future = [clicks[at] for at in np.random.default_rng(1).permutation(np.arange(320, 600))]
    scores = []
    for stream in (clicks, clicks[:320] + future):
        learner = Learner(small())
        learn(learner, stream[:320])
        before = learner.scores.to_state()
        learn(learner, stream[320:])
        scores.append((before, learner.scores.total()))
    assert scores[0][0] == scores[1][0]
    assert scores[0][1]["served"]["hit@10"] > scores[1][1]["served"]["hit@10"]  # there was something to learn


def test_a_second_click_in_a_micro_batch_is_scored_with_the_list_after_the_first(learner):
    learn(learner, ring(1_000))
    given = scored_lists(learner)
    popular = [learner.vocabulary.row_of(item) for item in learner.popular().items[:SERVED]]
    learner.learn([click("x", 20, 2_000), click("y", 5, 2_001), click("x", 21, 2_002), click("x", 30, 2_003)])
    lists, targets = given[0]
    assert len(popular) == SERVED
    assert lists["served"][0].tolist() == popular  # x is not known yet
    assert lists["served"][1].tolist() == popular
    assert lists["served"][2][0] == targets[2] == learner.vocabulary.row_of("i21")
    assert lists["served"][3][0] == learner.vocabulary.row_of("i22")  # not what came: i30
    assert learner.rank(["x"])[0].items[0] == "i31"


def test_what_is_scored_is_what_was_served_last(learner):
    learn(learner, ring(800))
    rankings = {}
    for one in ring(80, seed=5):
        given = scored_lists(learner)
        if one.user_id in rankings:
            served = [learner.vocabulary.row_of(item) for item in rankings[one.user_id][:SERVED]]
        else:
            (slot,) = learner.histories.find([one.user_id])
            served = learner.histories.served[slot].tolist()
        rankings |= {user: ranking.items for user, ranking in learner.learn([one]).rankings.items()}
        assert given[0][0]["served"][0].tolist() == served


def test_a_list_is_ranked_for_the_moment_at_which_it_is_likely_to_be_looked_at(small):
    learner = Learner(small(refresh_ages_s=(600.0,)))
    learn(learner, [click(user, at % 7, 1e9 + 40.0 * at) for at, user in enumerate([0, 1] * 100)])  # back after 80 s
    asked = queries_of_lists(learner)
    (clicked_at,) = learner.histories.newest_first(learner.histories.find(["0"]), 1).timestamps[0].tolist()
    learner.rank(["0"])
    learner.rank(["0"], [clicked_at + 300.0])
    assert [queries.now[0] for queries in asked] == pytest.approx([clicked_at + 80.0, clicked_at + 300.0], abs=20.0)
    learner.rank(["0"], [clicked_at + 600.0])
    assert asked[-1].now[0] > clicked_at + 600.0
