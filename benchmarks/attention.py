"""LSH attention over whole sequences, forward and backward: against exact attention, and other implementations.

    python -m benchmarks.attention [--quick] [--runs 7] [--threads 2] [--busy]

--busy counts the processor's time of one thread instead of the clock's, for a machine that others use meanwhile.
Causal, 4 heads of width 32, float32, projections included. All take turns in every run, so that whatever else the
machine does meets all of them; a ratio is that of the best times, and in brackets least, median and most of the runs'
own ratios. `exact` is PyTorch's fused attention, which is quadratic. Other implementations of the Reformer are timed
where they are installed: pip install reformer-pytorch==1.4.4 transformers==4.57.6
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._timing import milliseconds, ratio
from model.lsh import lsh_attention, random_rotations

WIDTH, HEADS = 128, 4
HEAD_WIDTH = WIDTH // HEADS
Step = Callable[[Tensor, Tensor], None]


def heads(x: Tensor) -> Tensor:
    """(B, L, 128) -> (B, 4, L, 32)"""
    return x.view(*x.shape[:2], HEADS, HEAD_WIDTH).transpose(1, 2)


def exact(x: Tensor, w: Tensor) -> None:
    q, k, v = map(heads, (x @ w).chunk(3, -1))
    F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def ours(length: int, *, rounds: int, window: int, timed: bool = False) -> Step:
    buckets = max(2, 2 * (length // window // 2))
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(HEADS, rounds, HEAD_WIDTH, buckets, generator=generator)
    bias = torch.zeros(HEADS, 32, requires_grad=True)

    def step(x: Tensor, w: Tensor) -> None:
        qk, v = map(heads, (x @ w[:, : 2 * WIDTH]).chunk(2, -1))
        times = 60.0 * torch.arange(length, dtype=torch.float64).expand(len(x), -1)
        extra = {"times": times, "time_bias": bias} if timed else {}
        lsh_attention(qk, v, rotations, window=window, **extra).sum().backward()

    return step


def lucidrains(*, rounds: int, chunk: int) -> Step:
    from reformer_pytorch import LSHSelfAttention  # noqa: PLC0415  # may not be installed

    layer = LSHSelfAttention(dim=WIDTH, heads=HEADS, bucket_size=chunk, n_hashes=rounds, causal=True)
    return lambda x, _w: layer(x).sum().backward()


def huggingface(length: int, *, rounds: int, chunk: int) -> Step:
    from transformers import ReformerConfig  # noqa: PLC0415  # may not be installed
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention  # noqa: PLC0415

    chunks = length // chunk
    config = ReformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_head_size=HEAD_WIDTH, lsh_attn_chunk_length=chunk,
        num_hashes=rounds, num_buckets=chunks if chunks <= 128 else [64, chunks // 32], is_decoder=True,
        lsh_attention_probs_dropout_prob=0.0, lsh_num_chunks_before=1, lsh_num_chunks_after=0,
    )  # fmt: skip
    layer = LSHSelfAttention(config)
    return lambda x, _w: layer(x, num_hashes=rounds).hidden_states.sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size only")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", action="store_true", help="one thread's processor time")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.busy else args.threads)
    clock = time.process_time if args.busy else time.perf_counter
    peers = {"lucidrains": "reformer_pytorch", "huggingface": "transformers"}
    installed = [name for name, package in peers.items() if importlib.util.find_spec(package)]
    for name in peers.keys() - set(installed):
        print(f"{name}: not installed, left out")
    for batch, length in [(2, 4096)] if args.quick else [(8, 512), (4, 2048), (2, 4096), (1, 16384)]:
        x = torch.randn(batch, length, WIDTH, requires_grad=True)
        w = (torch.randn(WIDTH, 3 * WIDTH) * WIDTH**-0.5).requires_grad_()
        steps: dict[str, Step] = {
            "exact": exact,
            "ours R4 W64": ours(length, rounds=4, window=64),
            "ours R2 W32": ours(length, rounds=2, window=32),
            "ours R2 W32 with time": ours(length, rounds=2, window=32, timed=True),
        }
        if "lucidrains" in installed:
            steps["lucidrains R4 C64"] = lucidrains(rounds=4, chunk=64)
        if "huggingface" in installed:
            steps["huggingface R4 C64"] = huggingface(length, rounds=4, chunk=64)
        times = milliseconds({name: partial(step, x, w) for name, step in steps.items()}, runs=args.runs, clock=clock)
        print(f"\nbatch {batch}, length {length}, best milliseconds: ", end="")
        print(", ".join(f"{name} {min(taken):.0f}" for name, taken in times.items()))
        print("exact / ours R2 W32", ratio(times["exact"], times["ours R2 W32"]))
        print("ours R2 W32, with time / without", ratio(times["ours R2 W32 with time"], times["ours R2 W32"]))
        of_peers = [times[name] for name in times if name.split()[0] in installed]
        if of_peers:
            print("fastest peer / ours R4 W64", ratio(min(of_peers, key=min), times["ours R4 W64"]), flush=True)


if __name__ == "__main__":
    main()
