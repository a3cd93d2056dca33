"""The base: the weights on which all workers agree, because each computes them from the same records in one order.

A record is accepted if it continues what was accepted last, so every reader of the topic decides the same:

- A *step* or a *replacement* says which record it follows. Of two that follow the same one, the first in the topic's
  order is accepted; one of a leader with a lower epoch than the last accepted leader's never is.
- A *snapshot* is a base that was accepted, whole. It is taken by those who lack it.

Sums of float32 are the same on every machine, so bases are equal bit for bit. Letters: `R` rows, `n` items.
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.vocabulary import grown
from online.learner.arrays import below, joined
from online.rounds.change import Change, Tag, overlap
from online.rounds.weights import GROUPS, Shape, Weights, group_of, start_of

WORKERS_REMEMBERED = 1024  # whose latest change is known; ranges of offsets decide about those of others


class Kind(enum.StrEnum):
    """What a record does to the base before it."""

    STEP = "step"  # changes it
    REPLACEMENT = "replacement"  # follows it with other weights: a version was published, or rolled back
    SNAPSHOT = "snapshot"  # is the base itself, whole


class Outcome(enum.StrEnum):
    """What a record was to its reader."""

    APPLIED = "applied"
    OLD = "old"  # known already, or another one was first
    FENCED = "fenced"  # of a leader that has a successor
    GAP = "gap"  # one before it is missing: the reader needs a snapshot


class Verdict(enum.StrEnum):
    """What became of a change."""

    WAITING = "waiting"
    MERGED = "merged"
    DROPPED = "dropped"


@dataclass(frozen=True)
class Position:
    """Where the base stands.

    Attributes:
        number: of the base; the weights before the first click are base 0.
        identity: of the record that made it.
        leader_epoch: of the leader that made it.
        floor: changes relative to bases below this number are void.
        merged: the next offset to be merged, by partition.
        sequences: epoch and number of the latest change merged, by worker; in the order in which they were merged.
    """

    number: int = 0
    identity: str = ""
    leader_epoch: int = 0
    floor: int = 0
    merged: dict[int, int] = field(default_factory=dict)
    sequences: dict[str, tuple[str, int]] = field(default_factory=dict)

    def verdict(self, change: Change) -> Verdict:
        """Returns what became of a change, or that it may still be merged."""
        epoch, sequence = self.sequences.get(change.tag.worker, ("", 0))
        if epoch == change.tag.epoch and change.tag.sequence <= sequence:
            return Verdict.MERGED
        if change.base < self.floor or overlap(change.ranges, self.merged):
            return Verdict.DROPPED
        return Verdict.WAITING

    def after(self, changes: Iterable[Change]) -> tuple[dict[int, int], dict[str, tuple[str, int]]]:
        """Returns `merged` and `sequences` once these changes are merged too."""
        merged, sequences = dict(self.merged), dict(self.sequences)
        for change in changes:
            merged |= {partition: stop for partition, (_, stop) in change.ranges.items()}
            sequences.pop(change.tag.worker, None)
            sequences[change.tag.worker] = change.tag.epoch, change.tag.sequence
        return merged, dict(list(sequences.items())[-WORKERS_REMEMBERED:])


@dataclass(frozen=True)
class BaseRecord:
    """What a leader publishes.

    Attributes:
        kind: what it does.
        position: where the base stands once it is accepted.
        parent: identity of the record that it follows.
        leader: the worker that wrote it.
        clicks: how many were trained in what was merged.
        weights: the change (of a step), or all that differs from the weights at the start.
        taken: changes that were merged in it.
        dropped: changes that never will be.
        forgotten: items that go back to their start.
        discard: whether workers give up what they have changed since (of a replacement).
    """

    kind: Kind
    position: Position
    parent: str
    leader: str
    clicks: int
    weights: Weights
    taken: tuple[Tag, ...] = ()
    dropped: tuple[Tag, ...] = ()
    forgotten: tuple[str, ...] = ()
    discard: bool = False


class Base:
    """The base as one worker holds it: float32, on the CPU, with rows of its own for items.

    An item has a row if a record has named it (it is *known*), or if this worker's vocabulary has it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], seed: int) -> None:
        """Creates base 0.

        Args:
            tensors: the weights before the first click, `RankingModel.tensors()`.
            seed: of items' first vectors.
        """
        self.shape, self.seed = Shape.of(tensors), seed
        self.dense = {name: _copy(tensors[name]) for name in self.shape.dense}
        self.statistics = {name: _copy(tensors[name]) for name in self.shape.statistics}
        self.counters = {name: int(tensors[name]) for name in self.shape.counters}
        self.tables = {name: torch.zeros(1, *tail) for name, tail in self.shape.rows.items()}  # (R, ·)
        self.rests = {name: torch.zeros_like(tensor) for name, tensor in self.dense.items()}  # of the leader's rounding
        self.row_rests: dict[str, Tensor] = {}  # (R, ·), once this worker has led
        self.row_of: dict[str, int] = {}
        self.known: set[str] = set()
        self._free: list[int] = []
        digest = hashlib.blake2b(digest_size=8)
        for name in sorted(self.dense):
            digest.update(self.dense[name].numpy().tobytes())
        self.position = Position(identity=digest.hexdigest())
        self.lost = False  # since a gap, until a snapshot

    # Rows

    def rows(self, items: Sequence[str]) -> Tensor:
        """Returns the rows (n,) int64 of items; those that have none get one, with the item's start in it."""
        new = [item for item in items if item not in self.row_of]
        if new:
            self._hand_out(new)
        return torch.tensor([self.row_of[item] for item in items], dtype=torch.int64)

    def _hand_out(self, items: Sequence[str]) -> None:
        size = len(next(iter(self.tables.values()))) if self.tables else 1
        used = 1 + len(self.row_of) + len(self._free)
        while len(self._free) < len(items):
            self._free.append(used)
            used += 1
        for item in items:
            self.row_of[item] = self._free.pop()
        more = grown(used, size) - size
        rows = torch.tensor([self.row_of[item] for item in items], dtype=torch.int64)
        for tables in (self.tables, self.row_rests):
            for name, table in tables.items():
                tables[name] = torch.cat([table, table.new_zeros(more, *table.shape[1:])]) if more else table
        for name, table in self.tables.items():
            table[rows] = start_of(name, items, self.shape.rows[name], self.seed)
        for table in self.row_rests.values():
            table[rows] = 0

    def release(self, items: Iterable[str]) -> None:
        """Items have left this worker's vocabulary; rows of those that no record has named are free."""
        for item in items:
            if item not in self.known and item in self.row_of:
                self._free.append(self.row_of.pop(item))

    def forget(self, items: Sequence[str]) -> None:
        """Items go back to their start, as if no record had named them."""
        there = [item for item in items if item in self.row_of]
        self.known.difference_update(items)
        rows = self.rows(there)
        for name, table in self.tables.items():
            table[rows] = start_of(name, there, self.shape.rows[name], self.seed)
        for table in self.row_rests.values():
            table[rows] = 0

    # Records

    def judge(self, record: BaseRecord) -> Outcome:
        """Returns what a record is to this base, which stays as it is."""
        number, mine = record.position.number, self.position
        if record.kind == Kind.SNAPSHOT:
            better = number > mine.number or (self.lost and record.position.identity != mine.identity)
            return Outcome.APPLIED if better else Outcome.OLD
        if number <= mine.number:
            return Outcome.OLD
        if number > mine.number + 1 or record.parent != mine.identity:
            return Outcome.GAP
        return Outcome.FENCED if record.position.leader_epoch < mine.leader_epoch else Outcome.APPLIED

    @torch.no_grad()
    def apply(self, record: BaseRecord) -> Outcome:
        """Takes a record, if it continues this base."""
        outcome = self.judge(record)
        if outcome == Outcome.GAP:
            self.lost = True
        if outcome != Outcome.APPLIED:
            return outcome
        record.weights.check(self.shape, whole=record.kind != Kind.STEP)
        if record.kind == Kind.STEP:
            self._step(record)
        else:
            self._replace(record.weights)
        self.position, self.lost = record.position, False
        return outcome

    def _step(self, record: BaseRecord) -> None:
        weights = record.weights
        for name, change in weights.dense.items():
            self.dense[name] += change.float()
        for name, growth in weights.counters.items():
            self.counters[name] += growth
        self.statistics |= {name: _copy(value) for name, value in weights.statistics.items()}
        for group, items in weights.items.items():
            rows = self.rows(items)
            self.known.update(items)
            for name, change in weights.rows.items():
                if group_of(name) == group:
                    self.tables[name][rows] += change.float()
        self.forget(record.forgotten)

    def _replace(self, weights: Weights) -> None:
        held = [*self.known]
        for rest in self.rests.values():
            rest.zero_()
        self.forget(held)
        for rest in self.row_rests.values():
            rest.zero_()
        self.dense |= {name: _copy(value) for name, value in weights.dense.items()}
        self.statistics |= {name: _copy(value) for name, value in weights.statistics.items()}
        self.counters |= weights.counters
        for group, items in weights.items.items():
            rows = self.rows(items)
            self.known.update(items)
            for name, values in weights.rows.items():
                if group_of(name) == group:
                    self.tables[name][rows] = values.float()

    def whole(self) -> Weights:
        """Returns all that differs from the start: what a snapshot holds."""
        items = tuple(sorted(self.known))
        rows = self.rows(items)
        return Weights(
            {name: tensor.clone() for name, tensor in self.dense.items()},
            dict.fromkeys(GROUPS, items) if items else {},
            {name: table[rows] for name, table in self.tables.items()} if items else {},
            {name: tensor.clone() for name, tensor in self.statistics.items()},
            dict(self.counters),
        )

    # Checkpoints

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name and a JSON object."""
        weights, p = self.whole(), self.position
        items = sorted(self.known)
        rests = {name: self.row_rest(name, items) for name in self.row_rests}
        parts: dict[str, dict[str, Tensor]] = {
            "dense": weights.dense,
            "rows": weights.rows,
            "statistics": weights.statistics,
            "rests": {name: rest.clone() for name, rest in self.rests.items()},
            "row_rests": rests,
        }
        arrays = joined({part: {name: t.numpy() for name, t in tensors.items()} for part, tensors in parts.items()})
        position = {**vars(p), "merged": list(p.merged.items()), "sequences": list(p.sequences.items())}
        return arrays, {"items": items, "counters": self.counters, "position": position, "lost": self.lost}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned. Items of this worker's vocabulary keep their rows."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        items = tuple(state["items"])
        named = dict.fromkeys(GROUPS, items) if items else {}
        dense, rows, statistics = (below(tensors, part) for part in ("dense", "rows", "statistics"))
        weights = Weights(dense, named, rows, statistics, state["counters"])
        weights.check(self.shape, whole=True)
        self._replace(weights)
        self.rests = below(tensors, "rests")
        for name, rest in below(tensors, "row_rests").items():
            self.set_row_rest(name, items, rest)
        position = dict(state["position"])
        position["merged"] = {int(partition): int(offset) for partition, offset in position["merged"]}
        position["sequences"] = {worker: (epoch, int(at)) for worker, (epoch, at) in position["sequences"]}
        self.position, self.lost = Position(**position), state["lost"]

    def row_rest(self, name: str, items: Sequence[str]) -> Tensor:
        """Returns what a leader's rounding left out of items' rows, (n, ·)."""
        if name not in self.row_rests:
            return torch.zeros(len(items), *self.shape.rows[name])
        return self.row_rests[name][[self.row_of.get(item, 0) for item in items]]  # row 0 is zero

    def set_row_rest(self, name: str, items: Sequence[str], rest: Tensor) -> None:
        """Sets what rounding left out of items' rows, (n, ·)."""
        rows = self.rows(items)
        self.row_rests.setdefault(name, torch.zeros_like(self.tables[name]))[rows] = rest


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
