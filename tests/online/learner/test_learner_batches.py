"""However the clicks are cut into micro-batches, each is foreseen from exactly what came before it; and a learner that
was stopped goes on as one that was not."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from online.learner.batches import Impression
from online.learner.history import SERVED
from online.learner.learner import Learner
from online.learner.lift import Lift
from online.learner.lookahead import UnexpectedBatchError, UpcomingBatch
from online.learner.ranking_model import RankingModel
from online.learner.return_times import ReturnTimes
from stream.events import Click
from stream.user_ids import digest_of, hash_of_digest
from tests.online.conftest import NOW


def some_clicks(count, users=20, items=40, seed=0):
    """Bursts of a user's clicks between those of others; what a user clicks often follows from what they had."""
    random = np.random.default_rng(seed)
    at, user, clicks = random.integers(0, items, users), 0, []
    for number in range(count):
        if random.random() < 0.6:
            user = int(random.integers(users))
        at[user] = (at[user] + 1) % items if random.random() < 0.6 else items * random.random() ** 2
        clicks.append(Click(user_id=f"u{user}", item_id=f"i{at[user]}", timestamp=NOW + 97.0 * number))
    return clicks


def in_parts(clicks, size):
    return [clicks[start : start + size] for start in range(0, len(clicks), size)]


def drawn_weights(learner, seed=1):
    """Weights that tell any two candidates apart, so that no rank hangs on a last digit."""
    generator = torch.Generator().manual_seed(seed)
    weights = learner.weights
    for parameter in (*weights.ranker.parameters(), weights.first):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    for parameter in weights.network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    return learner


def reloaded(learner, settings):
    arrays, state = learner.to_state()
    again = Learner(settings, lists=learner.lists)
    again.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    return again


@pytest.fixture
def frozen(monkeypatch):
    """What is learned in steps stands still: weights, observed by expected clicks, and when users come back."""
    monkeypatch.setattr(RankingModel, "train", lambda *_: False)
    monkeypatch.setattr(Lift, "add", lambda *_: None)
    monkeypatch.setattr(ReturnTimes, "add", lambda *_: None)


def foreseen(learner, clicks):
    """Learns a micro-batch -> of each click its candidates' rows, what was counted of them, their first scores, where
    the clicked item stood and the scores of the candidates that were kept."""
    learned, found = learner.learn(clicks), []
    for step in learned.steps:
        scored, gathered = step.scored, step.scored.gathered
        for at, (start, stop) in enumerate(pairwise(gathered.starts.tolist())):
            part = slice(start, stop)
            rank = float(learned.ranks[len(found)])
            scores = scored.scores[at].numpy()
            found.append(
                (gathered.rows[part].tolist(), gathered.features[part].copy(), scored.first[part], rank, scores)
            )
    return found


