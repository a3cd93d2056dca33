"""What items, users and clicks cost: memory, checkpoint and CPU time at several sizes, and a formula for other sizes.

    python -m benchmarks.scale [--sizes 200000x100000,100000x100000,...] [--clicks 3000] [--lists 100]
    python -m benchmarks.scale --formula

Each size (items x users) has a process of its own, one after the other, whose learner is made up as in
benchmarks/checkpoint.py, with every limit just as high as needed. Its line has the arrays' bytes as counted and as the
formula says, the memory that the process gained, the most that capturing a checkpoint added to it, the bytes captured
(before compression), and CPU time, as a ratio to that of a learner at the default limits, which takes turns with it
(median and quartiles).
`--formula` measures nothing: it says what other sizes would take.
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.bounds import bytes_per_row, resident_bytes, weights_per_row
from benchmarks.checkpoint import MICRO_BATCH, OF_A_USER, filled, learn, user_of
from model.vocabulary import grown
from online.config.settings import Settings, load_settings
from online.learner.facts.store import ROWS_MIN
from online.learner.history import SERVED
from online.learner.learner import Learner

DEFAULT = 200_000, 100_000  # items and users that are held
SIZES = "200000x100000,100000x100000,1000000x100000,100000x300000,100000x1000000,1000000x1000000"
# Of Python's own, measured with ids of about ten letters: the id, and what finds it and keeps its turn.
OBJECTS_PER_ITEM, OBJECTS_PER_USER = 192, 190
TEXT_PER_ITEM, TEXT_PER_USER = 40, 14  # in a checkpoint's state: the id, and of an item its row and its latest click
PROCESS = 356e6  # bytes with everything imported (benchmarks/bounds.py)
# Of arrays that do not grow, at the default settings; in a checkpoint once the Reformer's memories are in use.
CONSTANT, CONSTANT_SAVED = 138e6, 121e6
PAIRS_PER_ITEM = 40  # as in the made-up state; full rows have 288
PLACES_PER_PAIR = 1.25  # likewise: slabs that are not full, and room for an arena to grow
SLOTS_MIN = 1_024  # histories that there is room for at first
FEW_USERS = 1_000  # whose attention memories are all held


class Size(NamedTuple):
    """How much there is of what grows."""

    items: int
    users: int
    moments: int  # clicks in the log, of all users
    clicks: int  # in all histories together
    pairs: int  # in use in the five neighbour tables
    places: int  # for them


class Term(NamedTuple):
    """One summand of the formula: a number of things, and the bytes of each."""

    what: str
    setting: str  # that limits the number
    held: int  # in memory, where room is made beforehand
    memory: float  # bytes of each
    saved: int = 0  # in a checkpoint
    checkpoint: float = 0  # bytes of each, uncompressed


def formula(settings: Settings, size: Size) -> list[Term]:
    """Returns the bytes of the arrays that grow, in memory and in a checkpoint, by what they grow with."""
    H, M, P = settings.history_max, settings.moments_held, len(settings.popularity_half_lives)
    rows = min(grown(size.items + 1, ROWS_MIN), max(settings.items_held + 1, ROWS_MIN))
    users = min(size.users, settings.users_held)
    slots = min(settings.users_held, grown(users, min(SLOTS_MIN, settings.users_held)))
    of_moment = 33 + 2 * (settings.width if settings.reformer and settings.deep_state else 0)
    of_user = 8 + 4 * SERVED + 16 + 8
    of_row = weights_per_row(settings) + 5 * (4 + 8) + 4 + 8 + 8 + 8 * P + 8
    moments = min(size.moments, M)
    return [
        # The row of an item's attributes, and whether it is unavailable.
        Term("rows of items", "items_held", rows, bytes_per_row(settings) + 4 + 1, rows, of_row),
        Term("pairs of items", "items_held", size.places, 8, size.pairs, 8),
        Term("users", "users_held", slots, 21 * H + of_user, users, 8 + of_user),
        Term("clicks in histories", "users_held", 0, 0, size.clicks, 21),
        Term("moments", "moments_held", M + 2 * settings.micro_batch_max, of_moment + 9, moments, of_moment),
    ]


def constant(settings: Settings, learner: Learner) -> float:
    """Returns the bytes of arrays that do not grow with items, users or moments: all but the formula's."""
    nothing = Size(0, 0, 0, 0, 0, 0)
    return array_bytes(learner) - sum(term.held * term.memory for term in formula(settings, nothing))


