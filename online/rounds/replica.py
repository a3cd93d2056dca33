"""A worker's side: its changes out, bases in, and the live weights moved in place.

The live weights are always base + change in flight + fresh change. So what a worker has changed since need not be
kept: it is their difference, and what rounding left out of a change stays in it.

Letters: `V` rows of the vocabulary, `n` items.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.vocabulary import Vocabulary
from online.learner.arrays import below, joined
from online.learner.ranking_model import RankingModel
from online.rounds.base import Base, BaseRecord, Kind, Outcome, Verdict
from online.rounds.change import NARROW, ROW_CHANGE_MIN, Change, Ranges, Tag, hull, overlap
from online.rounds.encoding import decode_change, encode_change
from online.rounds.weights import GROUPS, UNIT, VARIANCE, Weights, group_of, narrowed


class Live(Protocol):
    """What learns: a `LearnerState` is one."""

    @property
    def weights(self) -> RankingModel: ...

    @property
    def vocabulary(self) -> Vocabulary: ...


class Replica:
    """The live weights of a worker in relation to the base. At most one change is in flight."""

    def __init__(
        self,
        live: Live,
        worker: str,
        epoch: str,
        *,
        narrow: torch.dtype = NARROW,
        row_change_min: float = ROW_CHANGE_MIN,
    ) -> None:
        """Creates a replica of base 0.

        Args:
            live: what learns; its weights are those before the first click.
            worker: the name of this worker.
            epoch: another one after each start.
            narrow: type of changes on the wire.
            row_change_min: rows in which no number has moved further wait.
        """
        self.live, self.worker, self.epoch = live, worker, epoch
        self.narrow, self.row_change_min = narrow, row_change_min
        self.base = Base(live.weights.tensors(), live.weights.vectors.seed)
        self.in_flight: Change | None = None
        self.clicks = 0  # trained since the last change
        self.ranges: Ranges = {}
        self.counts: Counter[str] = Counter()  # sent, merged, dropped, fresh_dropped, not_finite; old, fenced, gap
        self._sequence = 0
        self._item_of: dict[int, str] = {}  # by live row
        self._index = torch.zeros(1, dtype=torch.int64)  # (V,) the base's row of each live row; 0: none
        self.realign()

    # Rows of items

    def realign(self) -> None:
        """Follows a vocabulary that has been loaded."""
        vocabulary = self.live.vocabulary
        items = vocabulary.items_of(range(vocabulary.rows))
        self._item_of = {row: item for row, item in enumerate(items) if item is not None}
        self._index = torch.zeros(len(items), dtype=torch.int64)
        rows = torch.tensor(list(self._item_of), dtype=torch.int64)
        self._index[rows] = self.base.rows(list(self._item_of.values()))
        self._release()

    @torch.no_grad()
    def rows_changed(self, freed: Iterable[int], taken: Iterable[int]) -> None:
        """Follows the vocabulary: call it after rows were reset and before anything is trained on them.

        Args:
            freed: rows that lost their items.
            taken: rows that have got an item; its values become those of the base, which are the same everywhere.
        """
        vocabulary = self.live.vocabulary
        now = {row: item for row in taken if (item := vocabulary.item_of(row)) is not None}
        before = [self._item_of.pop(row) for row in {*freed, *now} if row in self._item_of]
        if vocabulary.rows > len(self._index):
            self._index = F.pad(self._index, (0, vocabulary.rows - len(self._index)))
        self._index[torch.tensor([*freed, *now], dtype=torch.int64)] = 0
        self._item_of |= now
        self._index[torch.tensor(list(now), dtype=torch.int64)] = self.base.rows(list(now.values()))
        self.live.weights.grow(max(now, default=0) + 1)
        self._set_rows(now)
        self.base.release(item for item in before if item not in vocabulary)

    def _set_rows(self, items: Mapping[int, str]) -> None:
        """Sets live rows to base + change in flight."""
        if not items:
            return
        tensors, rows = self.live.weights.tensors(), torch.tensor(list(items), dtype=torch.int64)
        values = {name: table[self._index[rows]] for name, table in self.base.tables.items()}
        if self.in_flight is not None:
            at = {item: place for place, item in enumerate(items.values())}
            for name, sent in self.in_flight.weights.rows.items():
                found = [(at[i], n) for n, i in enumerate(self.in_flight.weights.items[group_of(name)]) if i in at]
                for place, n in found:
                    values[name][place] += sent[n].float()
        for name, value in values.items():
            tensors[name][rows.to(tensors[name].device)] = value.to(tensors[name])

    def _release(self) -> None:
        """Frees the base's rows of items that neither a record nor the vocabulary names."""
        self.base.release([item for item in self.base.row_of if item not in self.live.vocabulary])

    # Changes

    def trained(self, partition: int, start: int, stop: int, clicks: int) -> None:
        """Notes that the live weights have learned from offsets `start` up to, not including, `stop`."""
        if start < stop:
            hull(self.ranges, partition, start, stop)
            self.clicks += clicks

    def is_merged(self, partition: int, offset: int) -> bool:
        """Returns whether training on this offset would be dropped, because the base has it."""
        return offset < self.base.position.merged.get(partition, 0)

    @torch.no_grad()
    def change(self) -> Change | None:
        """Returns what to publish; None if a change is in flight, nothing was trained, or weights are not finite."""
        if self.in_flight is not None or not self.ranges or self.clicks < 1 or self.base.lost:
            return None
        tensors = self.live.weights.tensors()
        dense = {
            name: narrowed(tensors[name].cpu() - base, self.narrow) for name, base in self.base.dense.items()
        }  # fmt: skip
        dense = {name: change for name, change in dense.items() if bool(change.any())}
        items, rows = self._moved_rows(tensors)
        statistics = {name: tensors[name].cpu().clone() for name in self.base.statistics}
        counters = {name: int(tensors[name]) - at for name, at in self.base.counters.items()}
        weights = Weights(dense, items, rows, statistics, {name: max(0, growth) for name, growth in counters.items()})
        if not all(bool(torch.isfinite(t).all()) for t in (dense | rows | statistics).values()):
            self.counts["not_finite"] += 1
            return None
        self._sequence += 1
        tag = Tag(self.worker, self.epoch, self._sequence)
        self.in_flight = Change(tag, self.base.position.number, self.clicks, self.ranges, weights)
        self.clicks, self.ranges = 0, {}
        self.counts["sent"] += 1
        return self.in_flight

    def _moved_rows(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]]:
        """Returns the items of each table whose rows have moved far enough, and the changes of their rows."""
        items: dict[str, tuple[str, ...]] = {}
        rows: dict[str, Tensor] = {}
        live = self._index.nonzero()[:, 0]
        at = self._index[live]
        for group in GROUPS:
            names = [name for name in self.base.tables if group_of(name) == group]
            changes = {name: tensors[name].cpu()[live] - self.base.tables[name][at] for name in names}
            moved = torch.zeros(len(live), dtype=torch.bool)
            for change in changes.values():
                if len(live):
                    # A number that is not finite has moved too: the change is refused as a whole.
                    moved |= ~(change.abs().amax(1) <= self.row_change_min)
            if bool(moved.any()):
                items[group] = tuple(self._item_of[row] for row in live[moved].tolist())
                narrow = {name: narrowed(change[moved], self.narrow) for name, change in changes.items()}
                rows |= {name: change for name, change in narrow.items() if bool(change.any())}
        return items, rows

    # Bases

    @torch.no_grad()
    def rebase(self, record: BaseRecord) -> Outcome:
        """Takes a record of a leader: live weights become new base + what is not merged in it of this worker's own.

        Raises:
            RoundsError: the record does not fit these weights; nothing has changed.
        """
        outcome = self.base.judge(record)
        if outcome != Outcome.APPLIED:
            self.counts[outcome.value] += 1
            return self.base.apply(record)
        record.weights.check(self.base.shape, whole=record.kind != Kind.STEP)
        sent = self._resolved(record)
        if record.kind == Kind.STEP:
            self._step(record, sent)
        else:
            self._replace(record, sent)
        if record.discard or overlap(self.ranges, self.base.position.merged):
            self.counts["fresh_dropped"] += bool(self.ranges)
            self.drop_fresh()
        return outcome

    def _resolved(self, record: BaseRecord) -> Weights:
        """Returns what this worker no longer has to keep apart: its change in flight, if that was merged or dropped."""
        change = self.in_flight
        if change is None:
            return Weights()
        verdict = record.position.verdict(change)
        if change.tag in record.taken:
            verdict = Verdict.MERGED
        elif change.tag in record.dropped:
            verdict = Verdict.DROPPED
        if verdict == Verdict.WAITING:
            return Weights()
        self.counts[verdict.value] += 1
        self.in_flight = None
        return change.weights

    def _step(self, record: BaseRecord, sent: Weights) -> None:
        tensors, step = self.live.weights.tensors(), record.weights
        was = {name: sent.statistics.get(name, value) for name, value in self.base.statistics.items()}
        self.base.apply(record)
        for name in step.dense.keys() | sent.dense.keys():
            zero = torch.zeros_like(self.base.dense[name])
            moved = step.dense.get(name, zero).float() - sent.dense.get(name, zero).float()
            tensors[name] += moved.to(tensors[name])
        for name in self.base.counters:
            tensors[name] += step.counters.get(name, 0) - sent.counters.get(name, 0)
        self._move_statistics(tensors, was)
        for name in self.base.tables:
            self._move_rows(name, tensors[name], step, sent)
        row_of = self.live.vocabulary.row_of
        self._set_rows({row: item for item in record.forgotten if (row := row_of(item)) in self._item_of})
        self.base.release(item for item in record.forgotten if item not in self.live.vocabulary)

    def _move_statistics(self, tensors: Mapping[str, Tensor], was: Mapping[str, Tensor]) -> None:
        """Running means keep what this worker has observed since `was`."""
        for name, now in self.base.statistics.items():
            tensors[name] += (now - was[name]).to(tensors[name])
            if name == VARIANCE:
                tensors[name].clamp_(min=0)

    def _move_rows(self, name: str, live: Tensor, step: Weights, sent: Weights) -> None:
        """Adds to live rows what a step added to the base, less what this worker had added to them itself."""
        group = group_of(name)
        places: dict[str, int] = {}
        parts: list[tuple[Tensor, Tensor]] = []
        for weights, sign in ((step, 1.0), (sent, -1.0)):
            if name in weights.rows:
                at = [places.setdefault(item, len(places)) for item in weights.items[group]]
                parts.append((torch.tensor(at, dtype=torch.int64), sign * weights.rows[name].float()))
        moved = torch.zeros(len(places), *live.shape[1:])
        for at_rows, values in parts:
            moved.index_add_(0, at_rows, values)
        rows = torch.tensor(self._live_rows(list(places)), dtype=torch.int64)
        wanted = (rows > 0) & (moved != 0).flatten(1).any(1)
        at_live = rows[wanted].to(live.device)
        values = live[at_live] + moved[wanted].to(live)
        live[at_live] = F.normalize(values, dim=-1) if name in UNIT else values

    def _live_rows(self, items: Sequence[str]) -> list[int]:
        rows = map(self.live.vocabulary.row_of, items)
        return [row if self._item_of.get(row) == item else 0 for row, item in zip(rows, items, strict=True)]

    def _replace(self, record: BaseRecord, sent: Weights) -> None:
        tensors = self.live.weights.tensors()
        own = self._own(tensors, sent)
        was = {name: sent.statistics.get(name, value) for name, value in self.base.statistics.items()}
        counted = {name: at + sent.counters.get(name, 0) for name, at in self.base.counters.items()}
        self.base.apply(record)
        rows = self._index.nonzero()[:, 0]
        for name, base in self.base.dense.items():
            tensors[name].copy_(base + own[name])
        for name, table in self.base.tables.items():
            values = table[self._index[rows]] + own[name]
            tensors[name][rows.to(tensors[name].device)] = (
                F.normalize(values, dim=-1) if name in UNIT else values
            ).to(tensors[name])  # fmt: skip
        for name, at in self.base.counters.items():
            tensors[name] += at - counted[name]
        self._move_statistics(tensors, was)
        self._release()

    def _own(self, tensors: Mapping[str, Tensor], sent: Weights) -> dict[str, Tensor]:
        """Returns live − base − sent, of dense tensors and of the rows in use."""
        own = {name: tensors[name].cpu() - base for name, base in self.base.dense.items()}
        for name, change in sent.dense.items():
            own[name] -= change.float()
        rows = self._index.nonzero()[:, 0]
        place = torch.zeros(len(self._index), dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        for name, table in self.base.tables.items():
            own[name] = tensors[name].cpu()[rows] - table[self._index[rows]]
            if name in sent.rows:
                live = torch.tensor(self._live_rows(sent.items[group_of(name)]), dtype=torch.int64)
                own[name][place[live[live > 0]]] -= sent.rows[name][live > 0].float()
        return own

    def drop_fresh(self) -> None:
        """Gives up what was learned since the last change: live weights become base + change in flight."""
        tensors = self.live.weights.tensors()
        sent = Weights() if self.in_flight is None else self.in_flight.weights
        for name, base in self.base.dense.items():
            tensors[name].copy_(base + sent.dense[name].float() if name in sent.dense else base)
        for name, value in self.base.statistics.items():
            tensors[name].copy_(sent.statistics.get(name, value))
        for name, at in self.base.counters.items():
            tensors[name].fill_(at + sent.counters.get(name, 0))
        self._set_rows(self._item_of)
        self.clicks, self.ranges = 0, {}

    @torch.no_grad()
    def change_to(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Returns what makes of the live weights another version, float32, with rows as in this worker's vocabulary."""
        live, rows = self.live.weights.tensors(), self._index.nonzero()[:, 0]
        items = tuple(self._item_of[row] for row in rows.tolist())
        return Weights(
            {name: tensors[name].cpu() - live[name].cpu() for name in self.base.dense},
            dict.fromkeys(GROUPS, items),
            {name: tensors[name].cpu()[rows] - live[name].cpu()[rows] for name in self.base.tables},
        )

    @torch.no_grad()
    def moved_base(self, change: Weights) -> Weights:
        """Returns the base with a change, whole: what this worker has not published yet is left out, since it comes by
        its own changes."""
        whole = self.base.whole()
        dense = {name: value + change.dense[name] for name, value in whole.dense.items()}
        here = {item for item in change.items.get(GROUPS[0], ()) if item in self.base.row_of}
        items = tuple(sorted(self.base.known | here))
        rows = self.base.rows(items)
        tables = {name: table[rows] for name, table in self.base.tables.items()}
        place = {item: at for at, item in enumerate(items)}
        for name, values in change.rows.items():
            found = [(place[i], n) for n, i in enumerate(change.items[group_of(name)]) if i in place]
            at, of = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).unbind(1)
            tables[name][at] += values[of]
        named = dict.fromkeys(GROUPS, items) if items else {}
        return Weights(dense, named, tables if items else {}, whole.statistics, whole.counters)

    @torch.no_grad()
    def whole(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Returns another version for a replacement of the base; items that this worker lacks keep their rows of it.

        Args:
            tensors: of the version, with rows as in this worker's vocabulary.
        """
        rows = self._index.nonzero()[:, 0]
        live = {self._item_of[row]: row for row in rows.tolist()}
        items = tuple(sorted({*self.base.known, *live}))
        tables = {name: table[self.base.rows(items)] for name, table in self.base.tables.items()}
        own = torch.tensor([(at, live[i]) for at, i in enumerate(items) if i in live], dtype=torch.int64)
        at, of = own.reshape(-1, 2).unbind(1)
        for name, values in tables.items():
            values[at] = tensors[name].cpu()[of]
        return Weights(
            {name: tensors[name].cpu().clone() for name in self.base.dense},
            dict.fromkeys(GROUPS, items) if items else {},
            tables if items else {},
            {name: tensors[name].cpu().clone() for name in self.base.statistics},
            {name: int(tensors[name]) for name in self.base.counters},
        )

    @torch.no_grad()
    def all_learned(self, clicks: int, ranges: Ranges) -> Change:
        """Returns all that the live weights differ from the base by, exact, as the change in flight: of a worker that
        learned alone. What was in flight before counts as not sent."""
        tensors, rows = self.live.weights.tensors(), self._index.nonzero()[:, 0]
        items = tuple(self._item_of[row] for row in rows.tolist())
        weights = Weights(
            {name: tensors[name].cpu() - base for name, base in self.base.dense.items()},
            dict.fromkeys(GROUPS, items) if items else {},
            {name: tensors[name].cpu()[rows] - table[self._index[rows]] for name, table in self.base.tables.items()},
            {name: tensors[name].cpu().clone() for name in self.base.statistics},
            {name: max(0, int(tensors[name]) - at) for name, at in self.base.counters.items()},
        )
        self._sequence += 1
        self.in_flight = Change(
            Tag(self.worker, self.epoch, self._sequence), self.base.position.number, max(1, clicks), ranges, weights
        )
        self.clicks, self.ranges = 0, {}
        return self.in_flight

    @torch.no_grad()
    def give_up_own(self) -> None:
        """The live weights become the base: what this worker has learned itself is given up."""
        self.in_flight = None
        self.drop_fresh()

    # Checkpoints; the live weights are in the learner's

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name and a JSON object."""
        arrays, base = self.base.to_state()
        parts: dict[str, dict[str, NDArray[Any]]] = {"base": arrays}
        if self.in_flight is not None:
            parts["change"] = {"in_flight": np.frombuffer(encode_change(self.in_flight), np.uint8)}
        ranges = [[partition, *bounds] for partition, bounds in self.ranges.items()]
        state = {"base": base, "worker": self.worker, "clicks": self.clicks, "ranges": ranges}
        return joined(parts), state | {"counts": dict(self.counts)}

    @torch.no_grad()
    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned, once the learner is loaded.

        Of another worker's checkpoint, that worker's own change is dropped: it publishes it itself. Of this worker's,
        what was merged meanwhile is dropped when the bases since then are read.
        """
        self.base.load_state(below(arrays, "base"), state["base"])
        self.realign()
        self.in_flight, self.clicks, self.ranges = None, 0, {}
        if state["worker"] != self.worker:
            self.drop_fresh()
            return
        self.counts = Counter(state["counts"])
        self.clicks = state["clicks"]
        self.ranges = {partition: (start, stop) for partition, start, stop in state["ranges"]}
        if change := below(arrays, "change"):
            self.in_flight = decode_change(change["in_flight"].tobytes(), self.base.shape)
