"""What it costs to look into a person's memory, by how long their history is: python -m benchmarks.recall

One person's moments are remembered, 10 to 100,000 of them, on 500 items; then 32 queries are timed. Beside it the least
that scanning the whole history would cost. The ratio to the shortest history does not depend on the machine.
"""

import argparse
import time

import numpy as np
import torch
from online.ranking.moments import HashedVectors, MomentLog, Moments, OwnMemory
from online.ranking.weights import VECTORS_WIDTH

from online.settings import Settings

QUERIES, REPEATS, PIECE = 32, 20, 1_000


def moments(count: int, random: np.random.Generator) -> Moments:
    rows = torch.from_numpy(random.integers(1, 501, (2, count)))
    times = torch.from_numpy(np.sort(random.uniform(0, 3e7, count)))
    return Moments(rows[0], rows[1], times, torch.from_numpy(random.uniform(0, 12, count).astype(np.float32)))


def seconds(run) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Median and largest of some runs."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)), max(taken)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    seed = options.parse_args().seed
    torch.set_num_threads(1)
    settings = Settings(seed=seed, recall_users_held=32)
    device = torch.device("cpu")
    print(f"{'moments':>8}  {'found':>6}  {'recall ms (max)':>16}  {'ratio':>6}  {'scan ms':>8}")
    first = None
    for count in (10, 100, 1_000, 10_000, 100_000):
        random = np.random.default_rng(seed)
        log, memory = (
            MomentLog(200_000, 1, device),
            OwnMemory(settings, HashedVectors(VECTORS_WIDTH, settings.seed, device), device),
        )
        slot = int(memory.take(["somebody"])[0])
        past, items = moments(count, random), torch.from_numpy(random.integers(1, 501, count))
        for start in range(0, count, PIECE):
            part = Moments(*(each[start : start + PIECE] for each in past))
            numbers = torch.from_numpy(log.next_numbers(len(part.last)))
            log.append(items[start : start + PIECE], part, None)
            memory.store(torch.full_like(numbers, slot), part, numbers)
        query = moments(QUERIES, random)
        slots = torch.full((QUERIES,), slot)
        vectors = memory.vectors(past.last)

        def scan(query: Moments = query, memory: OwnMemory = memory, vectors: torch.Tensor = vectors) -> None:
            torch.exp(8 * (memory.vectors(query.last) @ vectors.T - 1))

        found = float((memory.recall(slots, query) > 0).sum(1).float().mean())
        median, largest = seconds(lambda: memory.recall(slots, query))  # noqa: B023
        scanned, _ = seconds(scan)
        first = first or median
        print(
            f"{count:8,}  {found:6.1f}  {1e3 * median:9.2f} ({1e3 * largest:.2f})  {median / first:6.2f}  "
            f"{1e3 * scanned:8.2f}"
        )


if __name__ == "__main__":
    main()
