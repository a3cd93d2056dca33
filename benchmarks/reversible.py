"""What a reversible layer costs, against the same layer under ordinary autograd: memory that it adds, and time.

    python -m benchmarks.reversible [--length 4096] [--width 64] [--depths 4 8 16 32] [--threads 1] [--device cpu]

Memory is measured twice. "kept" are the bytes of all tensors that the forward pass leaves behind for the backward pass
(each storage once, weights excluded). "peak" is how far one forward and backward pass lifts the memory of a process of
its own (resident set on the CPU, allocated bytes on CUDA), gradients of the weights included. What a layer adds is the
slope from the smallest to the largest depth. The plain stack is ordinary float32 residual code, not a mode of ours.
"gradients" is the largest relative difference between recomputed and ordinary gradients of the same stack.
Times on the CPU are its own time, not the clock's, so that whatever else the machine does bends them less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from model.reformer import Reformer, ReformerConfig
from model.reversible import ReversibleStack

PAGE = os.sysconf("SC_PAGE_SIZE")


def plain(stack: ReversibleStack, x: Tensor, *context: Tensor) -> Tensor:
    y1 = y2 = x
    for f, g in zip(stack.f, stack.g, strict=True):
        y1 = y1 + f(y2, *context)
        y2 = y2 + g(y1)
    return y1 + y2


def reversible(stack: ReversibleStack, x: Tensor, *context: Tensor) -> Tensor:
    y1, y2 = stack(x, x, *context)
    return y1 + y2


KINDS: dict[str, Callable[..., Tensor]] = {"plain": plain, "reversible": reversible}


def problem(depth: int, length: int, width: int, device: str) -> tuple[ReversibleStack, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layers = tuple(("local", "lsh")[i % 2] for i in range(depth))
    config = ReformerConfig(layers=layers, width=width, buckets=max(2, length // 64), window=16)
    stack = Reformer(config).layers.to(device)
    times = (torch.rand(1, length, dtype=torch.float64) * 1000).cumsum(1).to(device)
    x = torch.randn(1, length, width, device=device, requires_grad=True)
    return stack, x, times, torch.tensor([length], device=device)


def kept_bytes(kind: str, stack: ReversibleStack, *inputs: Tensor) -> int:
    weights = {p.untyped_storage().data_ptr() for p in stack.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = KINDS[kind](stack, *inputs)
    assert output.requires_grad  # and with it everything saved is alive until here
    return sum(storages.values())


def peak_bytes(kind: str, stack: ReversibleStack, *inputs: Tensor) -> int:
    """Of one step, after a warm-up step, above what was there before the step."""
    step(kind, stack, *inputs)
    if inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(kind, stack, *inputs)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    step(kind, stack, *inputs)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 - before


def step(kind: str, stack: nn.Module, x: Tensor, *context: Tensor) -> None:
    for tensor in (x, *stack.parameters()):
        tensor.grad = None
    KINDS[kind](stack, x, *context).square().mean().backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def gradient_difference(stack: ReversibleStack, x: Tensor, *context: Tensor) -> float:
    """Recomputed against ordinary gradients of the same stack: the largest difference in any tensor, relative to the
    largest entry of that tensor's gradient."""
    found = []
    for recompute in (True, False):
        y1, y2 = stack(x, x, *context, recompute=recompute)
        found.append(torch.autograd.grad((y1 + y2).square().mean(), [x, *stack.parameters()]))
    pairs = zip(*found, strict=True)
    return max(float((ours - plain).abs().max() / plain.abs().max().clamp(min=1e-30)) for ours, plain in pairs)


def in_a_process_of_its_own(kind: str, depth: int, options: argparse.Namespace) -> dict[str, int]:
    # Every freed tensor goes back to the system at once, so that the resident set is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--one", kind, str(depth), "--device", options.device]
    command += ["--length", str(options.length), "--width", str(options.width), "--threads", str(options.threads)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=-1, env=environment).stdout)
    return found


def milliseconds(*inputs: Tensor, rounds: int) -> tuple[dict[str, float], float]:
    """Median time of a step by kind, and the median ratio of the two of a round, which stand side by side in time."""
    clock = time.perf_counter if inputs[1].is_cuda else time.process_time
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds + 1):
        for kind in KINDS:
            start = clock()
            step(kind, *inputs)
            taken[kind].append(1e3 * (clock() - start))
    ratios = [ours / plain for ours, plain in zip(taken["reversible"][1:], taken["plain"][1:], strict=True)]
    return {kind: statistics.median(times[1:]) for kind, times in taken.items()}, statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        kind, depth = options.one[0], int(options.one[1])
        inputs = problem(depth, options.length, options.width, options.device)
        print(json.dumps({"kept": kept_bytes(kind, *inputs), "peak": peak_bytes(kind, *inputs)}))
        return
    print(f"length {options.length}, width {options.width}, local and LSH layers in turn, {options.device}")
    print(f"{'depth':>5} {'kept MB: plain':>15} {'reversible':>11} {'peak MB: plain':>15} {'reversible':>11}", end=" ")
    print(f"{'ms: plain':>10} {'reversible':>11} {'ratio':>6} {'gradients':>10}")
    rows = []
    for depth in options.depths:
        memory = {kind: in_a_process_of_its_own(kind, depth, options) for kind in KINDS}
        rows.append(memory)
        inputs = problem(depth, options.length, options.width, options.device)
        ms, ratio = milliseconds(*inputs, rounds=options.rounds)
        print(f"{depth:>5} {memory['plain']['kept'] / 1e6:>15.1f} {memory['reversible']['kept'] / 1e6:>11.1f}", end=" ")
        print(f"{memory['plain']['peak'] / 1e6:>15.1f} {memory['reversible']['peak'] / 1e6:>11.1f}", end=" ")
        print(f"{ms['plain']:>10.0f} {ms['reversible']:>11.0f} {ratio:>6.2f}", end=" ")
        print(f"{gradient_difference(*inputs):>10.1e}", flush=True)
    for what in ("kept", "peak"):
        added = {kind: (rows[-1][kind][what] - rows[0][kind][what]) for kind in KINDS}
        per_layer = {kind: bytes_ / (options.depths[-1] - options.depths[0]) / 1e6 for kind, bytes_ in added.items()}
        print(f"{what}: a plain layer adds {per_layer['plain']:.2f} MB, a reversible one", end=" ")
        print(f"{per_layer['reversible']:.2f} MB: ratio {per_layer['reversible'] / per_layer['plain']:.4f}")


if __name__ == "__main__":
    main()
