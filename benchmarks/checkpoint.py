"""What checkpoints of a large state cost: how long clicks wait, bytes written, and how long loading takes.

    python -m benchmarks.checkpoint [--items 1000000] [--users 100000] [--clicks 1000] [--times 3]

The state is made up: tables, moments, histories and vectors as of a long stream whose items are as unequal as Zipf's
law says. A full checkpoint is written, and then, each time after so many clicks, the next one. Each line has what the
loop waits, until when the checkpoint is there, and what it wrote to the disk; then the slowest micro-batch of 100
clicks meanwhile. Run it with PYTHONPATH set to a checkout of an earlier version to measure that.
"""

import argparse
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.settings import Settings, load_settings
from online.learner.facts.tables import Table, Tables, load_table
from online.learner.learner import Learner
from online.worker.checkpoint import Checkpoints
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
    store.tables = Tables(*(filled_table(random, table, rows) for table in store.tables))
    counted = store.items
    counted.clicks[1:rows] = random.pareto(1.0, rows - 1) * 5
    counted.first_at[1:rows] = random.uniform(0, 1e6, rows - 1)
    counted.last_at[1:rows] = 1e6
    ages = random.uniform(0, 1e6, (rows - 1, 1))  # clicks since the latest of each item
    counted.popular[1:rows] = np.exp2(-ages / np.array(settings.popularity_half_lives))
    counted.popular[counted.popular < 1e-12] = 0
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


def filled_table(random: np.random.Generator, table: Table, rows: int) -> Table:
    """Returns a table whose rows hold a few others each, some of them many."""
    used = np.zeros(rows, np.int32)
    used[1:] = np.minimum(table.held, random.pareto(1.0, rows - 1) * 3)
    others, counts = [], []
    for begin in range(1, rows, 65_536):
        pairs = int(used[begin : begin + 65_536].sum())
        others.append(random.integers(1, rows, pairs).astype(np.int32))
        counts.append((random.integers(1, 9, pairs) / np.sqrt(random.integers(1, 5, pairs))).astype(np.float32))
    arrays: dict[str, NDArray[Any]] = {"used": used, "others": np.concatenate(others), "counts": np.concatenate(counts)}
    arrays["totals"] = np.bincount(np.repeat(np.arange(rows), used), arrays["counts"], rows)
    return load_table(table, arrays)


def zipf(random: np.random.Generator, items: int, count: int) -> Any:
    """Numbers below `items` (count,), whose chances fall nearly as 1 / rank."""
    return np.minimum(items - 1, np.exp(random.uniform(0, np.log(items), count)).astype(np.int64) * 7919 % items)


def item_of(number: int) -> str:
    return f"item-{number}"


def user_of(number: int) -> str:
    return f"user-{number}"


def learn(learner: Learner, clicks: int, items: int, users: int, seed: int) -> Iterator[float]:
    """Learns clicks, a micro-batch each time. Yields how long each took, in seconds."""
    random = np.random.default_rng(seed)
    for start in range(0, clicks, MICRO_BATCH):
        count = min(MICRO_BATCH, clicks - start)
        numbers, owners = zipf(random, items, count).tolist(), random.integers(0, users, count).tolist()
        batch = [
            Click(user_id=user_of(owner), item_id=item_of(number), timestamp=BEGAN + 10_000 * seed + start + n)
            for n, (owner, number) in enumerate(zip(owners, numbers, strict=True))
        ]
        began = time.monotonic()
        learner.learn(batch)
        yield time.monotonic() - began


def begun(checkpoints: Checkpoints, learner: Learner) -> Callable[[], Any]:
    """Does what the worker's loop does: begins a checkpoint, and returns what another thread does."""

    def capture() -> tuple[dict[str, Any], dict[str, Any]]:
        arrays, state = learner.to_state()
        return arrays, {"learner": state}

    if not hasattr(checkpoints, "begin_in_copy"):  # an earlier version
        complete: Callable[[], Any] = checkpoints.begin(*capture())
        return complete
    learner.ranker.popular_list()
    return checkpoints.begin_in_copy(capture)


@contextmanager
def memory_of_copy() -> Iterator[list[int]]:
    """Yields a list whose last number is the most memory that a copy of this process had of its own, in bytes."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for children in Path("/proc/self/task").glob("*/children"):
                for child in children.read_text().split():
                    try:
                        lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
                    except OSError:  # it has just ended
                        continue
                    private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
                    most.append(max(most[-1], 1024 * private))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def measure(checkpoints: Checkpoints, learner: Learner, what: str, meanwhile: Iterator[float]) -> None:
    """Writes one checkpoint, while the learner goes on, and prints a line."""
    began = time.monotonic()
    complete = begun(checkpoints, learner)
    waited = time.monotonic() - began
    saved: list[Any] = []
    with memory_of_copy() as memory:
        thread = threading.Thread(target=lambda: saved.append(complete()))
        thread.start()
        slowest = 0.0
        while thread.is_alive() and (took := next(meanwhile, None)) is not None:
            slowest = max(slowest, took)
        thread.join()
    written = getattr(saved[0], "written_bytes", saved[0].size_bytes)
    print(
        f"{what:<12} {waited:>8.2f} {saved[0].seconds:>8.1f} {written / 1e6:>10.1f} {slowest:>10.2f} "
        f"{memory[-1] / 1e6:>12.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--clicks", type=int, default=1_000)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = load_settings(items_held=options.items, users_held=options.users, data_dir=folder)
        learner = filled(settings, options.items, options.users)
        gc.collect()
        gc.freeze()  # as the worker does
        quiet = list(learn(learner, options.clicks, options.items, options.users, seed=1))
        print(f"a micro-batch of {MICRO_BATCH} clicks without a checkpoint: at most {max(quiet):.2f} s")
        checkpoints = Checkpoints(folder / "checkpoints", 3)
        print(f"{'':<12} {'waits s':>8} {'there s':>8} {'written MB':>10} {'slowest s':>10} {'of copy MB':>12}")
        for number in range(1 + options.times):
            meanwhile = learn(learner, options.clicks, options.items, options.users, seed=2 + number)
            what = "full" if number == 0 or not hasattr(checkpoints, "is_increment") else "increment"
            measure(checkpoints, learner, what, meanwhile)
            for _ in meanwhile:
                pass
        for _ in range(options.times):
            began = time.monotonic()
            loaded = checkpoints.load()
            print(f"loaded in {time.monotonic() - began:.1f} s")
            del loaded


if __name__ == "__main__":
    main()