# --- micro-batches -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"reformer": False}, id="counts alone"),
        pytest.param({"deep_state": False}, id="with moments"),
        pytest.param({"history_max": 128}, id="with states"),
        pytest.param({"history_max": 128, "exclude_seen": True}, id="without what was seen"),
        pytest.param({"reformer": False, "history_max": 6}, id="histories shorter than what users click in a batch"),
        pytest.param({"history_max": 128, "micro_batch_max": 16, "users_held": 16}, id="users who make room"),
    ],
)
def test_candidates_and_ranks_of_every_click_do_not_depend_on_the_cut(small, changed):
    """Facts are equal to the last bit; what tensors say of them, but for how they are summed."""
    clicks = some_clicks(256)
    settings = small(
        **{
            "abuse_filter": False,
            "micro_batch_max": 64,
            "moments_held": 100,
            "recall_users_held": 64,
            "step_clicks": 20,
            "items_held": 60,
        }
        | changed
    )
    expected = None
    for size in sorted({1, 7, settings.micro_batch_max}):
        learner = drawn_weights(Learner(settings, lists=False))
        found = [each for part in in_parts(clicks, size) for each in foreseen(learner, part)]
        assert len(found) == len(clicks)
        expected = expected or found
        for (rows, features, *scores), (its_rows, its_features, *its_scores) in zip(found, expected, strict=True):
            assert rows == its_rows
            assert np.array_equal(features, its_features)
            for mine, its in zip(scores, its_scores, strict=True):
                np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-3)
    ranks = np.array([rank for *_, rank, _ in expected])
    assert np.isfinite(ranks).mean() > 0.5  # there was something to compare
    assert len(set(ranks.tolist())) > 20


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_each_user_s_list_of_a_batch_is_the_one_that_ranking_afterwards_gives(small, exclude_seen):
    settings = small(history_max=64, exclude_seen=exclude_seen, abuse_filter=False)
    learner = drawn_weights(Learner(settings))
    several = 0
    for part in in_parts(some_clicks(160, users=12), 16):
        rankings = learner.learn(part).rankings
        users = list(dict.fromkeys(click.user_id for click in reversed(part)))[::-1]
        several += len(users) < len(part)
        assert list(rankings) == users
        for mine, its in zip(rankings.values(), learner.rank(users), strict=True):
            assert mine.items == its.items
            assert mine.scores == pytest.approx(its.scores, rel=1e-3)
    assert several


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("changed", [{}, {"deep_state": False}, {"exclude_seen": True}])
def test_a_list_in_between_is_the_one_that_ranking_at_that_moment_would_have_given(small, changed):
    """Of users who click before it, after it, both, or not at all."""
    settings = small(**{"history_max": 64, "abuse_filter": False, "list_size": 20} | changed)
    clicks = some_clicks(120, users=10)
    before, batch = clicks[:104], clicks[104:]
    learner = drawn_weights(Learner(settings, lists=False))
    for part in in_parts(before, 16):
        learner.learn(part)
    split, wanted, expected = reloaded(learner, settings), [], []
    for preceding in range(len(batch) + 1):
        users = sorted(split.histories.users())
        slots = split.histories.find(users)
        now = (batch[preceding - 1] if preceding else before[-1]).timestamp + 50.0
        ages_s = now - split.histories.latest_at(slots)
        active = split.histories.active_at[slots] + ages_s
        wanted += [Impression(user, preceding, now, at) for user, at in zip(users, active.tolist(), strict=True)]
        expected += split.rank(users, [now] * len(users))
        split.learn(batch[preceding : preceding + 1]) if preceding < len(batch) else None
    found = learner.learn(batch, wanted).impressions
    assert len(found) == len(wanted) + 1
    for one, rows, ranking in zip(wanted, found, expected, strict=False):
        items = [learner.vocabulary.item_of(row) for row in rows[rows > 0].tolist()]
        score = dict(zip(ranking.items, ranking.scores, strict=True))
        assert len(items) == min(SERVED, len(ranking.items)), one
        assert [score[item] for item in items] == pytest.approx(ranking.scores[: len(items)], rel=1e-3), one
    assert len({tuple(rows) for rows in found.tolist()}) > len(batch)


def test_a_user_evicted_within_a_micro_batch_comes_back_as_a_new_user(small):
    settings = small(users_held=16, abuse_filter=False)
    learner = Learner(settings)
    learner.learn([Click(user_id="old", item_id=f"i{n}", timestamp=NOW + n) for n in range(10)])
    others = [Click(user_id=f"u{n}", item_id="i3", timestamp=NOW + 100 + n) for n in range(16)]
    learner.learn([*others[:14], Click(user_id="old", item_id="i4", timestamp=NOW + 120)])  # is not the oldest yet
    assert learner.histories.lengths(learner.histories.find(["old"])).tolist() == [11]
    learner.learn(others)  # and now "old" makes room
    batch = [Click(user_id="fresh", item_id="i3", timestamp=NOW + 200)] * 2
    batch += [Click(user_id=f"u{n}", item_id="i5", timestamp=NOW + 201 + n) for n in range(1, 12)]
    batch += [Click(user_id=user, item_id="i6", timestamp=NOW + 220 + n) for n, user in enumerate(["u0", "old", "u0"])]
    rankings = learner.learn(batch).rankings  # "fresh" took u0's place, who came back in the same micro-batch
    assert len(learner.histories) == 16
    assert learner.histories.lengths(learner.histories.find(["u0", "old", "fresh"])).tolist() == [2, 1, 2]
    assert learner.histories.newest_first(learner.histories.find(["old"]), 5).rows.tolist() == [
        [learner.vocabulary.row_of("i6"), 0, 0, 0, 0]
    ]
    assert {"u0", "old", "fresh"} <= rankings.keys()
    assert all(ranking.items for ranking in rankings.values())


