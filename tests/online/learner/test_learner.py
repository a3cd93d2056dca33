"""The learner on worlds whose right answers are known: it learns, it never peeks, and it stays within its limits."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from online.learner.history import SERVED
from online.learner.learner import Learner
from online.learner.lists import rounded
from online.learner.objectives import ListwiseRanking
from online.learner.state import EVENT_TYPES_MAX
from stream.events import Click

ITEMS = 40


def click(user, item, at, **others):
    return Click(user_id=str(user), item_id=f"i{item}", timestamp=float(at), **others)


def ring(count, seed=0, users=8, items=ITEMS):
    """Item k is always followed by k + 1."""
    random = np.random.default_rng(seed)
    at = random.integers(0, items, users)
    clicks = []
    for number in range(count):
        user = random.integers(users)
        at[user] = (at[user] + 1) % items
        clicks.append(click(user, at[user], number))
    return clicks


def learn(learner, clicks, size=16):
    return [learner.learn(clicks[start : start + size]) for start in range(0, len(clicks), size)]


def scored_lists(learner):
    """What `Scores.add` is given, as it is given it."""
    given = []
    add = learner.scores.add
    learner.scores.add = lambda lists, targets: (given.append((dict(lists), targets.copy())), add(lists, targets))[1]
    return given


def foreseen(learner, clicks):
    """Learns a micro-batch -> of each click its candidates' rows, what was counted of them, their first scores, and the
    scores of those that were kept."""
    found = []
    for step in learner.learn(clicks).steps:
        scored, gathered = step.scored, step.scored.gathered
        for at, (start, stop) in enumerate(pairwise(gathered.starts.tolist())):
            part = slice(start, stop)
            kept = scored.scores[at].numpy().copy()
            found.append((gathered.rows[part].tolist(), gathered.features[part].copy(), scored.first[part], kept))
    return found


def states_read(learner):
    """What `UserStates.read` gives of each micro-batch: states before clicks, user by user."""
    found = []
    read = learner.states.read
    learner.states.read = lambda *given: (found.append(read(*given)), found[-1])[1]
    return found


def queries_of_lists(learner):
    """What facts are asked for lists, each time."""
    asked = []
    ask = learner.store.ask
    learner.store.ask = lambda *given, **others: (asked.append(given[1]), ask(*given, **others))[1]
    return asked


@pytest.fixture
def learner(small):
    return Learner(small())


# --- it learns ---------------------------------------------------------------------------------------------------


def test_what_always_follows_is_served_and_popularity_is_left_behind(small):
    learner = Learner(small(layers=("local", "lsh")))
    learn(learner, ring(1_000))
    recent = learner.scores.recent()
    assert recent["served"]["hit@10"] > 0.9
    assert recent["served"]["ndcg@10"] > 0.8
    assert recent["popular"]["hit@10"] < 0.5
    assert recent["followed"]["hit@10"] > 0.9


def test_an_item_one_user_returns_to_is_served_though_no_other_user_wants_it(learner):
    random = np.random.default_rng(0)
    users = random.integers(0, 30, 900).tolist()  # each clicks an item once in an hour
    clicks = [click(user, 100 * user + random.integers(2), 60 * at) for at, user in enumerate(users)]
    learn(learner, clicks)
    assert learner.scores.recent()["served"]["hit@10"] > 0.9  # but for the first clicks of each
    assert learner.scores.recent()["popular"]["hit@10"] < 0.4


def test_the_loss_of_each_click_comes_back_and_falls(learner):
    losses = [loss for learned in learn(learner, ring(1_200)) for loss in learned.losses]
    assert len(losses) == 1_200
    assert np.mean(losses[-200:]) < 0.5 * np.mean(losses[:200])


def test_fresh_lists_name_what_comes_next_first(learner):
    learn(learner, ring(1_000))
    (ranking,) = learner.learn([click("a new user", 7, 2_000)]).rankings.values()
    assert ranking.items[0] == "i8"
    assert ranking.scores == sorted(ranking.scores, reverse=True)
    assert 0.9 < sum(ranking.scores) < 1 + 1e-5  # shares of a softmax over all candidates
    assert ranking.scores[-1] != round(ranking.scores[-1], 4)  # small ones keep their digits
    assert len(set(ranking.scores)) == len(ranking.scores)
    assert len(ranking.items) == len(set(ranking.items)) == learner.settings.list_size


def test_each_user_of_a_batch_gets_one_list_in_the_order_of_their_last_clicks(learner):
    learn(learner, ring(200))
    learned = learner.learn([click(user, user, 300 + at) for at, user in enumerate([3, 1, 3, 2, 1])])
    assert list(learned.rankings) == ["3", "2", "1"]


# --- it never peeks ----------------------------------------------------------------------------------------------


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


# --- strangers and newcomers -------------------------------------------------------------------------------------


def test_before_the_first_click_there_is_nothing_to_say(learner):
    assert learner.popular().items == []
    assert learner.rank([]) == []


def test_the_popular_list_is_by_recent_clicks(learner):
    for item, times in ((1, 5), (2, 9), (3, 1)):
        learn(learner, [click(number, item, 0) for number in range(times)])
    assert learner.popular().items == ["i2", "i1", "i3"]
    assert learner.popular().scores == sorted(learner.popular().scores, reverse=True)


def test_new_users_are_scored_with_the_popular_list_that_stood(learner):
    for at in range(20):
        clicks = [click(100 + number, number * at % 9, 10 * at + number) for number in range(4)]
        popular = [learner.vocabulary.row_of(item) for item in learner.popular().items]
        given = scored_lists(learner)
        learner.learn([click(f"new {at}", 3, 10 * at), *clicks])
        served = given[0][0]["served"][0].tolist()
        assert served == (popular + [0] * SERVED)[:SERVED]


def test_a_new_item_can_be_recommended_after_one_click(learner):
    learn(learner, ring(200))
    learner.learn([click("a", "new", 300)])
    assert "inew" in learner.popular().items or "inew" in learner.rank(["a"])[0].items


def test_items_wait_for_their_row_until_they_were_clicked_often_enough(small):
    learner = Learner(small(item_min_count=3))
    for _ in range(2):
        learned = learner.learn([click("a", 1, 0), click("b", 2, 0)])
        assert [ranking.items for ranking in learned.rankings.values()] == [[], []]
    assert learner.learn([click("a", 1, 0)]).rankings["a"].items == ["i1"]
    assert len(learner.vocabulary) == 1


def test_more_event_types_than_fit_share_one(learner):
    for number in range(2 * EVENT_TYPES_MAX):
        learner.learn([click("a", 1, number, event_type=f"type {number}")])
    assert len(learner.event_types) == EVENT_TYPES_MAX
    latest = learner.histories.oldest_first(learner.histories.find(["a"]), 12)
    assert set(latest.event_types[0].tolist()) == {EVENT_TYPES_MAX}


def test_clicks_that_come_late_or_at_the_same_time_are_learned_too(learner):
    learned = learn(learner, [click(at % 11, at % 5, 1e9 - 1e6 * (at % 7)) for at in range(64)])
    assert all(np.isfinite(batch.losses).all() for batch in learned)
    assert learner.scores.scored == 64


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_flood_of_users_and_items_stays_in_limits_and_lists_no_evicted_item(small):
    learner = Learner(small(users_held=16, items_held=30))
    for start in range(0, 1_600, 16):
        clicks = [click(at % 200, at if at % 2 else at % 10, at) for at in range(start, start + 16)]
        for ranking in learner.learn(clicks).rankings.values():
            assert all(item in learner.vocabulary for item in ranking.items)
        for item in learner.popular().items:
            assert item in learner.vocabulary
    assert len(learner.vocabulary) <= 30
    assert learner.vocabulary.rows == 31
    assert len(learner.histories) == 16
    assert {f"i{at % 10}" for at in range(0, 1_600, 2)} <= set(learner.popular().items)
    owned = {learner.vocabulary.row_of(f"i{at}") for at in range(1_600)}
    log = learner.store.log
    for rows in (*(table.others for table in learner.store.tables), log.items, log.last, log.before):
        assert set(rows.ravel().tolist()) <= owned
    assert set(np.flatnonzero(learner.popularity()).tolist()) <= owned


def test_a_row_that_changes_hands_in_a_micro_batch_teaches_no_wrong_item(small):
    learner = Learner(small(items_held=3))
    learner.learn([click("a", 1, 0), click("a", 2, 1), click("a", 3, 2)])
    rankings = learner.learn([click("a", 1, 3), click("b", 4, 4), click("c", 5, 5), click("d", 6, 6)]).rankings
    assert all(item in learner.vocabulary for ranking in rankings.values() for item in ranking.items)
    assert [learner.vocabulary.row_of(f"i{item}") == 0 for item in (1, 2, 3)] == [True] * 3
    (slot,) = learner.histories.find(["a"])
    latest = learner.histories.oldest_first(np.array([slot]), 12)
    assert latest.rows[0, :4].tolist() == [0, 0, 0, 0]


def test_a_new_owner_of_a_row_inherits_nothing(small):
    fresh, learner = (Learner(small(items_held=30)) for _ in range(2))
    learn(learner, ring(400, items=30))

    def tables(of):
        return {
            "network": of.weights.network.items.vectors[:31],
            "recall": of.weights.vectors.vectors[:31],
            "network's Adagrad": of.weights.optimizer.rows.sums["items.vectors"][:31],
            "recall's Adagrad": of.weights.adagrad.sums["vectors"][:31],
        }

    row = learner.vocabulary.row_of("i4")
    for name, table in tables(learner).items():
        assert not torch.allclose(table[row], tables(fresh)[name][row]), name  # it has learned
    learner.set_available("i4", False)
    assert learner.popular().items
    learner.vocabulary.expire(float("inf"))
    given = scored_lists(learner)
    learner.learn([click("new", "new", 1_000), click("other", "new", 1_001)])
    assert not given[0][0]["served"].any()  # to either of them nothing could be shown
    user_hash = learner.vocabulary.row_of("inew")
    assert np.flatnonzero(learner.popularity()).tolist() == [user_hash]
    for table in learner.store.tables:
        assert not table.counts.any()
        assert not table.totals.any()
    assert set(learner.store.log.items.tolist()) == {0, user_hash}
    assert not learner.store.log.last.any()
    assert not learner.lift.of(np.arange(31)).any()
    others = [each for each in range(1, 31) if each != user_hash]
    for name, table in tables(learner).items():
        assert torch.equal(table[others], tables(fresh)[name][others]), name
    assert not learner.histories.served[learner.histories.find(["0"])].any()
    assert not learner.store.items.blocked.any()
    assert learner.rank(["other"])[0].items == ["inew"]


def test_items_without_clicks_for_long_are_gone_from_all_lists(small):
    learner = Learner(small(item_idle_s_max=100.0))
    learner.learn([click("a", 1, 0), click("a", 2, 0)])
    learner.learn([click("b", 3, 90)])
    assert set(learner.rank(["a"])[0].items) == {"i1", "i2", "i3"}
    learner.learn([click("c", 4, 150)])
    assert set(learner.rank(["a"])[0].items) == {"i3", "i4"}
    assert set(learner.popular().items) == {"i3", "i4"}


def test_nothing_seen_is_listed_where_that_is_asked(small):
    learner = Learner(small(exclude_seen=True))
    for one in ring(120):
        (ranking,) = learner.learn([one]).rankings.values()
        latest = learner.histories.oldest_first(learner.histories.find([one.user_id]), 12).rows[0].tolist()
        assert not {learner.vocabulary.row_of(item) for item in ranking.items} & set(latest)


def test_one_user_with_more_clicks_than_a_history_holds(small):
    learner = Learner(small(history_max=6, online_history=6))
    clicks = [click("a", at % 20, at) for at in range(200)]
    learn(learner, clicks, size=3)  # half a history, as micro-batches are cut
    assert learner.rank(["a"])[0].items[0] == "i0"


# --- availability ------------------------------------------------------------------------------------------------


def listed(learner, users=("0", "1", "2")):
    """Every item that any user is shown."""
    rankings = [*learner.rank(users), learner.popular()]
    return {item for ranking in rankings for item in ranking.items}


def restarted(learner, settings):
    arrays, state = learner.to_state()
    again = Learner(settings)
    again.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    return again


def test_what_is_not_available_is_in_no_list_until_it_is_again_also_after_a_restart(small):
    settings = small(list_size=20)
    learner = Learner(settings)
    learn(learner, ring(400, items=12))
    assert {"i3", "i4"} <= listed(learner)
    for item in ("i3", "i4"):
        learner.set_available(item, False)
        assert item not in learner.popular().items
    for one in (learner, restarted(learner, settings), restarted(restarted(learner, settings), settings)):
        assert {"i2", "i5"} <= listed(one)
        assert not {"i3", "i4"} & listed(one)
        rankings = one.learn([click(0, 2, 1_000), click(1, 3, 1_001), click(0, 3, 1_002)]).rankings
        assert all(not {"i3", "i4"} & set(ranking.items) for ranking in rankings.values())
        one.set_available("i3", True)
        assert "i3" in one.popular().items
        assert "i3" in listed(one)
        assert "i4" not in listed(one)


def test_an_item_withdrawn_before_its_first_click_is_not_listed_afterwards(small):
    learner = Learner(small(item_min_count=2))
    learner.set_available("i7", False)
    learn(learner, [click(user, item, at) for at, (user, item) in enumerate([(0, 7), (1, 8), (0, 7), (1, 8), (2, 9)])])
    assert learner.vocabulary.row_of("i7")
    assert listed(learner) == {"i8"}
    learner.set_available("i7", True)
    assert listed(learner) == {"i7", "i8"}


def test_an_item_that_lost_its_row_and_comes_back_is_as_unavailable_as_before(small):
    """Into its own row again, or into another."""
    learner = Learner(small(items_held=6))
    learn(learner, [click(0, item, item) for item in range(1, 7)])
    learner.set_available("i1", False)
    row = learner.vocabulary.row_of("i1")
    learner.learn([click(1, "new", 10), click(1, 1, 11)])  # one row is freed, that of i1; then it needs one itself
    assert learner.vocabulary.row_of("i1")
    assert not {"i1"} & listed(learner, ("0", "1"))
    assert learner.vocabulary.row_of("inew") == row
    assert "inew" in listed(learner, ("0", "1"))
    learner.vocabulary.expire(float("inf"))
    learner.learn([click(1, 1, 12)])
    assert learner.vocabulary.row_of("i1")
    assert not listed(learner, ("0", "1"))


def test_an_item_that_gets_its_own_row_back_within_a_micro_batch_stays_unavailable(small):
    learner = Learner(small(items_held=6))
    learn(learner, [click(0, item, item) for item in range(1, 7)])
    learner.set_available("i1", False)
    row = learner.vocabulary.row_of("i1")
    learner.learn([click(1, 1, 10), click(1, "new", 11)])
    assert learner.vocabulary.row_of("i1") == row
    assert "i1" not in listed(learner, ("0", "1"))


def test_there_is_room_for_as_many_unavailable_items_as_there_are_rows(small):
    settings = small(items_held=4)
    learner = Learner(settings)
    learn(learner, [click(0, item, item) for item in range(1, 4)])
    for item in ("x", "y", "z", "i1", "i2"):
        learner.set_available(item, False)
    assert learner.unavailable == {"x", "y", "z", "i1"}
    for one in (learner, restarted(learner, settings)):
        assert listed(one, ("0",)) == {"i2", "i3"}
    learner.set_available("x", True)
    learner.set_available("i2", False)
    assert listed(learner, ("0",)) == {"i3"}


# --- switches and gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("switched_off", [{"reformer": False}, {"deep_state": False}])
def test_what_is_switched_off_has_no_say(small, switched_off):
    """Whatever the network's weights are, and without `reformer` recall's too, the ranks are the same."""
    found = []
    for scrambled in (False, True):
        learner = Learner(small(**switched_off))
        if scrambled:
            modules = [learner.weights.network]
            if "reformer" in switched_off:
                modules += [learner.weights.own, learner.weights.world, learner.weights.vectors]
            with torch.no_grad():
                for module in modules:
                    for parameter in module.parameters():
                        parameter.normal_()
        given = learn(learner, ring(200))
        found.append([(learned.rankings, learned.losses, learned.ranks.tolist()) for learned in given])
    assert found[0] == found[1]


def test_the_network_has_a_say_where_it_is_not_switched_off(small):
    found = []
    for scrambled in (False, True):
        learner = Learner(small())
        if scrambled:
            with torch.no_grad():
                for parameter in learner.weights.network.parameters():
                    parameter.normal_()
        found.append([learned.losses for learned in learn(learner, ring(200))])
    assert found[0] != found[1]


@pytest.mark.parametrize("switched_off", [{"reformer": False}, {"deep_state": False}])
def test_what_is_switched_off_does_not_learn(small, switched_off):
    learner, fresh = (Learner(small(**switched_off)) for _ in range(2))
    learn(learner, ring(200))
    for mine, its in zip(learner.weights.network.parameters(), fresh.weights.network.parameters(), strict=True):
        assert torch.equal(mine[: len(its)], its)
    moved = not torch.equal(learner.weights.world.gains, fresh.weights.world.gains)
    assert moved == ("reformer" not in switched_off)


def test_a_loss_that_is_not_finite_moves_nothing_and_learning_goes_on(learner, monkeypatch):
    clicks = ring(400)
    learn(learner, clicks[:320])

    def weights():
        return {name: tensor.clone() for name, tensor in learner.weights.tensors().items()}

    before = weights()
    loss = ListwiseRanking.loss
    with monkeypatch.context() as patched:
        patched.setattr(ListwiseRanking, "loss", lambda *given: loss(*given) * float("nan"))
        learner.learn(clicks[320:336])
    assert learner.weights.skipped
    assert all(torch.equal(before[name], tensor) for name, tensor in weights().items())
    learned = learn(learner, clicks[336:])
    assert all(np.isfinite(batch.losses).all() for batch in learned)
    assert all(tensor.isfinite().all() for tensor in weights().values())
    assert not all(torch.equal(before[name], tensor) for name, tensor in weights().items())


# --- state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [("local",), ("lsh",), ("local", "lsh")])
def test_restored_it_goes_on_as_if_nothing_had_happened_bit_for_bit(small, same, layers):
    clicks = ring(520)
    settings = small(layers=layers, items_held=30, users_held=16)
    whole, stopped = (Learner(settings) for _ in range(2))
    for one in (whole, stopped):
        one.set_available("i5", False)
        learn(one, clicks[:400])
    restored = restarted(stopped, settings)
    arrays = stopped.to_state()[0]
    assert arrays["popular.rows"].any()
    assert arrays["returns.gaps"].any()
    for part in (
        "store.log.items",
        "store.index.own",
        "store.index.world",
        "store.near.counts",
        "store.items.popular",
        "store.log_states.states",
        "replay.present",
        "lift.counts",
        "weights.adagrad",
    ):
        assert arrays[part].any()  # there was something to be restored
    assert any(name.startswith("weights.adam.") for name in arrays)
    assert whole.popular() == restored.popular()
    assert [learned.rankings for learned in learn(whole, clicks[400:])] == [
        learned.rankings for learned in learn(restored, clicks[400:])
    ]
    assert same(whole.to_state()[0], restored.to_state()[0])
    assert whole.to_state()[1] == restored.to_state()[1]


def test_the_same_seed_learns_the_same_and_another_one_does_not(small, same):
    states = []
    for seed in (1, 1, 2):
        learner = Learner(small(seed=seed))
        learn(learner, ring(160))
        states.append({name: array.copy() for name, array in learner.to_state()[0].items()})
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_ranking_anew_learns_nothing(learner, same):
    learn(learner, ring(160))
    before = {name: array.copy() for name, array in learner.to_state()[0].items() if name != "history.served"}
    learner.rank(["0", "1", "2"])
    assert same(before, {name: array for name, array in learner.to_state()[0].items() if name != "history.served"})


def test_a_user_without_history_is_not_ranked(learner):
    with pytest.raises(KeyError):
        learner.rank(["stranger"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device: nothing to compare with the CPU")
def test_a_gpu_finds_the_candidates_of_the_cpu_and_scores_them_nearly_the_same(small):
    limits = {"precision": "float32", "successors_held": 64, "list_size": ITEMS}  # nothing is left out among equals
    on_cpu, on_gpu = (Learner(small(device=device, **limits)) for device in ("cpu", "cuda"))
    for mine, its in zip(learn(on_cpu, ring(160)), learn(on_gpu, ring(160)), strict=True):
        assert mine.candidates.tolist() == its.candidates.tolist()
        np.testing.assert_allclose(mine.losses, its.losses, atol=0.1)
    for mine, its in zip(on_cpu.rank(["0", "1"]), on_gpu.rank(["0", "1"]), strict=True):
        assert set(mine.items) == set(its.items)
        np.testing.assert_allclose(mine.scores, its.scores, atol=0.1)


@given(
    st.lists(st.floats(2**-40, 2**30, width=32) | st.floats(-(2**30), -(2**-40), width=32) | st.just(0.0), max_size=20)
)
@example([1e-30])
def test_scores_in_lists_have_six_digits(scores):
    for score, shown in zip(scores, rounded(np.array(scores, np.float32)), strict=True):
        assert shown == pytest.approx(score, rel=5.1e-6, abs=1e-22)
        assert shown == float(f"{shown:.6g}")
