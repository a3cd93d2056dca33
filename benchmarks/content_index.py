"""Items most like another in content: what their lists hold, a scan of all vectors, and LSH buckets, and how long each
takes.

    python -m benchmarks.content_index items.csv.xz [--queries 128]

The truth is the exact cosine of weighted bags, over all items of the pool. `lists` is what the learner does: lists of
near items that were made when the items came. `scan` looks at all items: the 64 best by vectors, which are then
compared exactly. `buckets` looks only at items whose vectors have the same signs as the query's in one of several sets
of random directions (Charikar 2002), and then does the same. Recall counts found items that are as much alike as the
12th best one, of 12.

Letters: `P` items of the pool, `Q` queries, `D` width of vectors, `T` tables, `B` bits of each.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from benchmarks.content import read_items
from online.learner.content.items import LATEST, ItemContent
from online.learner.content.near import HELD, LOOKED_AT, NEAREST
from stream.items import Item

POOLS = (1_024, 4_096, 16_384)
TABLES = (4, 16, 64)
IN_BUCKET = 32  # items that a bucket holds on average
ROUNDS = 5  # of timing; the median counts


def main() -> None:
    """Prints a line for each pool and way."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("items", type=Path)
    arguments.add_argument("--queries", type=int, default=128)
    given = arguments.parse_args()
    items = read_items(given.items)
    for size in sorted({min(size, len(items)) for size in POOLS}):
        measure(items[:size], given.queries)


def measure(items: list[Item], count: int) -> None:
    """Compares the ways on one pool."""
    P, random = len(items), np.random.default_rng(0)
    content = ItemContent(0, P + 1)
    for slot, item in enumerate(items, 1):
        content.put(slot, (item.title, item.tags, item.attributes), None, clicked=True, now=0.0)
    content.compose(range(1, P + 1))
    rows, slots_of = np.arange(1, P + 1), np.arange(P + 1, dtype=np.int32)
    queries = np.sort(random.choice(rows, min(count, P), replace=False))
    bags = weighted_bags(content, P)
    truth = (bags @ bags[queries].T).toarray().T  # (Q, P + 1)
    truth[:, 0], truth[np.arange(len(queries)), queries] = -1, -1
    latest = np.zeros((len(queries), LATEST), np.int64)
    latest[:, 0] = queries
    report(P, "lists", 2 * HELD, truth, lambda: list(content.nearest(latest, slots_of, rows)[:, :NEAREST]))
    vectors = content.arrays.vectors[: P + 1]
    report(P, "scan", P, truth, lambda: [best_of(rows[rows != query], query, vectors, bags) for query in queries])
    bits = max(1, round(math.log2(P / IN_BUCKET)))
    for tables in TABLES:
        directions = random.standard_normal((tables, vectors.shape[1], bits)).astype(np.float32)
        codes = ((vectors @ directions > 0) << np.arange(bits)).sum(2)  # (T, P + 1)
        buckets = [np.split(order, np.searchsorted(of[order], np.arange(1, 2**bits))) for of, order in ordered(codes)]
        looked: list[int] = []

        find = partial(all_in_buckets, queries, codes, buckets, vectors, bags, looked)
        find()
        report(P, f"{tables:2d} tables of {bits} bits", float(np.mean(looked)), truth, find)


def weighted_bags(content: ItemContent, P: int) -> csr_matrix:
    """Returns the bags of slots, weighted and of length 1, (P + 1, features)."""
    sizes = content.arrays.sizes[: P + 1].astype(np.int64)
    features = np.concatenate([bag[:size] for bag, size in zip(content.arrays.bags, sizes, strict=False)]).astype(int)
    bags = csr_matrix(
        (content.weights[features], features, np.concatenate([[0], np.cumsum(sizes)])),
        shape=(P + 1, len(content.weights)),
    )
    lengths = np.sqrt(bags.multiply(bags).sum(1)).A1
    return csr_matrix(bags.multiply(1 / np.maximum(lengths, 1e-9)[:, None]))


def ordered(codes: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Returns each table's codes, and the slots by rising code."""
    return [(of, np.argsort(of, kind="stable")) for of in codes]


def all_in_buckets(  # noqa: PLR0917 - one call of one caller
    queries: NDArray[np.int64],
    codes: NDArray[np.int64],
    buckets: list[list[NDArray[np.int64]]],
    vectors: NDArray[np.float32],
    bags: csr_matrix,
    looked: list[int],
) -> list[NDArray[np.int64]]:
    """Returns for each query the 16 most alike of those that share a bucket with it; `looked` gets how many do."""
    found: list[NDArray[np.int64]] = []
    looked.clear()
    for query in queries.tolist():
        near = np.unique(np.concatenate([table[code] for table, code in zip(buckets, codes[:, query], strict=True)]))
        near = near[(near != query) & (near > 0)]
        looked.append(len(near))
        found.append(best_of(near, query, vectors, bags))
    return found


def best_of(near: NDArray[np.int64], query: int, vectors: NDArray[np.float32], bags: csr_matrix) -> NDArray[np.int64]:
    """Returns the most alike of some slots: by exact cosines, among the LOOKED_AT best by vectors."""
    best = near[np.argsort(-(vectors[near] @ vectors[query]))[:LOOKED_AT]]
    cosines = (bags[best] @ bags[query].T).toarray()[:, 0]
    return best[np.argsort(-cosines)[:NEAREST]]


def report(
    P: int, name: str, looked: float, truth: NDArray[np.float64], find: Callable[[], list[NDArray[np.int64]]]
) -> None:
    """Prints recall, time for each query, and how much of the pool was looked at."""
    found, times = find(), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        find()
        times.append((time.perf_counter() - began) / len(truth))
    least = -np.sort(-truth, axis=1)[:, NEAREST - 1] - 1e-6
    hits = [(truth[q, rows[rows > 0]] >= least[q]).sum() / NEAREST for q, rows in enumerate(found)]
    print(
        f"{P:6,} items, {name:20s} recall {np.mean(hits):.3f}; {1e3 * np.median(times):.3f} ms a query; "
        f"looks at {looked:,.0f} items"
    )


if __name__ == "__main__":
    main()
