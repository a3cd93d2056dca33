"""Sequence models beside nextclick: what they read, what they predict, and that they learn."""

import numpy as np
import pytest
import torch

from benchmarks import neural_peers
from benchmarks.neural_peers import PEERS, Shape, Softmax, ranks_of, targets_of, trained
from online.evaluation.backtest_events import facts_of
from stream.events import Click


def facts(pairs):
    return facts_of([Click(user_id=user, item_id=item, timestamp=1e9 + at) for at, (user, item) in enumerate(pairs)])


def test_each_click_with_a_predecessor_is_predicted_once_from_earlier_clicks_alone(monkeypatch):
    monkeypatch.setattr(neural_peers, "LENGTH", 6)
    random = np.random.default_rng(0)
    stream = facts([(f"u{random.integers(4)}", f"i{at % 9}") for at in range(120)])
    targets = targets_of(stream, 40, 120)
    predicted = np.sort(np.concatenate(targets.clicks))
    assert predicted.tolist() == [at for at in range(40, 120) if stream.earlier_of_user[at] > 0]
    for sequence, places, clicks in zip(*targets, strict=True):
        assert len(sequence) <= 6
        for place, click in zip(places, clicks, strict=True):
            of_user = np.flatnonzero(stream.users[:click] == stream.users[click])
            read = sequence[: place + 1]
            assert read.tolist() == stream.items[of_user[-len(read) :]].tolist()
            assert len(read) >= min(3, len(of_user))


@pytest.mark.parametrize("name", PEERS)
def test_a_model_learns_an_order_and_an_item_it_has_not_seen_is_a_miss(name, monkeypatch):
    monkeypatch.setattr(neural_peers, "TARGETS_MIN", 16)
    monkeypatch.setattr(neural_peers, "EPOCHS_MIN", 30)
    order = [("abcdefgh"[(user + at) % 8], user) for at in range(40) for user in range(8)]
    stream = facts([*((f"u{user}", item) for item, user in order), ("u0", "new"), ("u1", "b")])
    torch.set_num_threads(1)
    model, epochs = trained(name, Shape(16, 0.0), stream, 300, sampled=False)
    assert epochs >= 1
    clicks, ranks = ranks_of(model, targets_of(stream, 300, len(stream.users)), stream)
    by_click = dict(zip(clicks.tolist(), ranks.tolist(), strict=True))
    assert by_click[320] == np.inf
    assert np.mean([by_click[click] == 0 for click in range(300, 320)]) > 0.9


def test_a_sampled_softmax_is_the_full_one_on_average(monkeypatch):
    monkeypatch.setattr(neural_peers, "SAMPLED", 200)
    random = np.random.default_rng(0)
    items = random.zipf(1.5, 500) % 50
    torch.manual_seed(0)
    vectors, states, targets = torch.randn(50, 8), 0.3 * torch.randn(20, 8), torch.from_numpy(items[:20])
    sampled = Softmax(items, 50, sampled=True, random=random)
    full = Softmax(items, 50, sampled=False, random=random)
    found = np.array([float(sampled(vectors, states, targets)) for _ in range(300)])
    assert float(full(vectors, states, targets)) == pytest.approx(found.mean(), abs=0.03)
