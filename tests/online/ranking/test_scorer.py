"""Scores against plain loops; who teaches, what moves, and what is silent when it is switched off."""

import math
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.counts import NEAR
from online.ranking.candidates import Asked, Candidates
from online.ranking.features import OWN_HEADS, WORLD_HEADS
from online.ranking.moments import Moments
from online.ranking.scored import Gathered, Query, Scored
from online.ranking.scorer import Scorer
from online.ranking.weights import MISS_LOSS, Weights
from online.settings import Settings

ROWS, LENGTH, WIDTH = 12, 12, 8
START = 1_730_600_000.0
HEADS = len(OWN_HEADS) + len(WORLD_HEADS)


class Town:
    """A scorer, everybody's clicks as plain lists, and what the learner would ask."""

    def __init__(self, **changed):
        limits = {"recall_users_held": 8, "recall_buckets": 4, "recall_ring": 4, "world_buckets": 16, "world_ring": 8}
        held = {"successors_held": 8, "popularity_half_lives": (10, 100), "moments_held": 100, "replay_held": 300}
        others = {"device": "cpu", "width": WIDTH, "heads": 2, "ranker_hidden": 8, "recall_latest": 4}
        self.settings = Settings(
            **{**limits, **held, **others, "micro_batch_max": 4, "replay_candidates": 8, "replay_batch": 8, **changed}
        )
        self.scorer = Scorer(self.settings, Weights(self.settings))
        self.scorer.make_room(ROWS)
        self.clicks = {}  # each person's (number, row, time), oldest first
        self.moments = {}  # by number: (item, last, before, time, gap, state)
        self.random = np.random.default_rng(0)

    def states(self, count):
        return torch.from_numpy(self.random.normal(size=(count, WIDTH)).astype(np.float32))

    def query(self, people, now, *, deep=True):
        rows, times, numbers = np.zeros((len(people), LENGTH), int), np.zeros((len(people), LENGTH)), []
        for at, person in enumerate(people):
            newest = self.clicks.get(person, [])[::-1][:LENGTH]
            rows[at, : len(newest)] = [row for _, row, _ in newest]
            times[at, : len(newest)] = [time for *_, time in newest]
            W = self.settings.recall_latest
            numbers.append([number for number, *_ in newest[:W]] + [0] * (W - len(newest[:W])))
        lengths = [min(LENGTH, len(self.clicks.get(person, []))) for person in people]
        asked = Asked(*(torch.from_numpy(np.array(part)) for part in (rows, times, lengths, now, now)))
        slots = torch.from_numpy(self.scorer.own_memory.slots(people))
        return Query(asked, torch.tensor(numbers), slots, self.states(len(people)) if deep else None)

    def click(self, person, row, time, *, deep=True):
        """One click, taken in without learning from it; nothing goes to the memory of older moments."""
        query = self.query([person], [time], deep=deep)
        number = int(self.scorer.log.next_numbers(1)[0])
        stood = query.asked.moment()
        self.scorer.log.append(torch.tensor([row]), stood, query.states)
        earlier = torch.nn.functional.pad(query.asked.rows, (0, NEAR - LENGTH))
        nothing = torch.zeros(0, dtype=torch.int64)
        self.scorer.observe(torch.tensor([row]), earlier, torch.tensor([number]), nothing, nothing, times=stood.times)
        state = self.scorer.log.states[number % self.settings.moments_held]
        self.moments[number] = (row, *(part[0].item() for part in stood), state)
        self.clicks.setdefault(person, []).append((number, row, time))

    def stroll(self, count, *, people="abc", deep=True):
        for at in range(count):
            self.click(
                people[self.random.integers(len(people))],
                int(self.random.integers(1, ROWS)),
                START + 1_000.0 * at,
                deep=deep,
            )
        return self

    def learn(self, people, targets, now=START + 1e6, **others):
        """One step -> the mean loss and each click's, and the scores before it."""
        scored = self.scorer.score(self.query(people, [now] * len(people), **others))
        places = self.scorer.places_of(scored, torch.tensor(targets))
        loss, each = self.losses(scored, places)
        self.scorer.weights.learn(loss, None, scored.features)
        return loss, each, scored

    def losses(self, scored, places):
        """As the learner does it: what was learned from is kept for replay."""
        again = self.scorer.replay.sample(self.settings.replay_batch) if (places >= 0).any() else None
        loss, each, kept = self.scorer.weights.losses(scored, places, again)
        if kept is not None:
            self.scorer.replay.add(*kept[:2])
        return loss, each

    def weights(self):
        """Those of what ranks beside the network, which is not taught here."""
        tensors = self.scorer.weights.tensors()
        return {name: tensor.clone() for name, tensor in tensors.items() if not name.startswith("network.")}

    def column(self, scored, name):
        return scored.features[:, [feature.name for feature in self.scorer.inputs].index(name)]


