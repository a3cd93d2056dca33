"""The streaming form: does it agree, does its cost grow, what does recall find, and how many bytes does a user take.

    python -m benchmarks.lsh_memory [--configurations 1000] [--runs 15] [--threads 2] [--busy]

--busy counts the processor's time of one thread instead of the clock's, for a machine that others use meanwhile.
Ratios are those of the best times, both sides taking turns; in brackets least, median and most of the runs' own ratios.
"""

import argparse
import random
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks._timing import milliseconds, ratio
from model.lsh import LSHMemory, lsh_attention, random_rotations


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def largest_difference(seed: int) -> float:
    """Between the two forms, at any position of one random configuration."""
    generator, choose = torch.Generator().manual_seed(seed), random.Random(seed)
    B, H, R, L = choose.randint(1, 4), choose.randint(1, 4), choose.randint(1, 4), choose.randint(1, 120)
    D, window, buckets = choose.choice([4, 8, 16, 32, 64]), choose.randint(1, 40), 2 * choose.randint(1, 16)
    qk, v = normal(generator, B, H, L, D), normal(generator, B, H, L, D)
    rotations = random_rotations(H, R, D, buckets, generator=generator)
    lengths = torch.randint(1, L + 1, (B,), generator=generator)
    times = 1e9 + (1e5 * torch.rand(B, L, generator=generator, dtype=torch.float64) ** 4).cumsum(-1)
    bias = normal(generator, H, 32)
    whole = lsh_attention(qk, v, rotations, window=window, lengths=lengths, times=times, time_bias=bias)
    memory = LSHMemory(rotations, slots=B, window=window)
    largest = 0.0
    for i in range(L):
        b = (lengths > i).nonzero()[:, 0]
        output = memory.append(b, qk[b, :, i], v[b, :, i], times=times[b, i], time_bias=bias)
        if len(b):
            largest = max(largest, (output - whole[b, :, i]).abs().max().item())
    return largest


Timed = Callable[..., dict[str, list[float]]]


def appending(timed: Timed, runs: int, users: int = 256) -> None:
    """The Reformer's defaults: 2 heads of width 32, 2 rounds, 16 buckets, window 16."""
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(2, 2, 32, 16, generator=generator)
    slots, bias = torch.arange(users), torch.zeros(2, 32)
    steps = {}
    for history in (1_000, 100_000):
        memory = LSHMemory(rotations, slots=users, window=16)
        for _ in range(history // 500):
            many = slots.repeat(500)
            keys, values = normal(generator, 2, len(many), 2, 32)
            memory.store(many, keys, values, times=torch.zeros(len(many), dtype=torch.float64))
        qk, v = normal(generator, 2, users, 2, 32)
        times = torch.ones(users, dtype=torch.float64)
        steps[history] = partial(memory.append, slots, qk, v, times=times, time_bias=bias)
    taken = timed({str(history): step for history, step in steps.items()}, runs=10 * runs)
    print(f"append of {users} users: {min(taken['1000']):.2f} ms;", end=" ")
    print("history of 100,000 over 1,000:", ratio(taken["100000"], taken["1000"]))


def clustered(generator: torch.Generator, count: int, centres: Tensor) -> Tensor:
    """Keys like a user's: (count, H, D) near one of the centres (·, H, D), some of them very near each other."""
    which = torch.randint(len(centres), (count,), generator=generator)
    noise = 0.1 + 0.3 * torch.rand(count, 1, 1, generator=generator)
    return normalize(centres[which], dim=-1) + noise * normalize(normal(generator, count, *centres.shape[1:]), dim=-1)


def held(memory: LSHMemory, queries: Tensor) -> list[dict[int, float]]:
    """A full scan of slot 0: for each query and head, the payloads that any ring holds, and their cosines."""
    _, H, _, _, ring, D = memory.entries.shape
    filled = (torch.arange(ring) < memory.counts[0].unsqueeze(-1)).flatten(1)  # (H, R · buckets · ring)
    assert memory.payloads is not None
    scans = []
    for n in range(len(queries)):
        for h in range(H):
            keys = memory.entries[0, h].reshape(-1, D)[filled[h]]
            cosines = keys @ normalize(queries[n, h], dim=0)
            near = cosines >= 0.95
            payloads = memory.payloads[0, h].reshape(-1)[filled[h]][near]
            scans.append(dict(zip(payloads.tolist(), cosines[near].tolist(), strict=True)))
    return scans


def recalling(timed: Timed, kind: str, runs: int, *, rounds: int, buckets: int, window: int, centres: int) -> None:
    generator = torch.Generator().manual_seed(0)
    heads, D, count, probes = 4, 32, 64, (buckets - 1).bit_length()
    rotations = random_rotations(heads, rounds, D, buckets, generator=generator)
    around = normal(generator, centres, heads, D)
    slots = torch.zeros(count, dtype=torch.int64)
    steps = {}
    for entries in (1_000, 100_000):
        memory = LSHMemory(rotations, slots=1, window=window, value_width=0, times=False, payloads=True)
        for start in range(0, entries, 1_000):
            keys = clustered(generator, 1_000, around)
            memory.store(slots[:1].expand(1_000), keys, payloads=torch.arange(start, start + 1_000))
        queries = clustered(generator, count, around)
        steps[entries] = partial(memory.recall, slots, queries)
        recalled = steps[entries]()
        found = wanted = 0
        for scan, payloads, mask in zip(
            held(memory, queries), recalled.payloads.flatten(0, 1), recalled.found.flatten(0, 1), strict=True
        ):
            wanted += len(scan)
            found += len(scan.keys() & set(payloads[mask].tolist()))
        print(f"recall from {kind}, {entries:,} entries: {found:,} of {wanted:,} with cosine >= 0.95", end="")
        looked_at, holds = rounds * probes * (window - 1), memory.entries[..., 0].numel() // heads
        print(f" = {found / max(1, wanted):.4f}, looking at {looked_at:,} of at most {holds:,}")
    taken = timed({str(entries): step for entries, step in steps.items()}, runs=runs)
    print(f"recall from {kind}: {1e3 * min(taken['100000']) / count:.0f} µs per query of {heads} heads;", end=" ")
    print("100,000 entries over 1,000:", ratio(taken["100000"], taken["1000"]))


def bytes_per_user() -> None:
    rotations = random_rotations(2, 2, 32, 16, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16):
        for times in (True, False):
            memory = LSHMemory(rotations, slots=100, window=16, times=times, dtype=dtype)
            measured = sum(tensor.nbytes for tensor in memory.state_tensors().values()) / 100
            print(f"bytes per user and layer, {str(dtype)[6:]}, times {times}: {measured:,.0f} measured,", end=" ")
            print(f"{memory.bytes_per_slot:,} by the formula")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", action="store_true", help="one thread's processor time")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.busy else args.threads)
    timed = partial(milliseconds, clock=time.process_time if args.busy else time.perf_counter)
    worst = max(map(largest_difference, range(args.configurations)))
    print(f"streaming against sequence form, {args.configurations:,} configurations: differ by {worst:.1e} at most")
    appending(timed, args.runs)
    recalling(timed, "a user's memory", args.runs, rounds=4, buckets=16, window=32, centres=50)
    recalling(timed, "the world's memory", args.runs, rounds=2, buckets=4096, window=33, centres=2_000)
    bytes_per_user()


if __name__ == "__main__":
    main()
