"""nextclick beside sequence models that are trained anew for every tenth of a stream.

    python -m benchmarks.neural_peers clicks.csv.xz [--limit N] [--peers sasrec,gru4rec] [--json OUT]

SASRec (Kang and McAuley 2018) and GRU4Rec (Hidasi et al. 2016), both with a softmax over all items and not their
papers' losses, which is better (Klenitskiy and Vasilev 2023, arXiv 2309.07602), and with one table of item vectors for
input and output. With more items than FULL_SOFTMAX_ITEMS the sum over all of them is estimated from SAMPLED of them,
half drawn uniformly and half by popularity, corrected for how likely each was drawn (model/loss.py); `--sampled` does
so with fewer items too, to see what that costs.

At each tenth of the stream they are trained from new weights on all clicks so far, for EPOCHS_MIN epochs at least and
until the latest 5 % of these are predicted no better for PATIENCE epochs; the best epoch's weights are kept. For the
tenth that follows they are asked before each click, with the user's history up to that moment. Width and dropout are
chosen for each stream on the second tenth, which is not scored.

The measure is that of a backtest (online/evaluation/backtest.py): the first fifth is not scored, all items that
occurred compete, half of the ties count as ahead. An item that came after the last training has no score: a miss.

Letters: `B` sequences, `L` clicks of a sequence, `D` width, `V` items that were trained, `n` clicks.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.loss import sampled_softmax_loss
from online.commands.file_options import open_file
from online.config.settings import load_settings
from online.evaluation.backtest import NEXTCLICK, backtest
from online.evaluation.backtest_events import Facts, facts_of, read_clicks
from online.learner.next_item import Negatives
from online.metrics import hit_and_ndcg_at

PARTS = 10  # of the stream; models are trained at the beginning of each but the first
LENGTH = 50  # clicks that a model reads of a user at most
STEPS_PER_EPOCH = 32  # of gradient steps, while these have between so many targets:
TARGETS_MIN, TARGETS_MAX = 256, 4_096
HELD_OUT = 0.05  # of the clicks so far, the latest, that say when to stop
EPOCHS_MIN, EPOCHS_MAX = 10, 40
PATIENCE = 3  # epochs without a gain
FULL_SOFTMAX_ITEMS = 10_000
SAMPLED = 4_096  # items, for each step
LEARNING_RATE, CLIP_NORM = 2e-3, 5.0
WIDTHS, DROPOUTS = (64, 128), (0.2, 0.5)  # that are tried
RANKED_AT_ONCE = 1_024  # positions
Ids = NDArray[np.int64]


class Shape(NamedTuple):
    """Of a model."""

    width: int
    dropout: float


def embedded(items: nn.Embedding, sequences: Tensor) -> Tensor:
    """Returns inputs (B, L, D) of sequences (B, L), of deviation 1 at first; zeros where an item is unknown (-1)."""
    vectors: Tensor = items(sequences.clamp(min=0)) * items.embedding_dim**0.5
    return vectors.masked_fill((sequences < 0)[..., None], 0.0)


class SASRec(nn.Module):
    """Two blocks of causal self-attention over a user's latest items."""

    def __init__(self, items: int, shape: Shape) -> None:
        super().__init__()
        self.items = nn.Embedding(items, shape.width)
        nn.init.normal_(self.items.weight, std=shape.width**-0.5)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, shape.width))
        self.dropout = nn.Dropout(shape.dropout)
        block = nn.TransformerEncoderLayer(
            shape.width, 2, 2 * shape.width, shape.dropout, batch_first=True, norm_first=True, activation="gelu"
        )
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(shape.width), enable_nested_tensor=False)

    def forward(self, sequences: Tensor) -> Tensor:
        """Returns states (B, L, D) after each item of sequences (B, L), whose ends may be padded."""
        L = sequences.shape[1]
        inputs = embedded(self.items, sequences) + self.positions[:L]
        causal = nn.Transformer.generate_square_subsequent_mask(L)
        states: Tensor = self.blocks(self.dropout(inputs), mask=causal, is_causal=True)  # (B, L, D)
        return states


class GRU4Rec(nn.Module):
    """One layer of gated recurrent units over a user's latest items."""

    def __init__(self, items: int, shape: Shape) -> None:
        super().__init__()
        self.items = nn.Embedding(items, shape.width)
        nn.init.normal_(self.items.weight, std=shape.width**-0.5)
        self.dropout = nn.Dropout(shape.dropout)
        self.cells = nn.GRU(shape.width, shape.width, batch_first=True)

    def forward(self, sequences: Tensor) -> Tensor:
        """Returns states (B, L, D) after each item of sequences (B, L), whose ends may be padded."""
        states, _ = self.cells(self.dropout(embedded(self.items, sequences)))
        found: Tensor = self.dropout(states)
        return found


Peer = SASRec | GRU4Rec
PEERS: dict[str, Callable[[int, Shape], Peer]] = {"sasrec": SASRec, "gru4rec": GRU4Rec}