@pytest.mark.parametrize("changed", [{}, {"deep_state": False}, {"reformer": False}, {"exclude_seen": True}])
def test_a_user_may_click_more_in_one_micro_batch_than_a_history_keeps(small, changed):
    settings = small(**{"history_max": 6, "online_history": 4, "abuse_filter": False} | changed)
    learner = Learner(settings)
    mine = [Click(user_id="a", item_id=f"i{n % 9}", timestamp=NOW + n) for n in range(96)]
    other = [Click(user_id="b", item_id=f"i{n % 5}", timestamp=NOW + n) for n in range(96)]
    for turn in range(6):
        part = slice(13 * turn, 13 * turn + 13)
        learned = learner.learn([*mine[part], *other[part][:3]], [Impression("a", 9, NOW + part.stop, NOW + part.stop)])
        assert len(learned.ranks) == len(learned.losses) == 16
        assert np.isfinite(learned.losses).all()
        assert learned.finite()
    newest = learner.histories.newest_first(learner.histories.find(["a"]), 6)
    expected = [learner.vocabulary.row_of(click.item_id) for click in mine[part][::-1][:6]]
    assert newest.rows[0].tolist() == expected
    assert learner.weights.finite()
    assert learner.weights.skipped == 0
    again = reloaded(learner, settings)
    assert again.rank(["a", "b"]) == learner.rank(["a", "b"])


# --- going on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_a_learner_that_is_stopped_again_and_again_goes_on_bit_for_bit(small, same, exclude_seen):
    """While users and items make room, users click several times within a micro-batch, and one does nothing else."""
    settings = small(
        exclude_seen=exclude_seen,
        users_held=20,
        items_held=30,
        memory_users_held=16,
        recall_users_held=16,
        moments_held=120,
        replay_held=40,
        finetune_reservoir_held=16,
        step_clicks=6,
    )
    clicks = some_clicks(480, users=30, items=45)
    for n in range(200, 380, 2):
        clicks[n] = Click(user_id="bot", item_id="pills", timestamp=clicks[200].timestamp + n)
    whole, stopped = Learner(settings), Learner(settings)
    evicted = freed = flagged = 0
    for number, part in enumerate(in_parts(clicks, 16)):
        before = set(whole.histories.users())
        mine, its = whole.learn(part), stopped.learn(part)
        flagged += int((~mine.trainable).sum())
        evicted += len(before - set(whole.histories.users()))
        freed += len(mine.freed)
        assert mine.rankings == its.rankings
        assert mine.losses == its.losses
        for name in ("ranks", "candidates", "served_ranks", "targets", "trainable"):
            assert np.array_equal(getattr(mine, name), getattr(its, name)), name
        if number % 2:
            assert whole.states.rebuild() == stopped.states.rebuild()
        if number % 5 == 3:
            stopped = reloaded(stopped, settings)
            users = whole.histories.users()[:5]
            assert whole.rank(users) == stopped.rank(users)
            assert whole.popular() == stopped.popular()
    assert evicted
    assert freed
    assert flagged
    (arrays, state), (its_arrays, its_state) = whole.to_state(), stopped.to_state()
    assert state == its_state
    assert same(arrays, its_arrays)


