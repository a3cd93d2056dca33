"""The cost of recalling a user's moments, by the length of the history: python -m benchmarks.recall

One user makes 10 to 100,000 clicks on 500 items; then what would be asked before 32 more of theirs is timed: finding
candidates, moments among them, with all features (`gather`), and the soft counts of what was found (`recall`). Beside
it the least that scanning the whole history would cost. Ratios to the shortest history do not depend on the machine.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.settings import load_settings
from online.evaluation.backtest_events import micro_batches
from online.learner.facts.gather import QueryArrays
from online.learner.facts.store import Gathered
from online.learner.learner import Learner
from online.learner.recall import soft_counts
from stream.events import Click

QUERIES, REPEATS, ITEMS = 32, 20, 500
WIDTH = 32  # of what a scan compares, as much as recall compares of each moment


def clicks_of_one(count: int, random: np.random.Generator) -> list[Click]:
    """So many clicks of one user."""
    times = 1e9 + np.sort(random.uniform(0, 3e7, count))
    items = random.integers(0, ITEMS, count)
    return [
        Click(user_id="u", item_id=f"i{item}", timestamp=at)
        for item, at in zip(items.tolist(), times.tolist(), strict=True)
    ]


def trained(clicks: Sequence[Click], seed: int) -> Learner:
    """A learner that knows all facts of these clicks, with weights that have learned nothing."""
    learner = Learner(load_settings(seed=seed, device="cpu", abuse_filter=False), lists=False)
    for batch in micro_batches(clicks, learner.settings):
        begun = learner.preparer.begin([clicks[at] for at in batch], None)
        learner.preparer.complete(begun, learner.preparer.gather(begun))
    learner.weights.grow(len(learner.store))
    return learner


def questions(learner: Learner, random: np.random.Generator) -> QueryArrays:
    """What is asked at moments after the last click."""
    slots = np.repeat(learner.histories.find(["u"]), QUERIES)
    now = learner.histories.latest_at(slots) + np.sort(random.uniform(10, 1e6, QUERIES))
    own_slots = learner.store.own_slots(["u"] * QUERIES)
    return QueryArrays(np.zeros(QUERIES, np.int64), slots, own_slots, now, now, np.zeros(QUERIES, np.bool_))


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Median and largest of some runs."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)), max(taken)


def measure(count: int, seed: int) -> tuple[float, tuple[float, float], tuple[float, float], float]:
    """Moments found for each query; seconds that gathering and counting take; and a scan."""
    random = np.random.default_rng(seed)
    learner = trained(clicks_of_one(count, random), seed)
    asked, memory = questions(learner, random), learner.memory()

    def gather() -> Gathered:
        return learner.store.ask(learner.histories, asked, flagged=learner.abuse_filter.flagged)

    gathered = gather()
    states = torch.randn(QUERIES, learner.settings.width, generator=torch.Generator().manual_seed(seed))

    def recall() -> NDArray[np.float32]:
        weights = learner.weights
        return soft_counts(
            weights.own, weights.vectors.vectors, gathered.keys, states, memory.keys, memory.states, gathered.own,
            len(gathered.rows),
        )  # fmt: skip

    past = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    scanned, _ = seconds(lambda: torch.exp(8 * (past[:1].expand(QUERIES, WIDTH) @ past.T - 1)))
    return len(gathered.own.moments) / QUERIES, seconds(gather), seconds(recall), scanned


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--moments", type=int, nargs="+", default=[10, 100, 1_000, 10_000, 100_000])
    given = options.parse_args()
    torch.set_num_threads(1)
    print(f"{'moments':>8} {'found':>7}  {'gather ms (max)':>16} {'ratio':>6}  {'recall ms (max)':>16} {'scan ms':>8}")
    first = None
    for count in given.moments:
        found, (gather, gather_max), (recall, recall_max), scanned = measure(count, given.seed)
        first = first or gather
        print(
            f"{count:8,} {found:7.1f}  {1e3 * gather:9.2f} ({1e3 * gather_max:.2f}) {gather / first:6.2f}  "
            f"{1e3 * recall:9.2f} ({1e3 * recall_max:.2f}) {1e3 * scanned:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
