"""The ranking model on candidates that a learner has gathered: scores, who teaches, what moves, and it as one thing.

Letters: `N` queries, `C` candidates of all of them (flat), `K` candidates kept of a query, `F` features.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch

from online.learner.facts.feature_groups import group_of
from online.learner.facts.features import OWN_HEADS, WORLD_HEADS, features
from online.learner.facts.gather import QueryArrays
from online.learner.facts.store import no_clicks, no_queries
from online.learner.history import ClicksOldestFirst
from online.learner.learner import Learner
from online.learner.next_item import Negatives
from online.learner.objectives import ListwiseRanking, NextItem, Pruning, TrainingBatch
from online.learner.ranking_model import (
    LEVEL_STEPS_MIN,
    MISS_LOSS,
    GradientMonitor,
    RankingModel,
    build_optimizer,
    choose_device,
)
from online.learner.recall import soft_counts
from online.learner.replay_buffer import Replayed
from online.learner.training import RANKING, training_batch
from stream.events import Click

HEADS = len(OWN_HEADS) + len(WORLD_HEADS)
K = 6


class Asked:
    """Users of a learner that has taken in some clicks, with all that scoring their candidates takes."""

    def __init__(self, learner, users, *, model=None, states=True):
        self.learner, self.users = learner, users
        self.model = learner.weights.copy() if model is None else model
        slots = learner.histories.find(users)
        queries = QueryArrays(
            np.zeros(len(users), np.int64),
            slots,
            learner.store.own_slots(users),
            learner.histories.latest_at(slots) + 300.0,
            learner.histories.active_at[slots] + 300.0,
            np.zeros(len(users), np.bool_),
        )
        _, found = learner.store.advance(
            learner.histories, no_clicks(), no_queries(), queries, flagged=learner.abuse_filter.flagged
        )
        self.gathered = copy.deepcopy(found)  # the store uses the arrays again
        self.lifts, self.memory = learner.lift.of(self.gathered.rows), learner.memory()
        self.states = learner.states.now(users, slots) if states else None

    def score(self, *, kept=K, replayed=None, **changed):
        given = {"gathered": self.gathered, "lifts": self.lifts, "memory": self.memory, "states": self.states} | changed
        return self.model.score(**given, kept=kept, replayed=replayed)

    def rows(self, query):
        """Rows of the query's candidates, those that are kept first."""
        scored = self.score()
        start, stop = self.gathered.starts[query : query + 2]
        kept = [row for row in scored.rows()[query].tolist() if row]
        return kept + [row for row in self.gathered.rows[start:stop].tolist() if row not in kept]

    def batch(self, targets, *, kept=K, replayed=None):
        """What these clicks teach."""
        scored = self.score(kept=kept, replayed=replayed)
        positions = scored.positions(np.array(targets))
        return training_batch(self.model, scored, positions, self.states, replayed)

    def learn(self, targets, **options):
        """One step of what ranks -> the mean loss before it."""
        batch = self.batch(targets, **options)
        loss = ListwiseRanking().loss(self.model, batch)
        self.taken = self.model.train(batch, RANKING)
        return None if loss is None else float(loss.detach())


def learn(learner, clicks):
    for start in range(0, len(clicks), 8):
        learner.learn(clicks[start : start + 8])
    return learner


@pytest.fixture
def learner(small, town_clicks):
    return learn(Learner(small(weight_decay=0.0)), town_clicks[:240])


@pytest.fixture
def asked(learner):
    """Four users; a state is no silent part of recall."""
    found = Asked(learner, learner.histories.users()[-4:])
    with torch.no_grad():
        for heads in (found.model.own, found.model.world):
            heads.gains[:, -1] += 1.0
    return found


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.tensors().items()}


def moved(before, model):
    return {name for name, tensor in model.tensors().items() if not torch.equal(tensor, before[name])}


def history(rows):
    length = len(rows)
    return ClicksOldestFirst(
        np.array([rows]), np.zeros((1, length), np.int64), np.arange(length, dtype=np.float64)[None], np.array([length])
    )