@pytest.mark.parametrize("changed", [{"moments_held": 300}, {"moments_held": 40}, {"micro_batch_max": 32}])
def test_with_room_for_more_moments_or_for_fewer_the_latest_are_taken_back(small, changed):
    settings = small(moments_held=80, abuse_filter=False)
    learner = Learner(settings)
    for part in in_parts(some_clicks(400), 16):
        learner.learn(part)
    other = reloaded(learner, settings.model_copy(update=changed))
    held = min(len(learner.store.log.items), len(other.store.log.items))
    numbers = np.arange(400 - held + 1, 401)
    for of in ("items", "last", "user_hashes"):
        mine, its = (getattr(one.store.log, of)[numbers % len(one.store.log.items)] for one in (learner, other))
        assert np.array_equal(mine, its)
    mine, its = (one.moment_states[torch.from_numpy(numbers % len(one.moment_states))] for one in (learner, other))
    assert torch.equal(mine, its)
    assert its.any()
    assert other.learn(some_clicks(16, seed=1)).finite()


# --- forgetting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_nothing_is_left_of_who_was_forgotten_and_learning_goes_on(small, exclude_seen):
    settings = small(exclude_seen=exclude_seen, history_max=16)
    learner = Learner(settings)
    clicks = some_clicks(320, users=8)
    for part in in_parts(clicks, 16):
        learner.learn(part)
    digest = digest_of("u3")
    learner.hidden.hide("u3", "i7")
    there = learner.holds(digest)
    assert there.pop("abuse_filter") >= 0
    assert all(there.values()), there
    places = np.flatnonzero(learner.store.log.user_hashes == hash_of_digest(digest))
    assert learner.moment_states[places].any()
    forgotten = learner.forget(digest)
    assert forgotten["history_clicks"] == 16
    assert forgotten["moments"] == len(places)
    for one in (learner, reloaded(learner, settings)):
        assert not any(one.holds(digest).values())
        assert one.named(digest) == frozenset()
        assert not one.moment_states[places].any()
        for part in one.store.log[:-1]:
            assert not part[places].any()
        arrays, state = one.to_state()
        assert '"u3"' not in json.dumps(state)
        for name, array in arrays.items():
            if name.endswith("user_hashes"):
                assert hash_of_digest(digest) not in array, name
        assert len(one.learn(clicks[:16]).rankings) > 1


# --- the facts of what follows are gathered meanwhile -------------------------------------------------------------


def announced(learner, batches):
    """What each gives, when the next is announced with it."""
    nexts = [*(lambda clicks=clicks: UpcomingBatch(clicks) for clicks in batches[1:]), None]
    return [learner.learn(clicks, following=after) for clicks, after in zip(batches, nexts, strict=True)]


@pytest.mark.parametrize("changed", [{}, {"exclude_seen": True}, {"users_held": 20, "items_held": 30}])
def test_gathering_the_next_facts_while_weights_learn_changes_nothing(small, changed):
    batches = list(in_parts(some_clicks(400), 16))
    settings = small(**changed)
    ahead, in_turn = Learner(settings), Learner(settings)
    for one, other in zip(announced(ahead, batches), [in_turn.learn(clicks) for clicks in batches], strict=True):
        assert one.rankings == other.rankings
        np.testing.assert_array_equal(one.ranks, other.ranks)
        np.testing.assert_array_equal(one.served_ranks, other.served_ranks)
    (arrays, state), (other_arrays, other_state) = ahead.to_state(), in_turn.to_state()
    assert json.dumps(state) == json.dumps(other_state)
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)


@pytest.mark.parametrize("where", ["evicts", "begin", "gather"])
def test_what_fails_in_the_next_micro_batch_is_raised_when_its_turn_comes(small, monkeypatch, where):
    learner = Learner(small())
    first, second = in_parts(some_clicks(32), 16)

    def fail(*_):
        raise ValueError("a bug")

    def announce():
        monkeypatch.setattr(learner.preparer, where, fail)
        return UpcomingBatch(second)

    assert len(learner.learn(first, following=announce).ranks) == 16
    with pytest.raises(ValueError, match="a bug"):
        learner.learn(second)


def test_other_clicks_than_those_announced_are_refused(small):
    learner = Learner(small())
    first, second, third = in_parts(some_clicks(48), 16)
    learner.learn(first, following=lambda: UpcomingBatch(second))
    with pytest.raises(UnexpectedBatchError, match="other clicks were announced"):
        learner.learn(third)
