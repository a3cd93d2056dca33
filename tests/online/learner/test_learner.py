"""The learner on worlds whose right answers are known: it learns, and it stays within its limits."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from online.learner.facts.tables import copy_of_rows
from online.learner.history import SERVED
from online.learner.learner import Learner
from online.learner.lists import rounded
from online.learner.objectives import ListwiseRanking
from online.learner.state import EVENT_TYPES_MAX
from tests.online.learner.conftest import ITEMS, click, learn, restarted, ring, scored_lists

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
    neighbours = [copy_of_rows(table, slice(None)).others for table in learner.store.tables]
    for rows in (*neighbours, log.items, log.last, log.before):
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
        assert not table.used.any()
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
