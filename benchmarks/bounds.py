"""What the worker holds when every limit is reached: each part filled to its limit, its growth of memory measured.

    python -m benchmarks.bounds [--users 100000] [--items 200000]

Resident memory is read before and after each part is filled; beside it stands what the formula in the code says. The
last rows are what a checkpoint of all this and the embedded log take on disk.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from online.config.settings import Settings, load_settings
from online.learner.arrays import joined
from online.learner.facts.tables import Table, Tables, load_table
from online.learner.learner import Learner
from online.learner.ranking_model import VECTORS_WIDTH
from online.learner.seen_items import SeenItems
from online.lifecycle.shadow import ShadowEvaluation
from online.worker.checkpoint import Checkpoints
from online.worker.dedup import SeenEvents
from online.worker.status import memory_mb_max
from stream.events import Click, encode
from stream.log import LogProducer


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def row(what: str, measured_bytes: float | None, formula_bytes: float | None = None) -> None:
    measured = "" if measured_bytes is None else f"{measured_bytes / 1e6:.1f}"
    formula = "" if formula_bytes is None else f"{formula_bytes / 1e6:.1f}"
    ratio = f"{measured_bytes / formula_bytes:.2f}" if measured_bytes and formula_bytes else ""
    print(f"{what:<58} {measured:>9} {formula:>9} {ratio:>6}".rstrip(), flush=True)


def measured(what: str, formula_bytes: float, fill: Callable[[], object]) -> None:
    before = resident_bytes()
    kept = fill()
    row(what, resident_bytes() - before, formula_bytes)
    del kept


def touch(arrays: Iterable[Any]) -> None:
    """Pages of zeros that no process has written to need not be resident."""
    for array in arrays:
        if isinstance(array, torch.Tensor):
            array.fill_(1) if array.dim() else None
        elif isinstance(array, np.ndarray):
            array.fill(1)
        else:
            touch(array)


def start(settings: Settings) -> Learner:
    """A learner, with what it allocates at once filled."""
    before = resident_bytes()
    learner = Learner(settings)
    store, replay = learner.store, learner.replay
    learner.states.memory.take([f"user-{n}" for n in range(settings.memory_users_held)])
    store.take_own_slots([f"user-{n}" for n in range(settings.recall_users_held)])
    touch(learner.states.memory.state_tensors().values())
    touch([store.index, store.log, store._scratch.moment_stamps, learner.moment_states])
    touch([replay.features, replay.present, torch.from_numpy(replay.user_hashes)])
    store.log.total[:], replay.filled = len(store.log.items), replay.held
    fill_guard(learner)
    reservoir = learner.reservoir
    for part in (reservoir._rows, reservoir._types, reservoir._times):
        part.fill(1)
    reservoir.offered = reservoir.held
    measured_bytes = resident_bytes() - before

    K, F = replay.features.shape[1:]
    B, R = settings.recall_buckets, settings.recall_ring
    parts = [
        ("the Reformer's memories: users", settings.memory_users_held, learner.states.memory.bytes_per_user),
        ("recall: users", settings.recall_users_held, 2 * 8 * B * (R + 1)),
        ("recall: all users', buckets", settings.world_buckets, 8 * (settings.world_ring + 1)),
        # The log's parts, a mark, and what the guard notes of each; the state's width in float16.
        ("recall: moments", settings.moments_held, 33 + 8 + 1 + 2 * settings.width),
        ("replay: clicks", settings.replay_held, 2 * K * F + K + 8),
        ("the abuse filter: users, items, pairs", 3 * settings.abuse_keys_held, 24),
        ("excerpts of histories: clicks", settings.finetune_reservoir_held * settings.history_max, 13),
    ]
    for what, count, each in parts:
        row(f"{what}: {count:,} x {each:,} B", None, count * each)
    row("all of these, filled", measured_bytes, sum(count * each for _, count, each in parts))
    return learner


def fill_guard(learner: Learner) -> None:
    guard = learner.abuse_filter
    random = np.random.default_rng(0)
    for buckets in guard._buckets().values():
        buckets._keys[:] = random.integers(1, 2**62, buckets._keys.shape)
        buckets._levels.fill(1)
        buckets._at.fill(1.7e9)
    guard._flagged.fill(True)


def fill_shadow(learner: Learner) -> list[ShadowEvaluation]:
    """A candidate, and the live weights' predecessor."""
    settings = learner.settings
    gates = (settings.candidate_gate, settings.rollback_gate)
    return [ShadowEvaluation(learner, learner.weights.copy(), gate, facts={}) for gate in gates]


def fill_histories(learner: Learner) -> None:
    slots = learner.histories.slots([f"user-{n}" for n in range(learner.settings.users_held)])
    for _ in range(learner.settings.history_max):
        learner.histories.append(slots, 1, 0, 1.7e9)


def fill_items(learner: Learner) -> None:
    for n in range(learner.settings.items_held):
        learner.vocabulary.observe(f"item-{n}", 1.7e9 + n)
    learner.make_room()
    store = learner.store
    scratch = store._scratch
    touch([*store.items[:4], store.items.blocked, learner.lift._counts])
    store.tables = Tables(*map(full_table, store.tables))
    touch([scratch.stamps, scratch.places, scratch.banned, scratch.near_stamps, scratch.near_sums, scratch.taste_sums])


