"""What a checkpoint of a large state costs: how long clicks wait for it, bytes written, and how long loading takes.

    python -m benchmarks.checkpoint [--items 1000000] [--users 100000] [--clicks 1000]

The learner's state is made up: tables, moments, histories and vectors filled as by a long stream whose items are as unequal as Zipf's law says.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch

from online.config.settings import Settings, load_settings
from online.learner.learner import Learner
from stream.events import Click

BEGAN = 1.7e9  # seconds since 1970
OF_A_USER = 30  # clicks in a history
MICRO_BATCH = 100


def filled(settings: Settings, items: int, users: int, seed: int = 0) -> Learner:
    """Returns a learner whose state is as large as that of a stream with so many items and users."""
    learner, random = Learner(settings), np.random.default_rng(seed)
    for number in range(items):
        learner.vocabulary.observe(item_of(number), BEGAN - 1e6 + number)
    learner.vocabulary.take_reset()
    learner.make_room()
    rows = learner.vocabulary.rows
    store = learner.store
    for table in store.tables:
        held = table.others.shape[1]
        table.used[1:rows] = np.minimum(held, random.pareto(1.0, rows - 1) * 3).astype(np.int32)
        for begin in range(1, rows, 65_536):
            part = slice(begin, min(rows, begin + 65_536))
            inside = np.arange(held) < table.used[part, None]
            table.others[part][inside] = random.integers(1, rows, inside.sum())
            table.counts[part][inside] = random.integers(1, 9, inside.sum()) / np.sqrt(random.integers(1, 5, inside.sum()))
        table.totals[:rows] = table.counts[:rows].sum(1)
    counted = store.items
    counted.clicks[1:rows] = random.pareto(1.0, rows - 1) * 5
    counted.first_at[1:rows] = random.uniform(0, 1e6, rows - 1)
    counted.last_at[1:rows] = 1e6
    counted.popular[1:rows] = random.pareto(1.0, (rows - 1, 1)) * random.uniform(0, 1, counted.popular[1:rows].shape)
    log = store.log
    held = len(log.items)
    for part in (log.items, log.last, log.before):
        part[:] = zipf(random, rows - 1, held) + 1
    log.times[:] = np.sort(random.uniform(BEGAN - 1e6, BEGAN, held))
    log.gaps[:] = random.exponential(5, held)
    names = [user_of(number) for number in range(users)]
    log.user_hashes[:] = random.integers(1, 2**62, users)[random.integers(0, users, held)]
    log.total[:] = held
    store.moment_states[:] = random.standard_normal(store.moment_states.shape)
    store.index.world[:] = random.integers(1, held, store.index.world.shape)
    store.index.world_counts[:] = store.index.world.shape[1]
    own = min(users, settings.recall_users_held)
    store.take_own_slots(names[:own])
    store.index.own[:] = random.integers(0, held, store.index.own.shape)
    slots = learner.histories.slots(names)
    for number in range(OF_A_USER):
        learner.histories.append(slots, zipf(random, rows - 1, users) + 1, 0, BEGAN - 1e6 + 1e4 * number)
    weights = learner.weights
    with torch.no_grad():
        for sums in weights.adagrad.sums.values():
            sums[:rows] = torch.rand(sums[:rows].shape)
    replay = learner.replay
    replay.filled = replay.held
    replay.features[:] = torch.randn(replay.features.shape)
    learner.clock.latest = BEGAN
    return learner


def zipf(random: np.random.Generator, items: int, count: int) -> Any:
    """Numbers below `items` (count,), whose chances fall nearly as 1 / rank."""
    return np.minimum(items - 1, np.exp(random.uniform(0, np.log(items), count)).astype(np.int64) * 7919 % items)


def item_of(number: int) -> str:
    return f"item-{number}"


def user_of(number: int) -> str:
    return f"user-{number}"


def learn(learner: Learner, clicks: int, items: int, users: int, at: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    for begin in range(0, clicks, MICRO_BATCH):
        count = min(MICRO_BATCH, clicks - begin)
        numbers, owners = zipf(random, items, count), random.integers(0, users, count)
        learner.learn([
            Click(user_id=user_of(u), item_id=item_of(i), timestamp=at + begin + n)
            for n, (u, i) in enumerate(zip(owners.tolist(), numbers.tolist(), strict=True))
        ])
