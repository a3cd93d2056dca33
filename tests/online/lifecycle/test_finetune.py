"""Fine-tuning works on a copy; what it brings back is added to what was learned meanwhile."""

import numpy as np
import pytest
import torch

from online.learner.learner import Learner
from online.lifecycle.finetune import FineTuning, examples
from stream.events import Click


@pytest.fixture
def learner(small, town_clicks):
    learner = Learner(small(finetune_batch=4, items_held=60))
    learn(learner, town_clicks[:200])
    return learner


def learn(learner, clicks, tuning=None):
    """`tuning` is told of rows that change hands, as the supervisor does."""
    for start in range(0, len(clicks), 8):
        learned = learner.learn(clicks[start : start + 8])
        if tuning is not None:
            tuning.rows_changed.update(learned.freed, learned.taken)


def begin(learner, seed=1):
    recent = learner.histories.oldest_first(learner.histories.recently_seen(512), 12)
    return FineTuning(learner, recent, seed=seed)


def live(learner):
    return {name: value.clone() for name, value in learner.weights.tensors().items() if value.is_floating_point()}


def tuned(tuning):
    return {name: value.clone() for name, value in tuning.weights.tensors().items() if value.is_floating_point()}


def publish(learner, tuning):
    learner.publish(tuning.candidate(), learner.version + 1)


def run(tuning):
    while not tuning.done:
        tuning.run_for(1.0)
    return tuning


def test_live_weights_stay_as_they_are_until_it_is_published(learner, same):
    arrays = {name: array.copy() for name, array in learner.to_state()[0].items()}
    state = learner.to_state()[1]
    tuning = run(begin(learner))
    assert same(arrays, learner.to_state()[0])  # the optimizer's state, and everything else
    assert learner.to_state()[1] == state  # random numbers too
    assert any(not torch.equal(value, tuned(tuning)[name]) for name, value in live(learner).items())
    publish(learner, tuning)
    for name, value in live(learner).items():
        np.testing.assert_allclose(value.numpy(), tuned(tuning)[name].numpy(), atol=1e-6)


def test_what_was_learned_online_meanwhile_is_carried_over(learner, town_clicks):
    tuning = begin(learner)
    start = live(learner)
    tuning.run_for(0.0)
    learn(learner, town_clicks[200:300], tuning)
    run(tuning)
    before = live(learner)
    changed = tuning.rows_changed
    publish(learner, tuning)
    moved = 0
    for name, value in live(learner).items():
        expected = before[name] + (tuned(tuning)[name] - start[name])
        kept = torch.ones(len(value), dtype=torch.bool)
        if name.startswith("network.items."):
            kept[list(changed)] = False
        torch.testing.assert_close(value[kept], expected[kept], rtol=0, atol=1e-7)
        moved += int(not torch.equal(before[name], start[name]) and not torch.equal(value, before[name]))
    assert moved > 5  # both had something to say


def test_rows_that_changed_hands_or_are_newer_than_the_copy_keep_their_live_values(learner):
    tuning = begin(learner)
    known = learner.vocabulary.rows
    run(tuning)
    # Newcomers: first rows that no item had, then rows of items that are given up for them.
    newcomers = [Click(user_id="u", item_id=f"new {number}", timestamp=2e9 + number) for number in range(60)]
    learn(learner, newcomers[:20], tuning)
    learn(learner, newcomers[20:], tuning)
    assert learner.vocabulary.rows == 61
    before = live(learner)
    publish(learner, tuning)
    after = live(learner)
    for number in range(60):
        row = learner.vocabulary.row_of(f"new {number}")
        for name in ("network.items.vectors", "network.items.biases"):
            assert after[name][row].tolist() == before[name][row].tolist()
    assert known < 61


def test_a_table_that_grew_meanwhile_is_no_obstacle(learner):
    tuning = run(begin(learner))
    rows = len(learner.weights.network.items)
    learner.weights.grow(rows + 1)
    before = live(learner)
    publish(learner, tuning)
    assert torch.equal(live(learner)["network.items.vectors"][rows:], before["network.items.vectors"][rows:])
    assert not torch.equal(live(learner)["network.items.vectors"][:rows], before["network.items.vectors"][:rows])


