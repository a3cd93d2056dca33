"""What the worker holds when every limit is reached: each part filled to its limit, its growth of memory measured.

    python -m benchmarks.bounds [--users 100000] [--items 200000]

Resident memory is read before and after each part is filled; beside it stands what the formula in the code says. The
last rows are what a checkpoint of all this and the embedded log take on disk.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from online.checkpoint import Checkpoints
from online.learner import Learner
from online.seen import SeenEvents
from online.settings import load_settings
from online.status import memory_mb_max
from stream.events import Click, encode
from stream.log import LogProducer


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def row(what: str, measured_bytes: float, formula_bytes: float | None = None) -> None:
    formula = "" if formula_bytes is None else f"{formula_bytes / 1e6:>9.1f} {measured_bytes / formula_bytes:6.2f}"
    print(f"{what:<58} {measured_bytes / 1e6:>9.1f} {formula}", flush=True)


def measured(what: str, formula_bytes: float, fill: Callable[[], object]) -> None:
    before = resident_bytes()
    kept = fill()
    row(what, resident_bytes() - before, formula_bytes)
    del kept


def fill_memories(learner: Learner) -> None:
    learner.states.memory.take([f"user-{n}" for n in range(learner.settings.memory_users_held)])
    for tensor in learner.states.memory.state_tensors().values():
        if tensor.dim():
            tensor.fill_(1)


def on_disk(learner: Learner, folder: Path) -> None:
    arrays, state = learner.to_state()
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
    row("the process with everything imported", resident_bytes())
    before = resident_bytes()
    learner = Learner(settings)
    fill_memories(learner)
    grown, held = resident_bytes() - before, settings.memory_users_held
    each = learner.states.memory.bytes_per_user
    row(f"the Reformer's memories: {held:,} users x {each:,} B", grown, each * held)
    H, M, D = settings.history_max, settings.successors_held, settings.width

    def histories() -> None:
        slots = learner.histories.slots([f"user-{n}" for n in range(options.users)])
        for _ in range(H):
            learner.histories.append(slots, 1, 0, 1.7e9)

    def items() -> None:
        for n in range(options.items):
            learner.vocabulary.observe(f"item-{n}", 1.7e9 + n)
        learner._make_room()
        counts = learner.counts
        for array in (counts.popularity, counts.follow_totals, counts.followers, counts.follow_counts):
            np.add(array, 1, out=array)

    rows = len(learner.trainer.network.items)
    while rows <= options.items:
        rows *= 2
    each_user, each_row = 13 * H + 64 + 16, 4 * D + 4 + 8 + 8 * M + 12
    measured(f"histories: {options.users:,} users x {each_user:,} B, ids besides", each_user * options.users, histories)
    measured(f"items: {rows:,} rows x {each_row} B, ids besides", each_row * rows, items)
    seen = SeenEvents(settings.event_ids_held)
    count = settings.event_ids_held
    ids = (f"event-{n}" for n in range(count))
    measured(f"event ids: {count:,} x 120 B", 120 * count, lambda: sum(map(seen.add, ids)))
    with tempfile.TemporaryDirectory() as folder:
        on_disk(learner, Path(folder))


if __name__ == "__main__":
    main()
