"""The same clicks give the same weights and the same lists, bit for bit, from one version of the code to the next.

Two seeded runs with kills: on the embedded parts, and on parts in memory, where even the clock is given. Floats differ
a little from one kind of processor to another; so digests are compared where the kind is known (digest.json), and
elsewhere the lists have to be nearly the same. Who changes what is learned on purpose records it anew:

    python -m tests.online.test_digest
"""

import hashlib
import json
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from online.config.settings import Settings
from online.evaluation.town import Town
from online.worker.checkpoint import Checkpoints
from online.worker.connections import open_producer, prepare_topics
from online.worker.main import run_worker
from stream.events import encode
from tests.online.conftest import SMALL, WorkerHarness

RECORDED = Path(__file__).with_name("digest.json")
CLICKS = 1_500
KILLS = {
    ("learn", 9),
    ("lists", 30),
    ("shadow", 41),
    ("checkpoint_manifest", 12),
    ("commit", 20),
}  # step, its n-th call
LISTS_ALIKE_MIN = 0.9  # share of the same items, where floats differ
LEARNING = {**SMALL, "gate": True, "drift_delta": 0.002}


class KilledError(BaseException):
    """Nothing but the test catches it."""


class Killer:
    """Counts the calls of all steps, and kills at those of KILLS, once each."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.left = set(KILLS)

    def __call__(self, step: str) -> None:
        self.calls[step] += 1
        call = step, self.calls[step]
        if call in self.left:
            self.left.remove(call)
            raise KilledError


def digest_of(arrays: Iterable[NDArray[Any]]) -> str:
    """Of all arrays, whatever they are called."""
    each = sorted(hashlib.sha256(f"{a.dtype}{a.shape}".encode() + a.tobytes()).digest() for a in arrays)
    return hashlib.sha256(b"".join(each)).hexdigest()


def weights_of_the_embedded_run(folder: Path) -> str:
    """The digest of what the last checkpoint holds, but for the lists as served, which follow the clock."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings(data_dir=folder, embedded_redis_port=port, **LEARNING)
    prepare_topics(settings)
    producer = open_producer(settings)
    for click in Town(users=60, items=120, seed=3).clicks(CLICKS):
        producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
    producer.close()
    stop, killer = threading.Event(), Killer()

    def reached(step: str) -> None:
        killer(step)
        if step == "commit" and not killer.left:
            _, state = newest(settings.checkpoints_dir)
            if state["progress"]["learned"] == CLICKS:
                stop.set()

    while not stop.is_set():
        try:
            run_worker(settings, stop, reached=reached)
        except KilledError:
            continue
    arrays, _ = newest(settings.checkpoints_dir)
    arrays = load(save(arrays))  # in the order of safetensors, as when the digest was recorded
    return digest_of(array for name, array in arrays.items() if not name.endswith(".served"))


def newest(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays and the state of the newest checkpoint."""
    checkpoints = Checkpoints.existing(folder)
    return checkpoints.read(checkpoints.numbers()[-1])


def lists_of_the_run_in_memory(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """The digest of everything the learner holds at the end, and every user's list."""
    harness, killer = WorkerHarness(folder), Killer()
    harness.publish(list(Town(users=60, items=120, seed=3).clicks(CLICKS)))
    while True:
        try:
            loop = harness.run(killer, **{name: value for name, value in LEARNING.items() if SMALL.get(name) != value})
        except KilledError:
            continue
        arrays, _ = loop.learner.to_state()
        assert not killer.left
        return digest_of(arrays.values()), {user: list(top.items) for user, top in sorted(harness.lists.held.items())}


def platform() -> str:
    """What the floats follow from."""
    processor = f"{llvmlite.binding.get_host_cpu_name()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{processor}, torch {torch.__version__}, numba {numba.__version__}, numpy {np.__version__}"


def run(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    torch.set_num_threads(1)
    digest, lists = lists_of_the_run_in_memory(folder / "memory")
    return [weights_of_the_embedded_run(folder / "embedded"), digest], lists


def test_the_same_clicks_give_the_same_weights_and_lists_as_before(tmp_path: Path) -> None:
    recorded = json.loads(RECORDED.read_text())
    digests, lists = run(tmp_path)
    if (known := recorded["digests"].get(platform())) is not None:
        assert digests == known
        assert lists == recorded["lists"]
    assert lists.keys() == recorded["lists"].keys()
    alike = [len({*mine} & {*recorded["lists"][user]}) / len(mine) for user, mine in lists.items()]
    assert np.mean(alike) >= LISTS_ALIKE_MIN


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found, lists = run(Path(place))
    RECORDED.write_text(json.dumps({"digests": {platform(): found}, "lists": lists}, indent=1) + "\n")