def heads_of(scored):
    """The columns of recall, (C, heads)."""
    return scored.features[:, -1 - HEADS : -1]


# --- scores ------------------------------------------------------------------------------------------------------


def slow_counts(town, heads, numbers, query, at):
    """Soft counts by item for query `at`, a list of one number per head for each."""
    last, before = [int(row) for row in query.asked.rows[at, :2]]
    now, gap = float(query.asked.now[at]), float(query.asked.gaps()[at])
    vectors = town.scorer.weights.vectors.vectors.detach()
    found = {}
    for number in numbers:
        item, its_last, its_before, time, its_gap, state = town.moments[number]
        alike = [
            float(vectors[last] @ vectors[its_last]),
            float(vectors[before] @ vectors[its_before]),
            math.cos((now - time) / 86_400 * 2 * math.pi),
            math.cos((now - time) / 604_800 * 2 * math.pi),
            max(-1.0, 1 - abs(gap - its_gap) / 4),
            float(query.states[at] @ state.float() / query.states[at].norm()),
        ]
        age = int(math.log2(1 + now - time))
        sums = found.setdefault(item, [0.0] * len(heads.gains))
        for h, gains in enumerate(heads.gains.tolist()):
            likeness = sum(gain * (cosine - 1) for gain, cosine in zip(gains, alike, strict=True))
            sums[h] += math.exp(likeness + float(heads.recency.detach()[h, age]))
    return found


def test_recalls_features_are_those_of_plain_loops_over_moments():
    town = Town().stroll(60)
    with torch.no_grad():
        for heads in (town.scorer.weights.own, town.scorer.weights.world):
            heads.gains += torch.rand(heads.gains.shape)  # no part is silent
    query = town.query("abc", [START + 60_500.0, START + 70_000.0, START + 99_999.0])
    scored = town.scorer.score(query)
    world = town.scorer.world_memory.recall(query.asked.moment())
    assert (world > 0).any(1).all()
    for at, person in enumerate("abc"):
        own = [number for number, *_ in town.clicks[person]][-town.settings.recall_latest :]
        counts = [
            slow_counts(town, heads, numbers, query, at)
            for heads, numbers in (
                (town.scorer.weights.own, own),
                (town.scorer.weights.world, world[at][world[at] > 0].tolist()),
            )
        ]
        mine = scored.candidates.owners == at
        rows = scored.candidates.rows[mine].tolist()
        assert {row for found in counts for row in found} <= set(rows)  # what is recalled is a candidate
        silent = [[0.0] * len(OWN_HEADS), [0.0] * len(WORLD_HEADS)]
        expected = [
            [math.log1p(x) for found, none in zip(counts, silent, strict=True) for x in found.get(row, none)]
            for row in rows
        ]
        np.testing.assert_allclose(heads_of(scored)[mine].detach().numpy(), expected, rtol=2e-3, atol=1e-4)


def test_older_moments_of_a_person_count_once_they_are_in_their_memory():
    town = Town().stroll(30, people="a")
    query = town.query("a", [START + 40_000.0])
    before = heads_of(town.scorer.score(query))[:, : len(OWN_HEADS)].detach()
    slots = torch.from_numpy(town.scorer.own_memory.take(["a"]))
    older = torch.tensor([number for number, *_ in town.clicks["a"]][: -town.settings.recall_latest])
    town.scorer.own_memory.store(slots.expand(len(older)), town.scorer.log.read(older)[1], older)
    after = heads_of(town.scorer.score(query._replace(slots=slots)))[:, : len(OWN_HEADS)].detach()
    assert (after >= before).all()
    assert (after > before).any()


