"""What moves the network: negatives, one step, rows that change hands, and state."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from online.history import Latest
from online.trainer import Negatives, Trainer, choose_device


def history(rows):
    length = len(rows)
    return Latest(
        np.array([rows]), np.zeros((1, length), np.int64), np.arange(length, dtype=np.float64)[None], np.array([length])
    )


@given(
    popularity=st.lists(st.floats(0, 1e100), min_size=2, max_size=12),
    rows=st.integers(2, 12),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50)
def test_a_negative_is_a_row_in_use_and_comes_with_the_log_of_its_chance(popularity, rows, seed):
    rows = min(rows, len(popularity))
    found, log_q = Negatives(np.array(popularity), rows).draw(200, np.random.default_rng(seed))
    assert found.min() >= 1
    assert found.max() < rows
    assert torch.isfinite(log_q).all()
    share = np.array(popularity[:rows])
    share[0] = 0
    uniform = 1 / (rows - 1)
    chance = 0.5 * uniform + 0.5 * share / share.sum() if share.sum() > 0 else np.full(rows, uniform)
    np.testing.assert_allclose(log_q.numpy(), np.log(chance[found.numpy()]), rtol=1e-4, atol=1e-5)


def test_negatives_come_as_often_as_their_chance_says():
    popularity = np.array([99.0, 1.0, 0.0, 3.0])
    rows, log_q = Negatives(popularity, 4).draw(60_000, np.random.default_rng(0))
    often = np.bincount(rows.numpy(), minlength=4) / 60_000
    expected = [0, 1 / 6 + 1 / 8, 1 / 6, 1 / 6 + 3 / 8]
    np.testing.assert_allclose(often, expected, atol=0.01)
    np.testing.assert_allclose(np.exp(log_q.numpy()), np.array(expected)[rows.numpy()], rtol=1e-5)


def test_the_same_generator_draws_the_same():
    negatives = Negatives(np.ones(50), 50)
    one, other = (negatives.draw(20, np.random.default_rng(3)) for _ in range(2))
    assert one[0].tolist() == other[0].tolist()


def test_steps_on_one_click_make_it_likelier(small):
    trainer = Trainer(small())
    latest, negatives = history([3, 5, 7]), Negatives(np.ones(20), 20)
    losses = [trainer.update(trainer.states(latest)[:, -1], np.array([9]), negatives) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    scores = trainer.scores(trainer.states(latest)[:, -1], np.zeros(19, np.int64), np.arange(1, 20))
    assert scores.argmax() + 1 == 9
    assert not trainer.network.items.vectors[0].any()


def test_scores_are_each_owner_s_state_times_the_row_s_vector(small):
    trainer = Trainer(small())
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    owners, rows = np.array([2, 0, 0, 1]), np.array([4, 4, 9, 1])
    vectors = trainer.network.items.vectors.detach()
    expected = [float(states[owner] @ vectors[row]) for owner, row in zip(owners, rows, strict=True)]
    np.testing.assert_allclose(trainer.scores(states, owners, rows), expected, rtol=1e-5, atol=1e-6)


def test_without_fine_tuning_there_is_no_dropout(small):
    trainer = Trainer(small(dropout=0.9))
    latest = history([3, 5, 7, 2])
    assert torch.equal(trainer.states(latest), trainer.states(latest))


def test_a_reset_row_is_as_at_the_start_and_others_stay(small):
    trainer, fresh = Trainer(small()), Trainer(small())
    latest, negatives = history([3, 5, 7]), Negatives(np.ones(20), 20)
    for _ in range(5):
        trainer.update(trainer.states(latest)[:, -1], np.array([9]), negatives)
    learned = trainer.network.items.vectors.detach().clone()
    trainer.reset_rows([9, 3])
    vectors, sums = trainer.network.items.vectors.detach(), trainer.optimizer.rows.sums
    assert vectors[[9, 3]].tolist() == fresh.network.items.vectors[[9, 3]].tolist()
    assert vectors[[5, 7]].tolist() == learned[[5, 7]].tolist()
    assert all(sums[name][row] == 0 for name in sums for row in (9, 3))
    assert trainer.rows_changed == {9, 3}


def test_state_restored_from_json_and_arrays_goes_on_bit_for_bit(small, same):
    whole, restored = Trainer(small()), Trainer(small())
    negatives, latest = Negatives(np.ones(20), 20), history([3, 5, 7])

    def step(trainer):
        return trainer.update(trainer.states(latest)[:, -1], np.array([9]), negatives)

    whole.grow(3_000)
    for _ in range(3):
        step(whole)
    arrays, state = whole.to_state()
    restored.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    assert [step(whole) for _ in range(5)] == [step(restored) for _ in range(5)]
    assert same(whole.to_state()[0], restored.to_state()[0])


@pytest.mark.parametrize(
    ("wanted", "there", "expected"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_auto_takes_the_accelerator_where_there_is_one(monkeypatch, wanted, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(wanted).type == expected