def memory_bytes(terms: list[Term]) -> float:
    return sum(term.held * term.memory for term in terms)


def checkpoint_bytes(terms: list[Term]) -> float:
    return sum(term.saved * term.checkpoint for term in terms)


def array_bytes(root: object) -> int:
    """Returns the bytes of all arrays and tensors that can be reached from an object, each memory once."""
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | type | None):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            sizes[storage.data_ptr()] = max(storage.nbytes(), sizes.get(storage.data_ptr(), 0))
            waiting += [one.grad] if one.is_leaf and one.grad is not None else []
        elif isinstance(one, np.ndarray):
            whole = one
            while isinstance(whole.base, np.ndarray):
                whole = whole.base
            at = whole.__array_interface__["data"][0]
            sizes[at] = max(whole.nbytes, sizes.get(at, 0))
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += [each for each in one if not isinstance(each, str)]
        elif type(one).__module__.split(".")[0] in ("online", "model", "torch", "collections"):
            waiting += getattr(one, "__dict__", {}).values()
            waiting += [getattr(one, name, None) for name in getattr(type(one), "__slots__", ())]
    return sum(sizes.values())


def size_of(learner: Learner) -> Size:
    """What a learner holds."""
    histories, store = learner.histories, learner.store
    return Size(
        learner.vocabulary.rows - 1,
        len(histories),
        store.usage()[0],
        int(histories.lengths(np.arange(len(histories))).sum()),
        sum(int(table.used.sum()) for table in store.tables),
        sum(len(table.others) for table in store.tables),
    )


# Measured


class Peak:
    """The most memory that this process had, beyond what it had when the block began."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self.before = resident_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        status = Path("/proc/self/status").read_text()
        self.bytes = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        self.bytes -= self.before


def cpu_ms(step: Callable[[], object]) -> float:
    began = time.process_time()
    step()
    return 1e3 * (time.process_time() - began)


def each_click(learner: Learner, clicks: int, items: int, users: int) -> Iterator[float]:
    """CPU time of a click, micro-batch by micro-batch, in ms."""
    steps = learn(learner, clicks, items, users, seed=1)
    while True:
        began = time.process_time()
        if next(steps, None) is None:
            return
        yield 1e3 * (time.process_time() - began) / MICRO_BATCH


def spread(values: list[float]) -> str:
    """Median, and quartiles in brackets."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f}, {high:.2f})"


def ratios(values: list[float], others: list[float]) -> str:
    """Median of `values`, and that of their ratios to `others`, which took turns with them, with quartiles."""
    each = spread([one / other for one, other in zip(values, others, strict=True)])
    return f"{np.median(values):.2f} ms of CPU time, {each} times that at the default limits"


