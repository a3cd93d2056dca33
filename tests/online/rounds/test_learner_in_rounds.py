"""A learner that publishes changes and rebases on them learns what it would have learned alone."""

import torch

from online.config.settings import load_settings
from online.evaluation.backtest_events import micro_batches
from online.evaluation.town import Town
from online.learner.learner import Learner
from online.rounds.encoding import decode, encode_base, encode_change
from online.rounds.merger import Merger
from online.rounds.replica import Replica


def learned(clicks, settings, *, rounds):
    learner = Learner(settings, lists=False)
    replica = Replica(learner, "a", "1")
    merger = Merger(replica.base, "a")
    observe = learner.observe_items

    def observe_items(*given):
        clicked = observe(*given)
        replica.rows_changed(clicked.freed, clicked.taken)
        return clicked

    learner.observe_items = observe_items
    for batch in micro_batches(clicks, settings):
        learner.learn([clicks[at] for at in batch])
        replica.trained(0, batch.start, batch.stop, len(batch))
        if rounds and (change := replica.change()):
            merger.add(decode(encode_change(change), replica.base.shape))
            step = decode(encode_base(merger.next_base(1)), replica.base.shape)
            replica.rebase(step)
            merger.settle(step)
    return learner, replica


def test_a_lone_learner_in_rounds_learns_what_it_would_without() -> None:
    settings = load_settings(device="cpu")  # an item that comes back after eviction would start from the base
    clicks = list(Town(users=30, items=120, seed=0).clicks(800))
    (alone, _), (learner, replica) = (learned(clicks, settings, rounds=rounds) for rounds in (False, True))
    assert replica.counts["merged"] > 5
    for name, tensor in alone.weights.tensors().items():
        torch.testing.assert_close(learner.weights.tensors()[name], tensor, rtol=1e-5, atol=1e-6)
    for name, base in replica.base.dense.items():
        torch.testing.assert_close(base, learner.weights.tensors()[name], rtol=0, atol=1e-3)
