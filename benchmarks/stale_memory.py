"""How far states and lists drift from a fresh recomputation while weights move and remembered keys stay.

    python -m benchmarks.stale_memory [--updates 100 1000 10000 100000]

Users of the simulated town click; each micro-batch is one update of the weights. Memories are built once and then only
continued. After so many updates, what they say is compared with reading the whole histories anew with the weights of
now: the cosine of the states, how many of the network's own ten best items agree, and how many of the ten that are
served (counts and network mixed). Then the cosine once more right after a rebuild: what rounding alone costs. Some 30
updates a second: 100,000 take an hour.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from online.config.settings import load_settings
from online.evaluation.town import Town
from online.learner.learner import Learner
from stream.events import Click


def batches(clicks: Iterator[Click], size: int) -> Iterator[list[Click]]:
    """Runs of at most `size` clicks of different users: so every memory is continued."""
    batch: dict[str, Click] = {}
    for click in clicks:
        if click.user_id in batch or len(batch) == size:
            yield list(batch.values())
            batch = {}
        batch[click.user_id] = click


def overlap(one: list[list[str]], other: list[list[str]]) -> float:
    """Mean share of ten that two lists have in common."""
    return float(np.mean([len(set(a[:10]) & set(b[:10])) / 10 for a, b in zip(one, other, strict=True)]))


@torch.no_grad()
def compare(learner: Learner, users: list[str]) -> tuple[float, float, float]:
    """Mean cosine of the states, overlap of the network's ten best, overlap of the ten served."""
    slots = learner.histories.find(users)
    remembered = learner.states.now(users, slots)
    latest = learner.histories.oldest_first(slots, learner.settings.history_max)
    fresh = torch.cat(
        [learner.weights.states(latest.of(np.array([at])))[:, int(latest.lengths[at]) - 1] for at in range(len(users))]
    )

    def best(states: Tensor) -> list[list[str]]:
        rows = torch.arange(1, learner.vocabulary.rows)
        order = learner.weights.network.scores(states, rows).topk(10).indices + 1
        return [[str(row) for row in one] for one in order.tolist()]

    def served(states: Tensor) -> list[list[str]]:
        return [ranking.items for ranking in learner.ranker.rank(users, slots, np.zeros(len(slots)), states)]

    cosine = torch.nn.functional.cosine_similarity(remembered, fresh).mean()
    return float(cosine), overlap(best(remembered), best(fresh)), overlap(served(remembered), served(fresh))


def rebuild(learner: Learner, users: list[str]) -> None:
    learner.states._wanted.clear()
    learner.states._wanted.update(dict.fromkeys(users))
    while learner.states.rebuild():
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, nargs="+", default=[100, 1_000])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--users", type=int, default=100, help="users compared")
    parser.add_argument("--dtype", default="bfloat16", help="of the memories")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = load_settings(
        memory_updates_max=10**12,
        memory_rebuilds_max=64,
        history_max=8_192,
        memory_dtype=options.dtype,
        items_held=10_000,
    )
    learner = Learner(settings)
    stream = batches(Town(seed=0).clicks(10**9), options.batch)
    for batch in islice(stream, 2_000):  # until every user has a history and a memory
        learner.learn(batch)
        learner.states.rebuild()
    held = learner.states.memory.directory.users()
    users = [user for user in held if learner.states._at_hand(user)][-options.users :]
    slots = learner.states._memory_slots(users)
    rebuild(learner, users)
    began, first = time.monotonic(), learner.weights.optimizer.steps
    print(f"{len(users)} users, memories in {options.dtype}, window {settings.window}, {settings.buckets} buckets")
    print(f"{'updates':>9} {'clicks each':>11} {'cosine':>8} {'network ten':>12} {'served ten':>11} {'rebuilt':>8}")
    for mark in options.updates:
        while learner.weights.optimizer.steps - first < mark:
            learner.learn(next(stream))
        clicks = float(learner.states.memory.clicks[slots].double().mean())
        cosine, network, served = compare(learner, users)
        keep = {name: tensor.clone() for name, tensor in learner.states.memory.state_tensors().items()}
        rebuild(learner, users)
        rebuilt, _, _ = compare(learner, users)
        learner.states.memory.load_state_tensors(keep)
        print(
            f"{mark:>9,} {clicks:>11,.0f} {cosine:>8.4f} {network:>12.3f} {served:>11.3f} {rebuilt:>8.4f}", flush=True
        )
    print(f"{(learner.weights.optimizer.steps - first) / (time.monotonic() - began):.0f} updates/s")


if __name__ == "__main__":
    main()