def test_moments_that_the_log_has_lost_are_not_remembered_as_somebodys_older_ones():
    town = Town(moments_held=10).stroll(30, people="a")
    slots = torch.from_numpy(town.scorer.own_memory.take(["a"])).expand(2)
    nothing = torch.zeros(0, dtype=torch.int64)
    leaving = torch.tensor([20, 21])  # of 30, the latest ten are held
    earlier, times = torch.zeros(0, NEAR, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    town.scorer.observe(nothing, earlier, nothing, leaving, slots, times=times)
    assert town.scorer.own_memory.memory.clicks.tolist()[int(slots[0])] == 1
    assert 21 in town.scorer.own_memory.recall(slots[:1], town.scorer.log.read(leaving[1:])[1])


def test_nobody_can_be_asked_beside_people_or_alone():
    town = Town().stroll(40)
    older = torch.tensor([number for number, *_ in town.clicks["a"]][:4])
    slots = torch.from_numpy(town.scorer.own_memory.take(["a"]))
    town.scorer.own_memory.store(slots.expand(4), town.scorer.log.read(older)[1], older)
    query = town.query("ab", [START + 1e5] * 2)
    both = town.scorer.score(query.with_nobody(START + 1e5, START + 1e5))
    stranger = town.query(["stranger"], [START + 1e5])._replace(states=torch.zeros(1, WIDTH))
    expected = town.scorer.score(stranger)
    nobody = both.candidates.owners == 2
    assert both.candidates.rows[nobody].tolist() == expected.candidates.rows.tolist()
    torch.testing.assert_close(both.features[nobody], expected.features)
    torch.testing.assert_close(both.features[~nobody], town.scorer.score(query).features)


def test_the_networks_feature_is_its_logit_and_teaches_the_network_nothing():
    town = Town().stroll(20)
    query = town.query("ab", [START + 1e5] * 2)
    query.states.requires_grad_()
    scored = town.scorer.score(query)
    owners, rows = scored.candidates.owners, scored.candidates.rows
    expected = town.scorer.weights.network.scores(query.states[owners], rows[:, None])[:, 0]
    torch.testing.assert_close(town.column(scored, "network"), expected)
    (gradient,) = torch.autograd.grad(town.column(scored, "network").sum() + 0 * query.states.sum(), query.states)
    assert not gradient.any()


def test_scores_are_the_rankers():
    town = Town().stroll(20)
    scored = town.scorer.score(town.query("ab", [START + 1e5] * 2))
    torch.testing.assert_close(scored.scores, town.scorer.weights.ranker(scored.features))
    assert scored.features.shape == (len(scored.candidates.rows), len(town.scorer.inputs))


def test_places_are_where_the_targets_stand_and_minus_1_where_they_do_not():
    town = Town()
    town.click("a", 3, START)
    town.click("b", 5, START + 1)
    scored = town.scorer.score(town.query("abc", [START + 2] * 3))
    places = town.scorer.places_of(scored, torch.tensor([5, 7, 0]))
    assert scored.candidates.rows[places[0]] == 5
    assert scored.candidates.owners[places[0]] == 0
    assert places[1:].tolist() == [-1, -1]


def test_before_anything_was_clicked_there_are_no_candidates_and_no_loss():
    town = Town()
    loss, each, scored = town.learn("ab", [0, 3])
    assert len(scored.scores) == 0
    assert loss is None
    assert each.tolist() == [MISS_LOSS] * 2
    places, _ = scored.best(3)
    assert places.tolist() == [[0] * 3] * 2  # C: there is none


@given(
    scores=st.lists(st.lists(st.integers(-3, 3), max_size=6), max_size=4),
    count=st.integers(1, 8),
)
def test_the_best_are_those_of_sorted_lists_with_the_smaller_row_first_among_equals(scores, count):
    sizes = torch.tensor([len(mine) for mine in scores], dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    C = int(starts[-1])
    owners = torch.repeat_interleave(torch.arange(len(scores)), sizes)
    rows = torch.cat([torch.arange(1, 1 + len(mine)) for mine in scores] or [torch.zeros(0, dtype=torch.int64)])
    flat = torch.tensor([float(score) for mine in scores for score in mine])
    gathered = Gathered(Candidates(owners, rows, starts, flat[:, None]), None, None, None)
    places, best = Scored(gathered, flat[:, None], flat).best(count)
    assert places.shape == best.shape == (len(scores), count)
    for at, mine in enumerate(scores):
        order = sorted(range(len(mine)), key=lambda row: (-mine[row], row))[:count]
        missing = count - len(order)
        assert places[at].tolist() == [int(starts[at]) + row for row in order] + [C] * missing
        assert best[at].tolist() == [mine[row] for row in order] + [-math.inf] * missing


def scored_of(queries):
    """Scores by row, of each query, as if they had been gathered and scored."""
    owners = torch.tensor([at for at, mine in enumerate(queries) for _ in mine], dtype=torch.int64)
    rows = torch.tensor([row for mine in queries for row in sorted(mine)], dtype=torch.int64)
    flat = torch.tensor([float(mine[row]) for mine in queries for row in sorted(mine)])
    starts = torch.tensor([0, *accumulate(len(mine) for mine in queries)])
    return Scored(Gathered(Candidates(owners, rows, starts, flat[:, None]), None, None, None), flat[:, None], flat)


def softmax(mine):
    total = sum(math.exp(score) for score in mine.values())
    return {row: math.exp(score) / total for row, score in mine.items()}


some_scores = st.dictionaries(st.integers(1, ROWS - 1), st.integers(-40, 40).map(lambda n: n / 4), max_size=6)


@given(st.lists(st.lists(some_scores, min_size=1, max_size=4), min_size=1, max_size=4))
def test_several_moments_of_one_person_become_the_mean_of_their_softmaxes(moments):
    """A candidate that is none at some of the moments has no share in these."""
    queries = [mine for person in moments for mine in person]
    people = torch.tensor([number for number, person in enumerate(moments) for _ in person])
    found = scored_of(queries).for_people(people, ROWS)
    owners, rows, starts, _ = found.candidates
    assert starts[0] == 0
    assert starts[-1] == len(owners) == len(rows) == len(found.scores)
    for number, person in enumerate(moments):
        shares = [softmax(mine) for mine in person]
        expected = {row: sum(mine.get(row, 0.0) for mine in shares) / len(person) for mine in shares for row in mine}
        mine = slice(int(starts[number]), int(starts[number + 1]))
        assert (owners[mine] == number).all()
        assert rows[mine].tolist() == sorted(expected)
        assert found.scores[mine].tolist() == pytest.approx([expected[row] for row in sorted(expected)], rel=1e-5)


@given(st.lists(some_scores, min_size=1, max_size=4), st.integers(1, 6))
def test_with_one_moment_each_the_order_is_that_of_the_scores(queries, count):
    scored = scored_of(queries)
    found = scored.for_people(torch.arange(len(queries)), ROWS)
    assert torch.equal(found.candidates.rows, scored.candidates.rows)
    assert torch.equal(found.best(count)[0], scored.best(count)[0])


# --- learning ----------------------------------------------------------------------------------------------------


def test_clicks_become_cheaper_as_they_are_learned_from():
    town = Town(replay_held=0).stroll(40)
    costs = [float(town.learn("abc", [1, 2, 3])[1].mean()) for _ in range(150)]
    assert np.mean(costs[-10:]) < 0.6 * np.mean(costs[:10])


def test_only_clicks_whose_item_was_a_candidate_teach():
    alone, beside = (Town(replay_held=0, replay_candidates=ROWS, ranker_networks=1).stroll(40) for _ in range(2))
    missing = 11
    for town in (alone, beside):
        town.scorer.blocked[missing] = True
        town.random = np.random.default_rng(5)
    _, each, _ = beside.learn("ab", [4, missing])
    assert each[0] < MISS_LOSS
    assert each[1] == MISS_LOSS
    query = alone.query("ab", [START + 1e6] * 2)
    scored = alone.scorer.score(query)
    places = alone.scorer.places_of(scored, torch.tensor([4, 0]))
    loss, _ = alone.losses(scored, places)
    torch.testing.assert_close(loss.detach(), each[0])  # the mean is over those that teach
    loss.backward()
    alone.scorer.weights.step(scored.features)
    for name, tensor in alone.weights().items():
        torch.testing.assert_close(tensor, beside.weights()[name], msg=name)
    before = alone.weights()
    loss, each, _ = alone.learn("ab", [missing, 0])
    assert loss is None
    assert each.tolist() == [MISS_LOSS] * 2
    assert all(torch.equal(before[name], tensor) for name, tensor in alone.weights().items())


def test_what_is_learned_from_is_the_clicked_item_among_its_strongest_rivals():
    town = Town(replay_held=0, replay_candidates=4, ranker_networks=1).stroll(40)
    scored = town.scorer.score(town.query("ab", [START + 1e6] * 2))
    targets = [4, 9]
    places = town.scorer.places_of(scored, torch.tensor(targets))
    loss, each = town.losses(scored, places)
    expected, whole = [], []
    for at, place in enumerate(places.tolist()):
        mine = scored.scores[scored.candidates.owners == at].tolist()
        clicked = float(scored.scores[place])
        rivals = sorted(mine, reverse=True)
        rivals.remove(clicked)
        expected.append(math.log(sum(math.exp(score - clicked) for score in [clicked, *rivals[:3]])))
        whole.append(math.log(sum(math.exp(score - clicked) for score in mine)))
    assert float(loss.detach()) == pytest.approx(np.mean(expected), rel=1e-4)
    assert each.tolist() == pytest.approx(whole, rel=1e-4)  # what is told is the loss among all


def test_no_click_costs_more_than_one_that_was_no_candidate():
    town = Town().stroll(20)
    with torch.no_grad():
        town.scorer.weights.ranker.linear *= 1_000
    _, each, _ = town.learn("abc", [1, 2, 3])
    assert (each <= MISS_LOSS).all()


def test_a_step_moves_everything_and_vectors_stay_of_unit_length():
    town = Town().stroll(40)
    before = town.weights()
    town.learn("abc", [1, 2, 3])
    town.learn("abc", [1, 2, 3])  # the network's inner layers are let in by the first step
    after = town.weights()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == set(after) - {"vectors.biases"}
    lengths = town.scorer.weights.vectors.vectors.norm(dim=-1)
    torch.testing.assert_close(lengths[1:], torch.ones(len(lengths) - 1))
    assert lengths[0] == 0


@pytest.mark.parametrize("which", ["ranker.linear", "own.gains", "world.recency", "vectors.vectors"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_gradient_that_is_not_finite_moves_nothing(which, bad):
    town = Town().stroll(40)
    town.learn("abc", [1, 2, 3])
    before, adam = town.weights(), [dict(state) for state in town.scorer.weights.adam.state.values()]
    steps = [int(state["step"]) for state in adam]
    scored = town.scorer.score(town.query("abc", [START + 1e6] * 3))
    loss, _ = town.losses(scored, town.scorer.places_of(scored, torch.tensor([1, 2, 3])))
    loss.backward()
    module, name = which.split(".")
    gradient = getattr(getattr(town.scorer.weights, module), name).grad
    (gradient._values() if gradient.is_sparse else gradient).flatten()[0] = bad
    town.scorer.weights.step(scored.features)
    assert all(torch.equal(before[name], tensor) for name, tensor in town.weights().items())
    assert [int(state["step"]) for state in town.scorer.weights.adam.state.values()] == steps
    town.learn("abc", [1, 2, 3])  # gradients that were left would be there again
    assert not torch.equal(before["ranker.linear"], town.weights()["ranker.linear"])
    assert all(tensor.isfinite().all() for tensor in town.weights().values())


def test_scores_that_are_not_finite_move_nothing_and_are_not_replayed():
    town = Town().stroll(40)
    town.learn("abc", [1, 2, 3])
    before, filled = town.weights(), town.scorer.replay.filled
    query = town.query("abc", [START + 1e6] * 3)
    query.states[1] = math.nan
    scored = town.scorer.score(query)
    loss, each = town.losses(scored, town.scorer.places_of(scored, torch.tensor([1, 2, 3])))
    assert each.isfinite().all()
    assert town.scorer.replay.filled == filled + 2
    loss.backward()
    town.scorer.weights.step(scored.features)
    assert all(torch.equal(before[name], tensor) for name, tensor in town.weights().items())


def test_what_was_replayed_teaches_too():
    town = Town().stroll(40)
    for _ in range(90):
        loss, each, _ = town.learn("abc", [1, 2, 3])
    assert town.scorer.replay.filled == 270
    assert float(loss.detach()) > 1.2 * float(each.mean())


# --- rows that change hands --------------------------------------------------------------------------------------


def test_the_next_owner_of_a_row_finds_no_moment_of_the_former_one():
    town = Town()
    for at in range(0, 12, 3):  # 6 always follows 5
        for number, row in enumerate((4, 5, 6)):
            town.click("a", row, START + 100.0 * (at + number))
    town.click("b", 5, START + 1_200.0)
    query = town.query("b", [START + 1_300.0])
    at_6 = town.scorer.score(query).candidates.rows == 6
    world = heads_of(town.scorer.score(query))[at_6, len(OWN_HEADS) :]
    assert (world > 0).all()
    town.scorer.forget_rows([5])
    scored = town.scorer.score(query)  # 5 is another item now
    assert 6 in scored.candidates.rows.tolist()  # it is still popular
    assert not heads_of(scored)[:, len(OWN_HEADS) :].any()
    assert not town.column(scored, "followed_last").any()


def test_a_forgotten_row_points_nowhere_and_starts_anew():
    town = Town().stroll(40)
    for _ in range(3):
        town.learn("abc", [5, 5, 5])
    fresh = Town()
    town.scorer.blocked[5] = True
    town.scorer.forget_rows([5])
    scorer = town.scorer
    for part in (scorer.log.items, scorer.log.last, scorer.log.before):
        assert 5 not in part.tolist()
    assert torch.equal(scorer.weights.vectors.vectors[5], fresh.scorer.weights.vectors.vectors[5])
    assert scorer.weights.adagrad.sums["vectors"][5] == 0
    assert not scorer.blocked[5]
    assert 5 not in scorer.score(town.query(["nobody"], [START + 1e5])).candidates.rows.tolist()


# --- switches ----------------------------------------------------------------------------------------------------


def test_without_the_state_recall_goes_on_and_the_network_is_silent():
    town = Town(deep_state=False).stroll(40, deep=False)
    gains = [heads.gains[:, -1].clone() for heads in (town.scorer.weights.own, town.scorer.weights.world)]
    for _ in range(3):
        _, _, scored = town.learn("abc", [1, 2, 3], deep=False)
    assert not town.column(scored, "network").any()
    assert heads_of(scored).any(0).all()
    for heads, before in zip((town.scorer.weights.own, town.scorer.weights.world), gains, strict=True):
        assert torch.equal(heads.gains[:, -1], before)


def test_without_the_reformer_there_is_neither_recall_nor_state():
    town = Town(reformer=False).stroll(40, deep=False)
    before = town.weights()
    for _ in range(3):
        _, _, scored = town.learn("abc", [1, 2, 3], deep=False)
    assert not scored.features[:, -1 - HEADS :].any()
    assert not town.scorer.world_memory.memory.counts.any()
    assert not town.scorer.own_memory.memory.counts.any()
    after = town.weights()
    moved = {name.partition(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"ranker"}


# --- state -------------------------------------------------------------------------------------------------------


def test_a_restored_scorer_scores_and_learns_the_same():
    town, again = Town().stroll(60), Town()
    for _ in range(90):
        town.learn("abc", [1, 2, 3])
    slots = town.scorer.own_memory.take(["a"])
    older = torch.tensor([number for number, *_ in town.clicks["a"]][:5])
    town.scorer.own_memory.store(torch.from_numpy(slots).expand(5), Moments(*town.scorer.log.read(older)[1]), older)
    arrays, state = town.scorer.to_state()
    again.scorer.load_state({name: array.copy() for name, array in arrays.items()}, state)
    again.scorer.weights.load_state({name: array.copy() for name, array in town.scorer.weights.to_state().items()})
    again.clicks, again.moments = town.clicks, town.moments
    town.random, again.random = (np.random.default_rng(1) for _ in range(2))
    found = [[one.learn("abc", [3, 4, 5])[2] for _ in range(3)] for one in (town, again)]
    for mine, its in zip(*found, strict=True):
        assert torch.equal(mine.candidates.rows, its.candidates.rows)
        assert torch.equal(mine.features, its.features)
        assert torch.equal(mine.scores, its.scores)
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in town.weights().items())


def test_candidates_of_a_query_do_not_depend_on_who_else_is_asked():
    town = Town().stroll(60)
    query = town.query("abc", [START + 1e5] * 3)
    together = town.scorer.score(query)
    for at, (start, end) in enumerate(pairwise(together.candidates.starts.tolist())):
        one = Query(Asked(*(part[at : at + 1] for part in query.asked)), *(part[at : at + 1] for part in query[1:4]))
        alone = town.scorer.score(one)
        assert alone.candidates.rows.tolist() == together.candidates.rows[start:end].tolist()
        torch.testing.assert_close(alone.scores, together.scores[start:end])


def test_weights_that_cannot_score_leave_no_trace_in_what_was_expected():
    town = Town().stroll(40)
    query = town.query("ab", [START + 1e6] * 2)
    scored = town.scorer.score(query)
    before = town.scorer.surprises.to_state()["counts"].copy()
    places = town.scorer.places_of(scored, torch.tensor([4, 9]))
    town.scorer.compare(scored._replace(scores=scored.scores * float("nan")), places)
    assert (town.scorer.surprises.to_state()["counts"] == before).all()
    town.scorer.compare(scored, places)
    after = town.scorer.surprises.to_state()["counts"]
    assert (after[[4, 9], 0] > before[[4, 9], 0]).all()
    assert after[:, 1].sum() == pytest.approx(before[:, 1].sum() + 2, rel=1e-2)
