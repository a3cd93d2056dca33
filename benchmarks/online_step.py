"""Learning from new clicks alone, against learning from them by way of whole histories.

    python -m benchmarks.online_step [--users 256] [--history 200] [--width 64] [--device cpu]

One step learns one new click of each of so many users: states, sampled softmax over 512 shared negatives, gradients,
AdamW and row-wise Adagrad. "online" computes the new positions against memories that are full already. "retraining"
computes the whole histories, in its favour with ordinary autograd (no recomputation) and with the loss of the new
clicks only. Both end in the same optimizer, on an item table of the same size.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.loss import sampled_softmax_loss
from model.optim import Optimizer
from model.reformer import Clicks, Histories, Reformer, ReformerConfig


def learn(model: Reformer, optimizer: Optimizer, states: Tensor, targets: Tensor, negatives: Tensor) -> None:
    log_q = torch.full(negatives.shape, 1 / len(model.items), device=negatives.device).log()
    target_logits = model.scores(states, targets[:, None])[:, 0]
    loss = sampled_softmax_loss(target_logits, model.scores(states, negatives), targets, negatives, log_q).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def seconds(step: Callable[[], None], device: str, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def steps(rows: int, options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], None]]:
    """The online step and the retraining step, on the same clicks."""
    B, L, device = options.users, options.history, options.device
    torch.manual_seed(0)
    model = Reformer(ReformerConfig(width=options.width), rows=rows).to(device)
    optimizer = Optimizer(model)
    items = torch.randint(1, rows, (B, L), device=device)
    times = 1.7e9 + (torch.rand(B, L, dtype=torch.float64, device=device) * 10_000).cumsum(1)
    histories = Histories(items, torch.zeros_like(items), times, torch.full((B,), L, device=device))
    targets, negatives = torch.randint(1, rows, (B,), device=device), torch.randint(1, rows, (512,), device=device)
    memory = model.memory(B)
    slots, _ = memory.take([f"u{n}" for n in range(B)])
    with torch.no_grad():
        for position in range(L):
            clicks = Clicks(slots, *(part[:, position] for part in histories[:3]))
            model.append(memory, clicks)

    def online() -> None:
        learn(model, optimizer, model.append(memory, clicks), targets, negatives)

    def retraining() -> None:
        learn(model, optimizer, model(histories, recompute=False)[:, -1], targets, negatives)

    return online, retraining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--history", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rows", type=int, default=[10_000, 100_000, 1_000_000], nargs="+", help="items in the table")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    B = options.users
    print(f"{B} users, histories of {options.history}, layers local + lsh, width {options.width}, {options.device}")
    print(f"{'rows':>9} {'online ms':>10} {'clicks/s':>9} {'retraining ms':>14} {'clicks/s':>9} {'ratio':>6}")
    for rows in options.rows:
        online, retraining = steps(rows, options)
        ours = seconds(online, options.device, options.rounds)
        whole = seconds(retraining, options.device, max(2, options.rounds // 5))
        print(f"{rows:>9,} {1e3 * ours:>10.2f} {B / ours:>9,.0f} {1e3 * whole:>14.1f} {B / whole:>9,.0f}", end=" ")
        print(f"{whole / ours:>6.1f}", flush=True)


if __name__ == "__main__":
    main()