def test_rows_without_an_item_are_not_moved(learner):
    tuning = begin(learner)
    run(tuning)
    change = tuned(tuning)["network.items.vectors"] - tuning.start["network.items.vectors"]
    assert not change[learner.vocabulary.rows :].any()
    assert not change[0].any()


def test_a_slice_is_one_step_at_least_and_ends_when_its_time_is_over(learner, town_clicks):
    learn(learner, town_clicks[200:400])
    tuning = begin(learner)
    users = len(learner.histories.recently_seen(512))
    slices = 0
    while not tuning.done:
        tuning.run_for(0.0)
        slices += 1
        assert len(tuning.losses) + len(tuning.ranking_losses) == slices
    assert slices == 2 * -(-users // 4)
    tuning.run_for(1.0)  # no more to do
    assert len(tuning.losses) + len(tuning.ranking_losses) == slices


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_repeats_for_the_same_seed_in_whatever_slices(small, town_clicks, dropout):
    found = []
    for seed, seconds in ((1, 1.0), (1, 0.0), (2, 1.0)):
        learner = Learner(small(dropout=dropout, finetune_batch=4))
        learn(learner, town_clicks[:120])
        tuning = begin(learner, seed)
        while not tuning.done:
            tuning.run_for(seconds)
        found.append(tuned(tuning))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_histories_without_a_known_next_item_teach_nothing(learner):
    recent = learner.histories.oldest_first(learner.histories.recently_seen(512), 12)
    recent.rows[:] = 0
    tuning = FineTuning(learner, recent, seed=1)
    run(tuning)
    assert tuning.losses == []
    assert all(torch.equal(tuning.start[name], value) for name, value in tuned(tuning).items())


def test_it_learns_what_online_steps_have_not(small):
    learner = Learner(small(finetune_batch=4, finetune_learning_rate=0.01))
    clicks = [
        Click(user_id=str(user), item_id=f"i{(at + user) % 15}", timestamp=60.0 * at)
        for at in range(10)
        for user in range(32)
    ]
    learn(learner, clicks)
    losses = []
    for seed in range(12):
        tuning = run(begin(learner, seed))
        publish(learner, tuning)
        losses.append(np.mean(tuning.losses))
    assert losses[-1] < 0.75 * losses[0]


def test_a_loss_that_is_not_finite_ends_it_with_the_reason(learner):
    tuning = begin(learner)
    with torch.no_grad():
        tuning.weights.network.items.vectors[1:] = float("nan")
    tuning.run_for(1.0)
    assert tuning.done
    assert "nan" in tuning.failed


def test_the_ranker_is_tuned_too_and_recalls_vectors_keep_unit_length(learner, town_clicks):
    learn(learner, town_clicks[200:400])
    tuning = run(begin(learner))
    assert not torch.equal(tuning.start["ranker.linear"], tuning.weights.ranker.linear)
    with torch.no_grad():
        tuning.weights.vectors.vectors[1:] += 0.5
    vectors = tuning.candidate().vectors.vectors
    torch.testing.assert_close(vectors[1:].norm(dim=-1), torch.ones(len(vectors) - 1))
    assert not vectors[0].any()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_examples_are_recent_histories_and_others_of_long_ago(small, share):
    learner = Learner(small(finetune_histories=8, finetune_reservoir_held=32))
    clicks = [
        Click(user_id=f"{phase}{user}", item_id=f"{phase}{at}", timestamp=1e6 * number + 60.0 * at)
        for number, phase in enumerate("ab")
        for at in range(5)
        for user in range(12)
    ]
    learn(learner, clicks)
    found = examples(learner, share, np.random.default_rng(0))
    assert len(found.lengths) == 8
    assert (found.lengths >= 2).all()
    recent = found.timestamps[:, 0] >= 1e6
    assert recent[: round(8 * share)].all()  # the latest users'
    assert recent.all() == (share == 1.0)


def test_without_two_clicks_of_any_user_there_are_no_examples(small):
    learner = Learner(small())
    learner.learn([Click(user_id=str(user), item_id=f"i{user}", timestamp=user) for user in range(5)])
    assert examples(learner, 0.5, np.random.default_rng(0)) is None
