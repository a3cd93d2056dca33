"""The leader's side: changes in, the next base out."""

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.rounds.base import Base, BaseRecord, Kind, Verdict
from online.rounds.change import NARROW, Change, Tag
from online.rounds.combine import combine
from online.rounds.encoding import decode_change, encode_change
from online.rounds.weights import RoundsError, Weights, group_of, narrowed

PENDING_MAX = 256  # changes that wait; each worker has one in flight, so more are of workers that are gone
DROPPED_MAX = 256  # tags of dropped changes that a record can name
ABSENT_BASES = 100  # an item that the leader does not have is forgotten after so many


def _nonce() -> str:
    return secrets.token_hex(8)


class Merger:
    """Collects changes in the order of the topic, and makes the next base of those that are there.

    It reads every record, whether its worker leads or not; so a new leader has what its predecessor had. It shares the
    base with its worker's `Replica`: first the replica takes a record, then this (`settle`).
    """

    def __init__(self, base: Base, worker: str, *, gain: float = 0.0, identity: Callable[[], str] = _nonce) -> None:
        """Creates a merger with no changes.

        Args:
            base: which `Base.apply` moves.
            worker: the name of this worker.
            gain: how much each change counts (`combine`).
            identity: makes an id for a record, another one each time.
        """
        self.base, self.worker, self.gain = base, worker, gain
        self.counts: Counter[str] = Counter()  # merged, dropped, repeated, overflowed
        self._identity = identity
        self._pending: dict[Tag, Change] = {}  # in the order of the topic
        self._dropped: dict[Tag, None] = {}
        self._absent: dict[str, int] = {}  # items the leader does not have: the base at which that was noticed
        self._published: tuple[str, dict[str, Tensor], tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]] | None = (
            None
        )

    def __len__(self) -> int:
        """Changes that wait."""
        return len(self._pending)

    def add(self, change: Change) -> Verdict:
        """Takes a change that the topic brought -> whether it waits, or why not. A repeated one counts as merged."""
        verdict = self.base.position.verdict(change)
        if verdict == Verdict.MERGED or change.tag in self._pending:
            self.counts["repeated"] += 1
            return Verdict.MERGED
        try:
            change.weights.check(self.base.shape)
        except RoundsError:
            verdict = Verdict.DROPPED
        if verdict == Verdict.DROPPED:
            self._drop(change.tag)
            return verdict
        self._pending[change.tag] = change
        if len(self._pending) > PENDING_MAX:
            tag = next(iter(self._pending))
            del self._pending[tag]
            self.counts["overflowed"] += 1
            self._drop(tag)
        return verdict

    def claimed(self) -> dict[int, int]:
        """Returns the offset after the changes that wait, by partition."""
        claimed: dict[int, int] = {}
        for change in self._pending.values():
            for partition, (_, stop) in change.ranges.items():
                claimed[partition] = max(stop, claimed.get(partition, 0))
        return claimed

    def _drop(self, tag: Tag) -> None:
        self.counts["dropped"] += 1
        self._dropped[tag] = None
        if len(self._dropped) > DROPPED_MAX:
            del self._dropped[next(iter(self._dropped))]

    def settle(self, record: BaseRecord) -> None:
        """Follows a record that the base has accepted."""
        own = self._published is not None and self._published[0] == record.position.identity
        if own and self._published is not None:
            _, rests, (row_rests, items) = self._published
            self.base.rests |= rests
            for name, rest in row_rests.items():
                self.base.set_row_rest(name, items[group_of(name)], rest)
        self._published = None
        for tag in record.dropped:
            self._dropped.pop(tag, None)
            self._pending.pop(tag, None)
        for tag in record.taken:
            self._dropped.pop(tag, None)
            self.counts["merged"] += self._pending.pop(tag, None) is not None
        for tag, change in list(self._pending.items()):
            verdict = self.base.position.verdict(change)
            if verdict != Verdict.WAITING:
                del self._pending[tag]
            if verdict == Verdict.DROPPED:
                self._drop(tag)

    @torch.no_grad()
    def next_base(self, leader_epoch: int, held: Collection[str] | None = None) -> BaseRecord | None:
        """Returns the step to the next base, made of the changes that wait; None if there are none.

        Nothing changes here until the topic brings the record back: another leader's may be first.

        Args:
            leader_epoch: of this leader, higher than its predecessor's.
            held: items that the leader's vocabulary has; None: no item is forgotten.
        """
        position = self.base.position
        chosen: list[Change] = []
        dropped = list(self._dropped)
        tentative = position
        for change in self._pending.values():
            if tentative.verdict(change) != Verdict.WAITING:  # two of them cover the same offsets
                dropped.append(change.tag)
                continue
            chosen.append(change)
            merged, sequences = tentative.after([change])
            tentative = replace(tentative, merged=merged, sequences=sequences)
        if not chosen and not dropped:
            return None
        identity = self._identity()
        step = self._step(combine(chosen, self.gain), identity) if chosen else Weights()
        moved = {item for items in step.items.values() for item in items}
        return BaseRecord(
            kind=Kind.STEP,
            position=replace(tentative, number=position.number + 1, identity=identity, leader_epoch=leader_epoch),
            parent=position.identity,
            leader=self.worker,
            clicks=sum(change.clicks for change in chosen),
            weights=step,
            taken=tuple(change.tag for change in chosen),
            dropped=tuple(dropped),
            forgotten=() if held is None else self._forgotten(held, moved),
        )

    def _step(self, wanted: Weights, identity: str) -> Weights:
        """Rounds a change together with what earlier rounding left out, and notes what this rounding leaves out."""
        dense, rows, rests, row_rests = {}, {}, {}, {}
        for name, change in wanted.dense.items():
            whole = change + self.base.rests[name]
            dense[name] = narrowed(whole, NARROW)
            rests[name] = whole - dense[name].float()
        for name, change in wanted.rows.items():
            whole = change + self.base.row_rest(name, wanted.items[group_of(name)])
            rows[name] = narrowed(whole, NARROW)
            row_rests[name] = whole - rows[name].float()
        self._published = identity, rests, (row_rests, wanted.items)
        return replace(wanted, dense=dense, rows=rows)

    def _forgotten(self, held: Collection[str], moved: set[str]) -> tuple[str, ...]:
        """Returns items that the leader has lacked for long, so that the base does not grow without end."""
        number = self.base.position.number
        absent = self.base.known - set(held) - moved
        self._absent = {item: self._absent.get(item, number) for item in absent}
        return tuple(sorted(item for item, since in self._absent.items() if number - since >= ABSENT_BASES))

    def snapshot(self) -> BaseRecord:
        """Returns the base as it stands, for a worker that lacks it."""
        position = self.base.position
        return BaseRecord(Kind.SNAPSHOT, position, "", self.worker, 0, self.base.whole())

    def replacement(
        self, weights: Weights, leader_epoch: int, *, discard: bool, change: Change | None = None
    ) -> BaseRecord:
        """Returns a record that follows the base with other weights.

        Args:
            weights: the whole of them, float32 (`Replica.whole`, or another version's).
            leader_epoch: of this leader.
            discard: whether all changes so far are void (after a rollback); else they are carried over.
            change: of this worker, which is part of these weights; None: nothing else is merged by it.
        """
        weights.check(self.base.shape, whole=True)
        position = self.base.position
        number = position.number + 1
        after = replace(
            position,
            number=number,
            identity=self._identity(),
            leader_epoch=leader_epoch,
            floor=number if discard else position.floor,
        )
        record = BaseRecord(Kind.REPLACEMENT, after, position.identity, self.worker, 0, weights, discard=discard)
        if change is None:
            return record
        merged, sequences = after.after([change])
        merged = {p: max(at, position.merged.get(p, 0)) for p, at in merged.items()}
        return replace(
            record,
            position=replace(after, merged=merged, sequences=sequences),
            clicks=change.clicks,
            taken=(change.tag,),
        )

    # Checkpoints; the base is in the replica's

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name and a JSON object."""
        arrays = {str(n): np.frombuffer(encode_change(c), np.uint8) for n, c in enumerate(self._pending.values())}
        return arrays, {"counts": dict(self.counts), "dropped": [list(tag) for tag in self._dropped]}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned, once the base is loaded; changes that were merged meanwhile are left out."""
        self._published, self._pending, self._absent = None, {}, {}
        self.counts = Counter(state["counts"])
        self._dropped = {Tag(*tag): None for tag in state["dropped"]}
        for number in sorted(arrays, key=int):
            change = decode_change(arrays[number].tobytes(), self.base.shape)
            if self.base.position.verdict(change) == Verdict.WAITING:
                self._pending[change.tag] = change