class Targets(NamedTuple):
    """Clicks to predict, each by its place in one of M sequences of at most LENGTH items."""

    sequences: list[Ids]  # each: items of one user, oldest first
    places: list[Ids]  # of each sequence: positions whose next click is to be predicted
    clicks: list[Ids]  # and the numbers of those clicks


def targets_of(facts: Facts, first: int, end: int) -> Targets:
    """Returns the clicks from `first` on and before `end` that have a predecessor of their user.

    A user's history is cut so that each click is predicted from LENGTH / 2 earlier ones at least, where there are.
    """
    found = Targets([], [], [])
    order = np.argsort(facts.users[:end], kind="stable")
    of_user = np.split(order, np.flatnonzero(np.diff(facts.users[order])) + 1)
    for clicks in of_user:
        at = max(1, int(np.searchsorted(clicks, first)))
        while at < len(clicks):
            start = max(0, at - LENGTH // 2 if len(clicks) > LENGTH else 0)
            stop = min(len(clicks), start + LENGTH + 1)
            found.sequences.append(facts.items[clicks[start : stop - 1]])
            found.places.append(np.arange(at, stop) - start - 1)
            found.clicks.append(clicks[at:stop])
            at = stop
    return found


def batches(
    targets: Targets, order: Sequence[int], size: int = TARGETS_MAX
) -> Iterator[tuple[Tensor, Tensor, Tensor, Ids]]:
    """Yields sequences (B, L), and which of them (m,) and where in them (m,) the numbers of clicks (m,) are predicted.

    Sequences come in the order that is given, as many at once as have `size` targets.
    """
    taken: list[int] = []
    count = 0
    for number in [*order, -1]:
        if number >= 0:
            taken.append(number)
            count += len(targets.places[number])
        if taken and (count >= size or number < 0):
            padded = np.zeros((len(taken), max(len(targets.sequences[one]) for one in taken)), np.int64)
            for row, one in enumerate(taken):
                padded[row, : len(targets.sequences[one])] = targets.sequences[one]
            rows = np.repeat(np.arange(len(taken)), [len(targets.places[one]) for one in taken])
            places = np.concatenate([targets.places[one] for one in taken])
            clicks = np.concatenate([targets.clicks[one] for one in taken])
            yield torch.from_numpy(padded), torch.from_numpy(rows), torch.from_numpy(places), clicks
            taken, count = [], 0


def by_length(targets: Targets, random: np.random.Generator | None) -> list[int]:
    """Returns the sequences' numbers so that like lengths are beside each other; groups of them in random order."""
    lengths = np.array([len(one) for one in targets.sequences])
    noise = np.zeros(len(lengths)) if random is None else random.random(len(lengths))
    order = np.lexsort((noise, lengths))
    if random is None:
        return [int(one) for one in order]
    groups = np.array_split(order, max(1, len(order) // 64))
    return [int(one) for group in random.permutation(len(groups)) for one in groups[group]]


@torch.no_grad()
def ranks_of(model: Peer, targets: Targets, facts: Facts) -> tuple[Ids, NDArray[np.float64]]:
    """Returns numbers of clicks (m,), and the ranks of their items among those that were trained; inf for others."""
    model.eval()
    vectors = model.items.weight  # (V, D)
    clicks, ranks = [np.zeros(0, np.int64)], [np.zeros(0)]
    for sequences, rows, places, numbers in batches(targets, by_length(targets, None)):
        unknown = sequences >= len(vectors)  # items since the last training
        states = model(sequences.masked_fill(unknown, -1))[rows, places]  # (m, D)
        items = torch.from_numpy(facts.items[numbers])
        for at in range(0, len(items), RANKED_AT_ONCE):
            part = items[at : at + RANKED_AT_ONCE]
            known = part < len(vectors)
            scores = states[at : at + RANKED_AT_ONCE] @ vectors.T  # (·, V)
            own = scores.gather(1, part.where(known, 0)[:, None])
            rank = (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
            ranks.append(rank.double().masked_fill(~known, math.inf).numpy())
        clicks.append(numbers)
    return np.concatenate(clicks), np.concatenate(ranks)


class Softmax:
    """The loss: cross-entropy over all items that were trained, or an estimate of it."""

    def __init__(self, items: Ids, V: int, *, sampled: bool, random: np.random.Generator) -> None:
        """`items`: of all clicks that are trained."""
        self.negatives = Negatives(np.bincount(items + 1, minlength=V + 1).astype(float), V + 1) if sampled else None
        self.random = random

    def __call__(self, vectors: Tensor, states: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of states (m, D) that predict targets (m,) by vectors (V, D)."""
        if self.negatives is None:
            return F.cross_entropy(states @ vectors.T, targets)
        rows, log_q = self.negatives.draw(SAMPLED, self.random)
        items = rows - 1  # row 0 is no item
        own = (states * F.embedding(targets, vectors)).sum(1)
        others = states @ F.embedding(items, vectors).T
        return sampled_softmax_loss(own, others, targets, items, log_q).mean()


def gains(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns NDCG@10 of each click."""
    found: NDArray[np.float64] = hit_and_ndcg_at(ranks)[1]
    return found


def trained(name: str, shape: Shape, facts: Facts, end: int, *, sampled: bool) -> tuple[Peer, int]:
    """Returns a model trained anew on the clicks before `end`, and its epochs."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    V = int(facts.items[:end].max()) + 1  # items are numbered by their first click
    held_out = end - math.ceil(HELD_OUT * end)
    model = PEERS[name](V, shape)
    loss_of = Softmax(facts.items[:held_out], V, sampled=sampled or V > FULL_SOFTMAX_ITEMS, random=random)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-4)
    targets, held = targets_of(facts, 0, held_out), targets_of(facts, held_out, end)
    size = min(max(held_out // STEPS_PER_EPOCH, TARGETS_MIN), TARGETS_MAX)
    best, best_weights, best_epoch = -1.0, model.state_dict(), 0
    for epoch in range(1, EPOCHS_MAX + 1):
        model.train()
        for sequences, rows, places, numbers in batches(targets, by_length(targets, random), size):
            states = model(sequences)[rows, places]
            loss = loss_of(model.items.weight, states, torch.from_numpy(facts.items[numbers]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
        gained = float(gains(ranks_of(model, held, facts)[1]).mean())
        if gained > best:
            best, best_epoch = gained, epoch
            best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if epoch >= EPOCHS_MIN and epoch - best_epoch >= PATIENCE:
            break
    model.load_state_dict(best_weights)
    return model, best_epoch


def chosen(name: str, facts: Facts, *, sampled: bool) -> Shape:
    """Returns the shape that is best on the second tenth of the stream."""
    n = len(facts.users)
    end, stop = n // PARTS, 2 * n // PARTS
    following = targets_of(facts, end, stop)
    found = {}
    for shape in itertools.starmap(Shape, itertools.product(WIDTHS, DROPOUTS)):
        model, _ = trained(name, shape, facts, end, sampled=sampled)
        found[shape] = float(gains(ranks_of(model, following, facts)[1]).mean())
    return max(found, key=lambda shape: found[shape])


def run_peer(name: str, facts: Facts, *, sampled: bool = False) -> dict[str, Any]:
    """Returns figures of a peer over the whole stream."""
    began, n = time.process_time(), len(facts.users)
    shape = chosen(name, facts, sampled=sampled)
    ranks, epochs = np.full(n, np.inf), []
    for part in range(2, PARTS):
        end, stop = part * n // PARTS, (part + 1) * n // PARTS
        model, taken = trained(name, shape, facts, end, sampled=sampled)
        epochs.append(taken)
        clicks, found = ranks_of(model, targets_of(facts, end, stop), facts)
        ranks[clicks] = found
        print(f"  {name}: {end:,} clicks, {taken} epochs, NDCG@10 {gains(ranks[end:stop]).mean():.4f}", flush=True)
    figures = dict(zip(("hit@10", "ndcg@10"), map(_mean, hit_and_ndcg_at(ranks[facts.counted])), strict=True))
    return (
        figures
        | {"width": shape.width, "dropout": shape.dropout, "epochs": epochs}
        | {"cpu_s": time.process_time() - began}
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def line(name: str, figures: dict[str, Any], ours: dict[str, Any] | None) -> str:
    """Returns a method's figures, for a terminal."""
    text = f"{name:10s} NDCG@10 {figures['ndcg@10']:.4f}  hit@10 {figures['hit@10']:.4f}  CPU {figures['cpu_s']:,.0f} s"
    if "width" in figures:
        text += f"  width {figures['width']}, dropout {figures['dropout']}, epochs {figures['epochs']}"
    if ours is not None and figures is not ours:
        text += f"  nextclick is {ours['ndcg@10'] / figures['ndcg@10']:.2f} times"
    return text


def main() -> None:
    """Prints a line for each method, and nextclick's ratio to each peer."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("clicks", type=Path)
    arguments.add_argument("--limit", type=int)
    arguments.add_argument("--peers", default=",".join(PEERS))
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--sampled", action="store_true", help="estimate the softmax, however few items there are")
    arguments.add_argument("--without-nextclick", action="store_true")
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    settings = load_settings()
    clicks = read_clicks(open_file(given.clicks, None, None, None, None), settings, given.limit).clicks
    facts = facts_of(clicks)
    found: dict[str, Any] = {name: run_peer(name, facts, sampled=given.sampled) for name in given.peers.split(",")}
    if not given.without_nextclick:
        began = time.process_time()
        ranks = backtest(clicks, settings, methods=(NEXTCLICK,)).scored(NEXTCLICK)
        found[NEXTCLICK] = dict(zip(("hit@10", "ndcg@10"), map(_mean, hit_and_ndcg_at(ranks)), strict=True))
        found[NEXTCLICK]["cpu_s"] = time.process_time() - began
    for name, figures in found.items():
        print(line(name, figures, found.get(NEXTCLICK)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
