"""What it costs to fence a write: time per list with and without, on one redis-server or a cluster.

    python -m benchmarks.fenced_writes [--redis-server PATH] [--cluster] [--lists 64] [--rounds 400]

A pipeline of so many lists of 50 items each is written again and again, plain and fenced by turns; the median of the
rounds is printed. `plain` is what a single worker sends.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks._redis_cluster import RedisCluster, running
from benchmarks._servers import redis_server
from stream.lists import Lists, TopList, Watermark, connect


def top_list(number: int) -> TopList:
    """A list of 50 items; `number`: its offset."""
    items = [f"item-{n:06}" for n in range(50)]
    scores = [1 / (n + 2) for n in range(50)]
    return TopList(
        items=items, scores=scores, version=7, offset=f"3:{number}", clicked_at=1_700_000_000_000 + number,
        written_at=1_700_000_000_000 + number, source="personal",
    )  # fmt: skip


def measure(url: str, lists: int, rounds: int) -> dict[str, float]:
    """Returns the median time of one list, in microseconds, by kind of write."""
    kinds = {
        "plain": Lists(connect(url), ttl_s=3_600),
        "fenced": Lists(connect(url), ttl_s=3_600, worker="w", fenced=True),
    }
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind, writer in kinds.items():
            batch = {f"{kind}-{n}": top_list(turn) for n in range(lists)}
            began = time.perf_counter()
            done = writer.write(batch, mark=Watermark("w", turn + 1))
            took[kind].append((time.perf_counter() - began) / lists * 1e6)
            assert not done.rejected
    return {kind: statistics.median(times) for kind, times in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-server", default=os.environ.get("REDIS_SERVER") or shutil.which("redis-server"))
    parser.add_argument("--cluster", action="store_true", help="three primaries instead of one server")
    parser.add_argument("--lists", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "redis"
        if arguments.cluster:
            with running(RedisCluster(arguments.redis_server, where)) as cluster:
                found = measure(cluster.url, arguments.lists, arguments.rounds)
        else:
            with redis_server(arguments.redis_server, where) as server:
                found = measure(f"redis://127.0.0.1:{server.port}/0", arguments.lists, arguments.rounds)
    for kind, microseconds in found.items():
        print(f"{kind:7} {microseconds:7.1f} µs a list {1e6 / microseconds:9,.0f} lists/s")
    print(f"fenced / plain: {found['fenced'] / found['plain']:.2f}")


if __name__ == "__main__":
    main()