def guess(model, random):
    """One step towards item 9 after 3, 5 and 7 -> the loss before it."""
    states = model.states(history([3, 5, 7]))[:, -1]
    negatives = Negatives(np.ones(20), 20).draw(8, random)
    batch = TrainingBatch(states=states, targets=torch.tensor([9]), negatives=negatives)
    loss = NextItem().loss(model, batch)
    model.train(batch, [NextItem()])
    return float(loss.detach())


class Everything:
    """A made-up objective that moves all that ranks, and rows 3 and 9 of the vectors."""

    def __init__(self, seed=0):
        self.seed = seed

    def loss(self, model, batch):
        random = torch.Generator().manual_seed(self.seed)
        inputs = torch.rand(4, 6, len(model.ranker.linear), generator=random)
        scores = model.ranker.each(inputs)
        present, first = torch.ones(4, 6, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
        batch = TrainingBatch(
            scores=scores, present=present, places=first, forced=inputs, forced_present=present, forced_places=first
        )
        recalled = [
            heads(torch.zeros(3, 6), torch.ones(3), torch.arange(3), 6)[:, 0].sum()
            for heads in (model.own, model.world)
        ]
        found = [loss for objective in RANKING if (loss := objective.loss(model, batch)) is not None]
        assert len(found) == 2  # the third is of what clicks are worth, which is not set
        return sum(found) + sum(recalled) + model.vectors(torch.tensor([9, 3]))[:, 0].sum()


def rank(model, seed=0):
    """One step of the ranker, the first score, recall's heads and the vectors."""
    model.train(TrainingBatch(), [Everything(seed)])


def equal(one, other):
    mine, its = one.to_state(), other.to_state()
    return mine.keys() == its.keys() and all(mine[name].tobytes() == its[name].tobytes() for name in mine)


# --- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_the_rankers_of_the_kept_candidates(asked):
    scored = asked.score()
    expected = asked.model.ranker.each(scored.features).mean(-1)
    torch.testing.assert_close(scored.scores[scored.present], expected[scored.present])
    assert (scored.scores[~scored.present] == -math.inf).all()
    assert scored.features.shape == (4, K, len(asked.model.ranker.linear))
    assert not scored.features[~scored.present].any()
    assert scored.present.numpy().tolist() == (scored.kept >= 0).tolist()


def test_features_are_what_facts_lift_and_recall_say_of_them(asked):
    scored, model, G = asked.score(), asked.model, asked.gathered.features.shape[1]
    at, there = scored.kept[scored.kept >= 0], scored.present
    found = scored.features.detach()[there].numpy()
    np.testing.assert_array_equal(found[:, :G], asked.gathered.features[at])
    np.testing.assert_array_equal(found[:, G], asked.lifts[at])
    for heads, hits, columns in (
        (model.own, asked.gathered.own, slice(G + 1, G + 1 + len(OWN_HEADS))),
        (model.world, asked.gathered.world, slice(G + 1 + len(OWN_HEADS), G + 1 + HEADS)),
    ):
        keys, (log, log_states) = asked.gathered.keys, asked.memory
        counts = soft_counts(
            heads, model.vectors.vectors, keys, asked.states, log, log_states, hits, len(asked.gathered.rows)
        )
        assert counts.any()
        np.testing.assert_array_equal(found[:, columns], counts[at])


def test_the_first_score_is_linear_in_all_but_the_networks_logit(asked):
    whole = asked.score(kept=len(asked.gathered.rows))  # all candidates are kept
    expected = whole.features.detach()[..., :-1] @ asked.model.first.detach()
    for q, (start, stop) in enumerate(zip(asked.gathered.starts, asked.gathered.starts[1:], strict=False)):
        order = whole.kept[q][whole.kept[q] >= 0]
        assert sorted(order.tolist()) == list(range(start, stop))
        np.testing.assert_allclose(whole.first[order], expected[q, : len(order)], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(asked.score().kept, whole.kept[:, :K])  # fewer are the best of these


def test_the_networks_feature_is_its_logit_and_teaches_the_network_nothing(asked):
    asked.states.requires_grad_()
    scored = asked.score()
    rows = torch.from_numpy(scored.rows())
    expected = asked.model.network.scores(asked.states[:, None].expand(-1, K, -1), rows[..., None])[..., 0]
    logits = scored.features[..., -1]
    torch.testing.assert_close(logits[scored.present], expected.detach()[scored.present])
    assert not scored.features.requires_grad
    scored.each.sum().backward()
    assert asked.states.grad is not None  # recall's
    assert all(parameter.grad is None for parameter in asked.model.network.parameters())


def test_candidates_and_scores_of_a_query_do_not_depend_on_who_else_is_asked(learner):
    users = learner.histories.users()[-4:]
    together = Asked(learner, users)
    scored = together.score()
    for at, user in enumerate(users):
        alone = Asked(learner, [user])
        start, stop = together.gathered.starts[at : at + 2]
        np.testing.assert_array_equal(alone.gathered.rows, together.gathered.rows[start:stop])
        np.testing.assert_array_equal(alone.gathered.features, together.gathered.features[start:stop])
        torch.testing.assert_close(alone.score().scores[0], scored.scores[at])
        np.testing.assert_array_equal(alone.score().rows()[0], scored.rows()[at])


def test_replayed_clicks_are_scored_along_and_change_no_other_score(asked):
    alone = asked.score()
    inputs = torch.rand(5, 3, len(asked.model.ranker.linear), generator=torch.Generator().manual_seed(0))
    scored = asked.score(replayed=Replayed(inputs, torch.ones(5, 3, dtype=torch.bool)))
    torch.testing.assert_close(scored.scores, alone.scores)
    torch.testing.assert_close(scored.replayed, asked.model.ranker.each(inputs))


def test_before_anything_was_clicked_there_are_no_candidates_and_no_loss(small):
    learner = Learner(small())
    before = tensors(learner.weights)
    learned = learner.learn([Click(user_id=user, item_id=user, timestamp=1e9) for user in "ab"])
    assert learned.losses == [MISS_LOSS] * 2
    assert learned.candidates[0] == 0
    assert learned.ranks.tolist() == [math.inf] * 2
    assert not {name for name in moved(before, learner.weights) if not name.startswith("network.")}
    assert learner.weights.skipped == 0

    empty = Asked(Learner(small()), [])
    assert empty.score().rows().shape == (0, K)


# --- who teaches, and what moves ---------------------------------------------------------------------------------


def test_steps_on_a_click_make_it_likelier(asked):
    targets = [asked.rows(query)[3] for query in range(4)]
    losses = [asked.learn(targets) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    asked.learn(targets)
    shares = asked.score().shares()
    places = asked.score().places(asked.score().positions(np.array(targets)))
    assert (shares[np.arange(4), places] > 1 / K).all()


def test_a_step_moves_all_that_ranks_and_vectors_stay_of_unit_length(asked):
    before = tensors(asked.model)
    asked.states.requires_grad_()
    for _ in range(3):  # the networks' inner layers are let in by the first step
        asked.learn([asked.rows(query)[1] for query in range(4)])
        assert asked.taken
    expected = {"first", "ranker.linear", "ranker.up.weight", "ranker.up.bias", "ranker.mid", "ranker.mid_bias"}
    expected |= {"ranker.out", "own.gains", "own.recency", "world.gains", "world.recency", "vectors.vectors"}
    assert moved(before, asked.model) == expected
    lengths = asked.model.vectors.vectors.norm(dim=-1)
    torch.testing.assert_close(lengths[1:], torch.ones(len(lengths) - 1))
    assert lengths[0] == 0


def test_a_click_whose_item_is_no_candidate_teaches_nothing(asked):
    nowhere = int(asked.gathered.rows.max()) + 1
    before, beside = tensors(asked.model), copy.copy(asked)
    assert asked.learn([nowhere, 0, nowhere, 0]) is None
    assert not asked.taken
    assert not moved(before, asked.model)
    # Beside others too: these learn as if they were alone.
    beside.model = asked.model.copy()
    target = asked.rows(0)[2]
    alone = asked.batch([target, 0, 0, 0])
    loss = ListwiseRanking().loss(asked.model, alone)
    assert float(loss.detach()) == pytest.approx(beside.learn([target, nowhere, nowhere, nowhere]), rel=1e-5)
    asked.model.train(alone, RANKING)
    for name, tensor in asked.model.tensors().items():
        torch.testing.assert_close(tensor, beside.model.tensors()[name], msg=name)


def test_the_first_score_learns_from_a_click_it_had_left_out_and_the_ranker_does_not(asked):
    kept = 2
    scored = asked.score(kept=kept)
    start, stop = asked.gathered.starts[:2]
    worst = start + int(np.argmin(scored.first[start:stop]))
    target = int(asked.gathered.rows[worst])
    assert worst not in scored.kept[0]
    before, behind = tensors(asked.model), scored.first[scored.kept[0, 0]] - scored.first[worst]
    assert asked.learn([target, 0, 0, 0], kept=kept) is None
    assert asked.taken
    assert moved(before, asked.model) == {"first"}
    now = asked.score(kept=kept).first
    assert now[scored.kept[0, 0]] - now[worst] < behind
    for _ in range(400):
        asked.learn([target, 0, 0, 0], kept=kept)
    assert worst in asked.score(kept=kept).kept[0]


def test_what_is_replayed_teaches_too(asked):
    targets = [asked.rows(query)[1] for query in range(4)]
    other = copy.copy(asked)
    other.model = asked.model.copy()
    asked.learn(targets)
    inputs = torch.rand(5, 3, len(asked.model.ranker.linear), generator=torch.Generator().manual_seed(0))
    other.learn(targets, replayed=Replayed(inputs, torch.ones(5, 3, dtype=torch.bool)))
    assert not torch.equal(asked.model.ranker.linear, other.model.ranker.linear)
    assert torch.equal(asked.model.first, other.model.first)  # that learns from what it has gathered alone


def test_ranking_pulls_states_where_recall_compares_them(asked):
    for gain in (0.0, 1.0):
        asked.states = asked.states.detach().requires_grad_()
        with torch.no_grad():
            for heads in (asked.model.own, asked.model.world):
                heads.gains[:, -1] = gain
        asked.model.train(asked.batch([asked.rows(query)[1] for query in range(4)]), [ListwiseRanking(), Pruning()])
        assert bool(asked.states.grad.any()) == bool(gain)


@pytest.mark.parametrize("gain", [0.0, 2.0])
def test_a_ranking_loss_moves_the_network_through_recall(learner, town_clicks, monkeypatch, gain):
    """From end to end. What the network guesses of the next item is left out, and so is what earlier steps still
    move."""
    monkeypatch.setattr(Negatives, "draw", lambda *_: None)
    weights = learner.weights
    weights.optimizer = build_optimizer(weights.network, learner.settings, learner.settings.learning_rate)
    with torch.no_grad():
        for heads in (learner.weights.own, learner.weights.world):
            heads.gains[:, -1] = gain
    before = tensors(learner.weights)
    learner.learn(town_clicks[240:248])
    of_network = {name for name in moved(before, learner.weights) if name.startswith("network.")}
    assert bool(of_network) == bool(gain)
    assert "ranker.linear" in moved(before, learner.weights)


def test_the_network_learns_what_it_guesses(small):
    model, random = RankingModel(small()), np.random.default_rng(0)
    losses = [guess(model, random) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    with torch.no_grad():
        scores = model.network.scores(model.states(history([3, 5, 7]))[0, -1], torch.arange(1, 20))
    assert scores.argmax() + 1 == 9
    assert not model.network.items.vectors[0].any()


def test_without_fine_tuning_there_is_no_dropout(small):
    model = RankingModel(small(dropout=0.9))
    latest = history([3, 5, 7, 2])
    assert torch.equal(model.states(latest), model.states(latest))


# --- gradients and scores that are no good -----------------------------------------------------------------------


class Spoiled:
    """A made-up objective: one number of one weight has a gradient that is not finite."""

    def __init__(self, name, bad):
        self.name, self.bad = name, bad

    def loss(self, model, batch):  # noqa: ARG002
        row = torch.tensor([3])
        found = {
            "network.items": lambda: model.network.items(row),
            "network.norm": lambda: model.network.norm.weight,
            "ranker.linear": lambda: model.ranker.linear,
            "ranker.out": lambda: model.ranker.out,
            "first": lambda: model.first,
            "own.gains": lambda: model.own.gains,
            "world.recency": lambda: model.world.recency,
            "vectors": lambda: model.vectors(row),
        }[self.name]()
        return found.flatten()[0] * self.bad


PARTS = ["network.items", "network.norm", "ranker.linear", "ranker.out", "first", "own.gains", "world.recency"]


@pytest.mark.parametrize("name", [*PARTS, "vectors"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_gradient_that_is_not_finite_moves_nothing(asked, name, bad):
    targets = [asked.rows(query)[1] for query in range(4)]
    asked.learn(targets)
    guess(asked.model, np.random.default_rng(0))
    before, skipped = asked.model.to_state(), asked.model.skipped
    before = {name: array.copy() for name, array in before.items() if name != "levels"}
    batch = asked.batch(targets)
    states = asked.model.states(history([3, 5, 7]))[:, -1]
    negatives = Negatives(np.ones(20), 20).draw(8, np.random.default_rng(0))
    whole = TrainingBatch(**{**vars(batch), "states": states, "targets": torch.tensor([9]), "negatives": negatives})
    assert not asked.model.train(whole, [*RANKING, NextItem(), Spoiled(name, bad)])
    assert asked.model.skipped == skipped + 1
    after = asked.model.to_state()
    assert not [name for name in before if before[name].tobytes() != after[name].tobytes()]
    still = tensors(asked.model)
    asked.learn(targets)  # gradients that were left would be there again
    guess(asked.model, np.random.default_rng(0))
    assert {"ranker.linear", "vectors.vectors", "network.items.vectors"} <= moved(still, asked.model)
    assert asked.model.finite()
    assert asked.model.skipped == skipped + 1


class Scaled:
    """An objective whose loss counts `scale` times."""

    def __init__(self, objective, scale):
        self.objective, self.scale = objective, scale

    def loss(self, model, batch):
        return self.scale * self.objective.loss(model, batch)


def test_a_ranking_step_of_exploding_gradients_is_not_taken_and_is_counted(small):
    model = RankingModel(small(gradient_explosion=20.0))
    assert all(model.train(TrainingBatch(), [Everything()]) for _ in range(LEVEL_STEPS_MIN + 1))
    assert model.skipped == 0
    before = tensors(model)
    assert not model.train(TrainingBatch(), [Scaled(Everything(), 1e6)])
    assert model.skipped == 1
    assert not moved(before, model)
    assert model.train(TrainingBatch(), [Everything()])
    assert "ranker.linear" in moved(before, model)


def test_a_step_of_the_network_s_exploding_gradients_is_not_taken_and_is_counted(small):
    model, random = RankingModel(small(gradient_explosion=20.0)), np.random.default_rng(0)
    for _ in range(LEVEL_STEPS_MIN + 1):
        guess(model, random)
    assert model.skipped == 0
    before = tensors(model)
    states = model.states(history([3, 5, 7]))[:, -1]
    negatives = Negatives(np.ones(20), 20).draw(8, random)
    batch = TrainingBatch(states=states, targets=torch.tensor([9]), negatives=negatives)
    assert not model.train(batch, [Scaled(NextItem(), 1e6), Everything()])
    assert model.skipped == 1
    assert not moved(before, model)  # what ranks has to wait too
    guess(model, random)
    assert model.skipped == 1
    assert moved(before, model)


def test_a_level_that_has_risen_for_good_is_believed_after_some_steps():
    level = GradientMonitor(20.0)
    assert all(level.accepts(norm) for norm in [1.0, 2.0] * LEVEL_STEPS_MIN)
    assert not level.accepts(math.nan)
    assert level.level == pytest.approx(1.5, rel=0.1)
    taken = [level.accepts(1_000.0) for _ in range(30)]
    assert not taken[0]
    assert taken[-1]
    assert taken == sorted(taken)


@pytest.mark.parametrize("where", ["ranker.linear", "ranker.mid", "first", "vectors.vectors", "own.gains"])
def test_scores_that_are_not_finite_leave_no_trace_and_cost_as_much_as_a_miss(learner, town_clicks, where):
    weights = learner.weights
    weights.tensors()[where][...] = math.nan
    assert not weights.finite()
    kept = {"lift": learner.lift.to_state(), "replay": learner.replay.to_state()[0]}
    kept = {part: {name: array.copy() for name, array in arrays.items()} for part, arrays in kept.items()}
    before, skipped = tensors(weights), weights.skipped
    learned = learner.learn(town_clicks[240:248])
    assert not learned.finite()
    assert learned.losses == [MISS_LOSS] * 8
    assert (learned.ranks >= 0).all()
    now = {"lift": learner.lift.to_state(), "replay": learner.replay.to_state()[0]}
    for part, arrays in now.items():
        assert {name for name, array in arrays.items() if array.tobytes() != kept[part][name].tobytes()} == set(), part
    after = weights.tensors()
    assert all(
        torch.equal(before[name].nan_to_num(7), after[name].nan_to_num(7)) for name in before if "network" not in name
    )
    assert weights.skipped > skipped


def test_no_click_costs_more_than_one_that_was_no_candidate(learner, town_clicks):
    with torch.no_grad():
        learner.weights.ranker.linear *= -1_000
    learned = learner.learn(town_clicks[240:256])
    assert learned.finite()
    assert max(learned.losses) == MISS_LOSS
    assert np.isfinite(learned.ranks).any()
    assert min(learned.losses) >= 0


def test_where_no_click_teaches_older_ones_are_not_replayed(small, town_clicks):
    learner = learn(Learner(small(replay_held=20)), town_clicks[:240])
    before, random = tensors(learner.weights), learner.replay.random.bit_generator.state
    learner.learn([Click(user_id=f"u{n}", item_id=f"new {n}", timestamp=2e9 + n) for n in range(8)])
    assert not {name for name in moved(before, learner.weights) if not name.startswith("network.")}
    assert learner.replay.random.bit_generator.state == random


@pytest.mark.parametrize("name", ["network.items.vectors", "ranker.linear", "own.gains", "vectors.vectors", "first"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_with_one_weight_that_is_not_finite_is_found_out(small, name, bad):
    model = RankingModel(small())
    assert model.finite()
    model.tensors()[name].flatten()[5] = bad
    assert not model.finite()


# --- switches ----------------------------------------------------------------------------------------------------


def test_without_the_state_recall_goes_on_and_the_network_is_silent(small, town_clicks):
    learner = Learner(small(deep_state=False))
    start = tensors(learner.weights)
    learn(learner, town_clicks[:240])
    scored = Asked(learner, learner.histories.users()[-4:], states=False).score()
    assert not scored.features[..., -1].any()
    assert scored.features[..., -1 - HEADS : -1][scored.present].any(0).any()
    changed = moved(start, learner.weights)
    assert {"own.gains", "world.gains", "vectors.vectors", "ranker.linear"} <= changed
    assert not {name for name in changed if name.startswith("network.")}
    for name in ("own.gains", "world.gains"):
        assert torch.equal(learner.weights.tensors()[name][:, -1], start[name][:, -1])
        assert not torch.equal(learner.weights.tensors()[name][:, 0], start[name][:, 0])


def test_without_the_reformer_there_is_neither_recall_nor_state(small, town_clicks):
    learner = Learner(small(reformer=False))
    start = tensors(learner.weights)
    learn(learner, town_clicks[:240])
    scored = Asked(learner, learner.histories.users()[-4:], states=False).score()
    assert scored.present.any()
    assert not scored.features[..., -1 - HEADS :].any()
    assert len(scored.gathered.own.moments) == len(scored.gathered.world.moments) == 0
    assert {name.partition(".")[0] for name in moved(start, learner.weights)} == {"ranker", "first"}


# --- as one thing ------------------------------------------------------------------------------------------------


def test_a_reset_row_is_as_at_the_start_and_others_stay(small):
    model, fresh, random = RankingModel(small()), RankingModel(small()), np.random.default_rng(0)
    for _ in range(5):
        guess(model, random)
        rank(model)
    learned = {name: model.tensors()[name].clone() for name in ("network.items.vectors", "vectors.vectors")}
    model.reset_rows(torch.tensor([9, 3]))
    for name, before in learned.items():
        now = model.tensors()[name]
        assert torch.equal(now[[9, 3]], fresh.tensors()[name][[9, 3]])
        assert not torch.equal(before[[9, 3]], now[[9, 3]])
        assert torch.equal(now[[5, 7]], before[[5, 7]])
    sums = [*model.optimizer.rows.sums.values(), *model.adagrad.sums.values()]
    assert not any(part[[9, 3]].any() for part in sums)


def test_moved_rows_take_their_optimizer_state_along_and_others_start_anew(small):
    model, fresh, random = RankingModel(small()), RankingModel(small()), np.random.default_rng(0)
    for _ in range(5):
        guess(model, random)
        rank(model)
    tables = ("network.items.vectors", "network.items.biases", "vectors.vectors", "vectors.biases")
    learned = tensors(model)
    sums = [(part.sums, name) for part in (model.optimizer.rows, model.adagrad) for name in part.sums]
    were = [held[name].clone() for held, name in sums]
    model.move_rows(torch.tensor([9, 3, 5]), torch.tensor([3, 2_000, 9]), 2_500)  # 9 and 3 overlap
    fresh.grow(2_500)
    assert len(model.vectors) >= 2_500
    others = [row for row in range(len(model.vectors)) if row not in {3, 9, 2_000}]
    for name in tables:
        now = model.tensors()[name]
        assert torch.equal(now[[3, 2_000, 9]], learned[name][[9, 3, 5]])
        assert torch.equal(now[others], fresh.tensors()[name][others])
    for (held, name), was in zip(sums, were, strict=True):
        assert torch.equal(held[name][[3, 2_000, 9]], was[[9, 3, 5]])
        assert not held[name][others].any()
    assert {name for name in moved(learned, model) if name not in tables} == set()


def test_a_copy_is_equal_and_goes_its_own_way(small):
    model, random = RankingModel(small()), np.random.default_rng(0)
    model.grow(3_000)
    for _ in range(3):
        guess(model, random)
        rank(model)
    other = model.copy()
    assert equal(model, other)
    assert other.settings is model.settings
    before = {name: array.copy() for name, array in model.to_state().items()}
    guess(other, np.random.default_rng(1))
    rank(other)
    assert all(before[name].tobytes() == array.tobytes() for name, array in model.to_state().items())
    guess(model, np.random.default_rng(1))
    rank(model)
    assert equal(model, other)  # its optimizers went with it


def test_state_restored_goes_on_bit_for_bit(small):
    whole, restored = RankingModel(small()), RankingModel(small())
    random = np.random.default_rng(0)
    whole.grow(3_000)
    restored.grow(3_000)
    for _ in range(3):
        guess(whole, random)
        rank(whole)
    restored.load_state({name: array.copy() for name, array in whole.to_state().items()})
    assert equal(whole, restored)
    losses = []
    for model in (whole, restored):
        again = np.random.default_rng(1)
        losses.append([guess(model, again) for _ in range(5)])
        rank(model)
    assert losses[0] == losses[1]
    assert equal(whole, restored)


def test_a_restored_learner_scores_and_learns_the_same(small, town_clicks, same):
    whole, again = learn(Learner(small()), town_clicks[:240]), Learner(small())
    arrays, state = whole.to_state()
    again.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    users = whole.histories.users()[-4:]
    mine, its = (Asked(one, users).score() for one in (whole, again))
    np.testing.assert_array_equal(mine.gathered.rows, its.gathered.rows)
    np.testing.assert_array_equal(mine.first, its.first)
    assert torch.equal(mine.features, its.features)
    assert torch.equal(mine.scores, its.scores)
    for one in (whole, again):
        learn(one, town_clicks[240:320])
    assert same(whole.to_state()[0], again.to_state()[0])
    assert whole.to_state()[1] == again.to_state()[1]


def test_learning_rates_are_scaled_from_those_of_the_settings(small):
    model = RankingModel(small())
    settings = model.settings

    def rates():
        return [*(group["lr"] for group in model.adam.param_groups), model.adagrad.learning_rate, model.optimizer.boost]

    before = rates()
    assert before[:3] == [
        settings.ranker_learning_rate,
        settings.recall_learning_rate,
        settings.recall_vectors_learning_rate,
    ]
    for factor in (3.0, 2.0, 1.0):
        model.scale_learning_rate(factor)
        assert rates() == pytest.approx([factor * rate for rate in before])


@pytest.mark.parametrize(
    ("wanted", "there", "expected"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_auto_takes_the_accelerator_where_there_is_one(monkeypatch, wanted, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(wanted).type == expected


@pytest.mark.parametrize(
    "left_out", [("near",), ("lift", "clicked"), ("own_moments",), ("world_moments",), ("own_moments", "world_moments")]
)
def test_features_that_are_left_out_change_nothing_and_learn_nothing(learner, left_out):
    model = RankingModel(learner.settings.model_copy(update={"features_left_out": left_out}))
    model.load_state(learner.weights.to_state())
    asked = Asked(learner, learner.histories.users()[-4:], model=model)
    declared = features(learner.settings.popularity_half_lives)
    columns = [at for at, feature in enumerate(declared) if group_of(feature.name) in left_out]
    counted = [at for at in columns if at < asked.gathered.features.shape[1]]
    before = asked.score()
    assert not before.features[..., columns].any()
    assert before.features.any()
    asked.gathered.features[:, counted] += 5.0
    if "lift" in left_out:
        asked.lifts = asked.lifts + 5.0
    after = asked.score()
    assert torch.equal(before.scores, after.scores)
    assert np.array_equal(before.first, after.first)
    assert asked.gathered.features[:, counted].all()  # other models score the same candidates

    rows = [asked.rows(query)[0] for query in range(4)]
    loss = ListwiseRanking().loss(model, asked.batch(rows, replayed=learner.replay.sample(4)))
    loss.backward()
    assert not model.ranker.linear.grad[columns].any()
    assert model.ranker.linear.grad.any()
    for heads, name in ((model.own, "own_moments"), (model.world, "world_moments")):
        assert (heads.gains.grad is None) == (name in left_out)


def test_a_learner_goes_on_with_features_left_out_and_with_all_of_them_again(small, town_clicks):
    state = learn(Learner(small()), town_clicks[:160]).to_state()
    for left_out in ("followed,own_moments,world_moments", "none"):
        learner = Learner(small(features_left_out=left_out))
        learner.load_state(*state)
        learn(learner, town_clicks[160:240])
        assert learner.weights.finite()
        state = learner.to_state()