def full_table(table: Table) -> Table:
    """Returns a table in which each row has all the neighbours that it may have."""
    used = np.full(len(table.used), table.held, np.int32)
    pairs = int(used.sum())
    others, counts = np.ones(pairs, np.int32), np.ones(pairs, np.float32)
    return load_table(table, {"used": used, "totals": table.totals + table.held, "others": others, "counts": counts})


def fill_buffers(learner: Learner) -> None:
    """What is found for two micro-batches that hold as much as they may."""
    for _ in range(2):
        for kind, queries in enumerate((learner.settings.micro_batch_max, queries_max(learner.settings))):
            touch(learner.store._buffer(kind, queries))
        learner.store._turn = 1 - learner.store._turn


def fill_seen_items(settings: Settings) -> SeenItems:
    """Every user has as many of the items; those with low rows are more popular."""
    seen, random = SeenItems(settings.users_held, settings.seen_pairs_max), np.random.default_rng(0)
    for n in range(settings.users_held):
        rows = settings.items_held * random.random(settings.seen_pairs_max // settings.users_held) ** 2
        seen.add(f"user-{n}", rows.astype(np.int64).tolist())
    return seen


def bytes_per_row(settings: Settings) -> int:
    """Of what is kept for each row of the vocabulary, ids and neighbours besides."""
    P = len(settings.popularity_half_lives)
    tables = 5 * (4 + 1 + 4 + 8)  # of the five tables: where each row's slab is, its size, what is in use, totals
    counts = 4 + 8 + 8 + 8 * P + 1 + 8  # clicks, first and last time, popularity; whether it may be listed; lift
    marks = 4 * 8 + 2 * 4
    return weights_per_row(settings) + tables + counts + marks


def neighbours_max(settings: Settings) -> int:
    """Of one row, in all five tables."""
    M = settings.successors_held
    return M + 3 * max(8, M // 2) + settings.neighbours_held


def bytes_per_query(learner: Learner) -> int:
    """Of the buffers, for one question with as many candidates and moments as there may be."""
    store = learner.store
    return store._candidates_max * (4 + 4 * store.width) + sum(store._hits_max) * 16


def weights_per_row(settings: Settings) -> int:
    """Of one version's weights."""
    network = 4 * settings.width + 4 + 8  # vector, bias, and Adagrad's sums of both
    return network + 4 * VECTORS_WIDTH + 4 + 4  # recall's, likewise; its biases are not learned


def queries_max(settings: Settings) -> int:
    """What one micro-batch's lists ask: each at several moments, and twice the popular list."""
    return settings.micro_batch_max * settings.expected_views_max + 2


def on_disk(learner: Learner, trials: list[ShadowEvaluation], folder: Path) -> None:
    arrays, state = learner.to_state()
    for name, trial in zip(("candidate", "predecessor"), trials, strict=True):
        arrays |= joined({name: trial.to_state()[0]})
    saved = Checkpoints(folder, 1).save(arrays, {"learner": state})
    row("the process at its peak, while writing a checkpoint", 1e6 * memory_mb_max())
    row(f"a checkpoint on disk ({saved.seconds or 0:.1f} s)", saved.size_bytes)
    producer, written = LogProducer(folder / "log.db"), 100_000
    for n in range(written):
        click = Click(user_id=f"user-{n % 1000}", item_id=f"item-{n}", timestamp=1.7e9 + n, event_id=f"{n:032x}")
        producer.send("clicks", key=click.user_id.encode(), value=encode(click))
    producer.close()
    size, held = sum(path.stat().st_size for path in folder.glob("log.db*")), learner.settings.log_records_max
    row(f"the embedded log on disk, at {held:,} clicks", size / written * held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=200_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = load_settings(users_held=options.users, items_held=options.items)
    print(f"{'':<58} {'MB':>9} {'formula':>9} {'ratio':>6}")
    # A first learner imports what is imported on first use.
    Learner(
        load_settings(memory_users_held=128, recall_users_held=128, world_buckets=2, moments_held=128, replay_held=0)
    )
    row("the process with everything imported", resident_bytes())
    learner = start(settings)

    def fill(what: str, count: int, each: int, filling: Callable[[Learner], None]) -> None:
        measured(f"{what}: {count:,} x {each:,} B", count * each, lambda: filling(learner))

    fill("histories: users, ids besides", settings.users_held, 21 * settings.history_max + 64, fill_histories)
    rows = max(settings.items_held + 1, len(learner.store))
    each = bytes_per_row(settings) + 8 * neighbours_max(settings)
    fill("items: rows with all neighbours, ids besides", rows, each, fill_items)
    asked = 2 * (settings.micro_batch_max + queries_max(settings))
    fill("what is found, two micro-batches: questions", asked, bytes_per_query(learner), fill_buffers)
    trials: list[ShadowEvaluation] = []
    what = "weights in the shadow, two sets: rows"
    each = 2 * weights_per_row(settings)
    fill(what, rows, each, lambda learner: trials.extend(fill_shadow(learner)))
    of_each = settings.seen_pairs_max // settings.users_held
    what = f"seen items (exclude_seen), {of_each} of a user: {settings.seen_pairs_max:,} x 5.3 B"
    measured(what, 5.3 * settings.seen_pairs_max, lambda: fill_seen_items(settings))
    seen = SeenEvents(settings.event_ids_held)
    count = settings.event_ids_held
    ids = (f"event-{n}" for n in range(count))
    measured(f"event ids: {count:,} x 120 B", 120 * count, lambda: sum(map(seen.add, ids)))
    with tempfile.TemporaryDirectory() as folder:
        on_disk(learner, trials, Path(folder))


if __name__ == "__main__":
    main()
