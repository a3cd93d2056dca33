"""Compiles all loops before they are needed: `python -m online.learner.facts.warm`.

The compiled loops are cached on disk, for these sources and this kind of processor (jit.py, beside this file). So this
is done once, when an environment or an image is built; else at the first start of a worker, which logs it.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import torch
from numba.core.registry import CPUDispatcher, cpu_target

from online.config.settings import Settings
from online.learner.batches import Impression
from online.learner.delta import warm as warm_delta
from online.learner.facts.jit import cache_folder
from online.learner.learner import Learner
from stream.events import Click
from stream.items import Item
from stream.user_ids import digest_of
from stream.users import User

_NOT_KEPT = f"but they cannot be kept in {cache_folder()}: name a folder with NUMBA_CACHE_DIR"
BEFOREHAND = "python -m online.learner.facts.warm"
BEGAN = 1_700_000_000.0  # any time will do
# Small, but nothing is left out: other sizes of arrays need no other compiled form, other types would.
TINY: dict[str, Any] = {
    "device": "cpu",
    "layers": ("lsh", "local"),
    "width": 8,
    "heads": 2,
    "rounds": 1,
    "buckets": 2,
    "window": 4,
    "online_history": 8,
    "history_max": 16,
    "users_held": 32,
    "items_held": 24,
    "list_filter": None,
    "successors_held": 2,
    "neighbours_held": 2,
    "popularity_half_lives": (10, 100),
    "moments_held": 400,
    "recall_latest": 4,
    "recall_users_held": 32,
    "recall_buckets": 4,
    "recall_ring": 4,
    "world_buckets": 8,
    "world_ring": 8,
    "ranker_hidden": 8,
    "replay_held": 64,
    "negatives": 8,
    "micro_batch_max": 32,
    "step_clicks": 16,
    "candidates_kept": 4,
    "list_size": 10,
    "abuse_filter": True,
    "abuse_repeats_at_once": 2,
    "reformer": True,
    "deep_state": True,
    "users_topic": "users",
}


def is_warm() -> bool:
    """Whether all loops are compiled already, or need not be."""
    return not _compiles() or _mark().exists()


def warm() -> float:
    """Compiles whatever is not compiled yet -> seconds that it took."""
    began = time.monotonic()
    use_all_loops()
    with suppress(OSError):  # then nothing was kept either, and each process compiles for itself
        _mark().parent.mkdir(parents=True, exist_ok=True)
        _mark().touch()
    _empty_old_folders()
    return time.monotonic() - began


def warm_if_cold(say: Callable[[str], None]) -> None:
    """Compiles all loops now if they are not, and says so before; else it says nothing and takes no time."""
    if is_warm():
        return
    say(f"compiling loops for this machine, one to two minutes; done once (beforehand: {BEFOREHAND})")
    warm()
    if not is_warm():
        say(f"loops compiled, {_NOT_KEPT}")


def loops() -> Iterator[tuple[str, CPUDispatcher]]:
    """All functions that numba has to do with, by name."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("online."):
            for of, function in vars(module).items():
                if isinstance(function, CPUDispatcher) and function.py_func.__module__ == name:
                    yield f"{name}.{of}", function


def use_all_loops() -> None:
    """A few clicks are learned, as a worker would, with each setting that sends other types through the loops."""
    warm_delta()
    with tempfile.TemporaryDirectory() as folder:
        for changed in ({"exclude_seen": False}, {"exclude_seen": True, "event_weights": "click=1,return=-1"}):
            _use(Learner(Settings(**TINY | changed, data_dir=Path(folder))))


def _use(learner: Learner) -> None:
    users = [f"u{n}" for n in range(5)]
    learner.put_items([Item(item_id=f"i{n}", title=f"item {n}", tags=("all",)) for n in range(3)])
    assert learner.groups is not None
    for user in users:
        learner.groups.put(User(user_id=user, tags=("all",)))

    def clicks(start: int, count: int) -> list[Click]:
        """Every user clicks on one item after the other, with some that come again and, in time, more than are held."""
        return [
            Click(user_id=users[n % 5], item_id=f"i{n if n % 2 else n % 7}", timestamp=BEGAN + 600 * n)
            for n in range(start, start + count)
        ]

    for start in range(0, 96, 32):
        learner.learn(clicks(start, 32))
    robot = [Click(user_id="robot", item_id="i1", timestamp=BEGAN + 60_000 + n) for n in range(24)]
    looked = Impression("u1", 8, BEGAN + 60_010, learner.clock.now)
    learner.learn(robot, [looked])
    learner.learn(clicks(101, 8), train=False)
    learner.rank(users[:2])
    learner.train_again(clicks(101, 8))
    learner.forget(digest_of(users[0]))


def _mark() -> Path:
    """A file that stands where everything is compiled for these sources, this Python and this kind of processor."""
    target = (sys.version, *cpu_target.target_context.codegen().magic_tuple())
    digest = hashlib.sha256(repr(target).encode()).hexdigest()[:16]
    return cache_folder() / f"warm-{digest}"


def _compiles() -> bool:
    return not numba.config.DISABLE_JIT  # type: ignore[attr-defined]


def _empty_old_folders() -> None:
    """What was compiled from other sources goes. The folders stay: a process of these may still run and write there."""
    folder = cache_folder()
    for old in folder.parent.glob("kernels-*"):
        if old != folder:
            for path in old.rglob("*"):
                if path.is_file():
                    path.unlink(missing_ok=True)


def main() -> None:
    """Says in one line what was done."""
    torch.set_num_threads(1)
    if not _compiles():
        print("NUMBA_DISABLE_JIT is set: loops run as plain Python, and nothing is compiled")
    elif is_warm():
        print(f"loops were compiled before, in {cache_folder()}")
    else:
        seconds = warm()
        print(f"loops compiled in {seconds:.0f} s, " + (f"in {cache_folder()}" if is_warm() else _NOT_KEPT))


if __name__ == "__main__":
    main()
