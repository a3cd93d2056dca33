"""Workers without networks: a few tensors with the names of real ones, a vocabulary, and random "training"."""

import itertools
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from model.vocabulary import Vocabulary
from online.rounds.merger import Merger
from online.rounds.replica import Replica
from online.rounds.weights import MEAN, VARIANCE

D = 4


class SmallModel:
    """What `Replica` needs of a `RankingModel`."""

    def __init__(self, rows=4):
        self.vectors = SimpleNamespace(seed=7)
        self.held = {
            "network.items.vectors": torch.zeros(rows, D),
            "network.items.biases": torch.zeros(rows, 1),
            "network.up": torch.arange(6.0).reshape(2, 3),
            "network.rotations": torch.ones(2, 2),
            "ranker.linear": torch.ones(5),
            MEAN: torch.zeros(3),
            VARIANCE: torch.ones(3),
            "ranker.batches": torch.tensor(0),
            "vectors.vectors": torch.zeros(rows, D),
            "vectors.biases": torch.zeros(rows, 1),
        }

    def tensors(self):
        return dict(self.held)

    def grow(self, rows):
        for name, table in self.held.items():
            if name.startswith(("network.items.", "vectors.")) and len(table) < rows:
                self.held[name] = torch.cat([table, torch.zeros(2 * rows - len(table), *table.shape[1:])])


class Worker:
    """A replica and a merger of one worker, and what it trains."""

    def __init__(self, name, epoch="1", *, gain=0.0, items_max=100, seed=0, **options):
        self.weights, self.vocabulary = SmallModel(), Vocabulary(capacity_max=items_max)
        self.replica = Replica(self, name, epoch, **options)
        identities = itertools.count()
        self.merger = Merger(
            self.replica.base, name, gain=gain, identity=lambda: f"{name}/{epoch}/{next(identities)}"
        )  # fmt: skip
        self.random = torch.Generator().manual_seed(seed)

    @property
    def base(self):
        return self.replica.base

    def see(self, *items):
        """The vocabulary gets items."""
        before = {item: self.vocabulary.row_of(item) for item in items}
        for item in items:
            self.vocabulary.observe(item, 0.0)
        rows = [self.vocabulary.row_of(item) for item in items if self.vocabulary.row_of(item) != before[item]]
        self.replica.rows_changed(self.vocabulary.take_reset(), [row for row in rows if row])

    def train(self, partition, start, stop, items=(), size=0.1):
        """Moves all dense weights and these items' rows, as if offsets from `start` to `stop` had been learned."""
        self.see(*items)
        rows = [row for item in items if (row := self.vocabulary.row_of(item))]
        for name, tensor in self.weights.held.items():
            if name.endswith(".rotations") or name == "vectors.biases":
                continue
            if name.startswith(("network.items.", "vectors.")):
                tensor[rows] += size * torch.randn(len(rows), *tensor.shape[1:], generator=self.random)
                if name == "vectors.vectors":
                    tensor[rows] = F.normalize(tensor[rows], dim=-1)
            elif tensor.is_floating_point():
                noise = size * torch.randn(tensor.shape, generator=self.random)
                tensor.add_(noise.abs() if name == VARIANCE else noise)
            else:
                tensor.add_(1)
        self.replica.trained(partition, start, stop, stop - start)

    def item(self, item, table="network.items.vectors"):
        return self.weights.held[table][self.vocabulary.row_of(item)]

    def take(self, record):
        outcome = self.replica.rebase(record)
        if outcome == "applied":
            self.merger.settle(record)
        return outcome


def by_item(worker):
    """All weights of a worker, float64: dense ones by name, rows by (name, item)."""
    found = {}
    for name, tensor in worker.weights.held.items():
        if name.startswith(("network.items.", "vectors.")):
            for item in worker.vocabulary.to_state()["items"]:
                found[name, item] = tensor[worker.vocabulary.row_of(item)].double().clone()
        else:
            found[name] = tensor.double().clone()
    return found


def base_by_item(base):
    """The base of a worker, in the same form; items that no record has named are left out."""
    found = {name: tensor.clone() for name, tensor in (base.dense | base.statistics).items()}
    found |= {name: torch.tensor(count) for name, count in base.counters.items()}
    for name, table in base.tables.items():
        found |= {(name, item): table[base.row_of[item]].clone() for item in base.known}
    return found


def assert_same_base(one, other):
    """Bit for bit."""
    assert one.position == other.position
    mine, its = base_by_item(one), base_by_item(other)
    assert mine.keys() == its.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, its[name]), name