def turns(learners: Sequence[tuple[Learner, int, int]], clicks: int, users_max: int) -> str:
    """CPU time of clicks of at most so many users; the learners take turns. A first third warms up."""
    steps = [each_click(one, clicks, items, min(users, users_max)) for one, items, users in learners]
    taken = list(zip(*steps, strict=True))
    taken = taken[len(taken) // 3 :]
    return ratios([one for one, _ in taken], [other for _, other in taken])


def measure(items: int, users: int, clicks: int, lists: int) -> None:
    """Prints what a learner of one size takes."""
    torch.set_num_threads(1)
    small = load_settings(items_held=10_000, users_held=1_000)
    warm = filled(small, 10_000, 1_000)  # imports and compiles
    list(learn(warm, 2 * MICRO_BATCH, 10_000, 1_000, seed=1))
    warm.rank(warm.histories.users()[:10])
    warm.store.forget_rows([1])
    del warm
    default = filled(load_settings(), *DEFAULT)
    gc.collect()
    settings = load_settings(items_held=items, users_held=users)
    before = resident_bytes()
    learner = filled(settings, items, users)
    gc.collect()
    gc.freeze()  # as the worker does
    print(f"{items:,} items, {users:,} users, {OF_A_USER} clicks of each")
    gained, counted = resident_bytes() - before, array_bytes(learner)
    size = size_of(learner)
    terms = formula(settings, size)
    fixed = constant(settings, Learner(settings))
    expected = fixed + memory_bytes(terms)
    print(f"  memory: arrays {counted / 1e6:,.0f} MB, formula {expected / 1e6:,.0f} MB, gained {gained / 1e6:,.0f} MB")
    learners = ((learner, items, users), (default, *DEFAULT))
    print(f"  a click: {turns(learners, clicks, users)}", flush=True)
    print(f"  the same of {FEW_USERS:,} users who come back: {turns(learners, clicks, FEW_USERS)}", flush=True)
    names = [user_of(number) for number in np.random.default_rng(2).integers(0, min(users, DEFAULT[1]), lists).tolist()]
    each = [[cpu_ms(lambda one=one, name=name: one.rank([name])) for one, _, _ in learners] for name in names]  # type: ignore[misc]
    print(f"  a list asked for: {ratios([one for one, _ in each], [other for _, other in each])}", flush=True)
    with Peak() as peak:
        began = time.process_time()
        arrays, _ = learner.to_state()
        took = time.process_time() - began
    saved = sum(array.nbytes for array in arrays.values())
    of_terms = checkpoint_bytes(formula(settings, size_of(learner)))
    print(
        f"  a checkpoint: arrays {saved / 1e6:,.0f} MB, of the formula {of_terms / 1e6:,.0f} MB and the rest "
        f"constant; capturing takes {took:.1f} s of CPU time and {peak.bytes / 1e6:,.0f} MB more",
        flush=True,
    )
    del arrays
    freed = list(range(1, 1 + settings.items_held // 64))
    with Peak() as peak:
        took = cpu_ms(lambda: (learner.histories.forget_rows(freed), learner.store.forget_rows(freed)))
    print(
        f"  room for {len(freed):,} new items, where all rows are in use: {took:,.0f} ms of CPU time, "
        f"{peak.bytes / 1e6:,.0f} MB more",
        flush=True,
    )


# Said by the formula


def each_line(settings: Settings) -> Iterator[str]:
    """Rows of a table: the bytes of each thing, with the default sizes of everything else."""
    for term in formula(settings, Size(0, 0, 0, 0, 0, 0)):
        memory = f"{term.memory:,.0f}" if term.memory else ""
        yield f"| {term.what} | `{term.setting}` | {memory} | {term.checkpoint:,.0f} |"


def size_lines() -> Iterator[str]:
    """Rows of a table: GB of one worker's memory, and in brackets of a checkpoint, for sizes that were not measured."""
    users = [10**n for n in range(5, 9)]
    for items in (10**5, 10**6, 10**7):
        parts = [whole(load_settings(items_held=items, users_held=of_users), items, of_users) for of_users in users]
        yield (
            f"| {items:,} | " + " | ".join(f"{memory / 1e9:,.1f} ({disk / 1e9:,.1f})" for memory, disk in parts) + " |"
        )


def whole(settings: Settings, items: int, users: int) -> tuple[float, float]:
    """Returns the bytes of one worker's memory between checkpoints, and of a checkpoint before it is compressed."""
    pairs = PAIRS_PER_ITEM * items
    size = Size(items, users, settings.moments_held, OF_A_USER * users, pairs, int(PLACES_PER_PAIR * pairs))
    terms = formula(settings, size)
    memory = PROCESS + CONSTANT + memory_bytes(terms) + OBJECTS_PER_ITEM * items + OBJECTS_PER_USER * users
    disk = CONSTANT_SAVED + checkpoint_bytes(terms) + TEXT_PER_ITEM * items + TEXT_PER_USER * users
    return memory, disk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES, help="items x users, comma-separated")
    parser.add_argument("--clicks", type=int, default=3_000)
    parser.add_argument("--lists", type=int, default=100)
    parser.add_argument("--formula", action="store_true")
    options = parser.parse_args()
    if options.formula:
        print("\n".join([*each_line(load_settings()), "", *size_lines()]))
        return
    sizes = [tuple(int(part) for part in one.split("x")) for one in options.sizes.split(",")]
    if len(sizes) == 1:
        measure(*sizes[0], options.clicks, options.lists)
        return
    for items, users in sizes:
        command = [sys.executable, "-m", "benchmarks.scale", "--sizes", f"{items}x{users}"]
        command += ["--clicks", str(options.clicks), "--lists", str(options.lists)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
