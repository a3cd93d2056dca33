"""A group of workers in memory: a coordinator that assigns partitions, and a topic of weights. A member that is killed
leaves everything that outlives a crash: the broker, Redis, and its folder."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from online.config.settings import Settings
from online.worker.checkpoint import Checkpoints
from online.worker.dead_letters import DeadLetterWriter
from online.worker.folders import identity_of
from online.worker.group import Membership
from online.worker.loop import Loop
from online.worker.poison_pills import Quarantine
from online.worker.steps import StepHook, no_hook
from online.worker.weights_topic import WeightsTopic
from stream.events import Click, encode
from stream.source import Partition, Record
from tests.online.conftest import (
    NOW,
    SMALL,
    Broker,
    ListEraser,
    ListFeed,
    ListProducer,
    ListReader,
    ListSource,
    MemoryLists,
)

CLICKS, WEIGHTS, DEAD, ITEMS = "clicks", "nextclick.weights", "clicks.dead", "items"
FEEDBACK = "nextclick.feedback"


class Coordinator:
    """Assigns partitions to the members there are, and moves as few as it can."""

    def __init__(self, partitions: int) -> None:
        self.partitions = [Partition(CLICKS, number) for number in range(partitions)]
        self.members: list[str] = []
        self.owner: dict[Partition, str] = {}
        self.leader: str | None = None
        self.generation = 0

    def join(self, member: str) -> None:
        self.members.append(member)
        self._assign()

    def leave(self, member: str) -> None:
        """The member has left, or was found to be dead."""
        self.members.remove(member)
        self._assign()

    def _assign(self) -> None:
        self.generation += 1
        if not self.members:
            self.owner, self.leader = {}, None
            return
        self.owner = {partition: who for partition, who in self.owner.items() if who in self.members}
        for partition in self.partitions:
            if partition not in self.owner:
                self.owner[partition] = min(self.members, key=self._held)
        while self._held(most := max(self.members, key=self._held)) > 1 + self._held(
            least := min(self.members, key=self._held)
        ):
            moved = max(partition for partition, who in self.owner.items() if who == most)
            self.owner[moved] = least
        if self.leader not in self.members:
            self.leader = self.members[0]

    def _held(self, member: str) -> int:
        return list(self.owner.values()).count(member)

    def owned(self, member: str) -> frozenset[Partition]:
        return frozenset(partition for partition, who in self.owner.items() if who == member)


class SharedListSource(ListSource):
    """Reads every partition, and owns some. What it owns changes between polls."""

    def __init__(self, broker: Broker, coordinator: Coordinator, member: str) -> None:
        super().__init__(broker, CLICKS)
        self.coordinator, self.member = coordinator, member
        self._owned: frozenset[Partition] = frozenset()
        self._epoch: int | None = None
        self._led_since = 0

    def start(self, *, on_gained: Any = None, on_lost: Any = None, **callbacks: Any) -> None:  # noqa: ARG002
        self._on_gained = on_gained
        for partition in self.coordinator.partitions:
            self.broker.topics[partition]  # it is there, though nothing may have been written to it
        super().start(**callbacks)

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        now = self.coordinator.owned(self.member)
        if lost := self._owned - now:
            self._on_revoked(sorted(lost))
        gained, self._owned = now - self._owned, now
        self._epoch = self.coordinator.generation if self.coordinator.leader == self.member else None
        if gained:
            self._on_gained({partition: self.broker.committed.get(partition) for partition in sorted(gained)})
        return super().poll(max_records=max_records, timeout_s=timeout_s)

    def owned(self) -> frozenset[Partition]:
        return self._owned

    def leadership(self) -> int | None:
        return self._epoch

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        mine = self.coordinator.owned(self.member)  # the broker refuses those of a member that was replaced
        super().commit({partition: offset for partition, offset in offsets.items() if partition in mine})


class ListTail:
    """Follows a topic of one partition."""

    def __init__(self, broker: Broker, topic: str, start: int | None = None) -> None:
        self.records, self.position = broker.topics[Partition(topic, 0)], start or 0

    def poll(self) -> list[Record]:
        found = self.records[self.position :]
        self.position += len(found)
        return found

    @property
    def known_end(self) -> int:
        return len(self.records)

    def trouble(self) -> None:
        return None

    def close(self) -> None:
        pass


class FencedLists(MemoryLists):
    """Lists of which an older one never replaces a newer one."""

    def __init__(self) -> None:
        super().__init__()
        self.fenced = 0
        self.went_back = 0

    def write(self, lists: Any, popular: Any = None, **options: Any) -> int | None:
        kept = {}
        for user, top in lists.items():
            there = self.held.get(user)
            if there is not None and _older(top.offset, there.offset):
                self.fenced += 1
            else:
                kept[user] = top
        return super().write(kept, popular, **options)


def _older(new: str, old: str) -> bool:
    (partition, offset), (there, at) = new.split(":"), old.split(":")
    return partition == there and int(offset) < int(at)


class GroupHarness:
    """Some workers on one broker. Time stands still unless a test moves it."""

    def __init__(self, folder: Path, partitions: int = 4, **overrides: Any) -> None:
        self.folder, self.partitions = folder, partitions
        self.broker, self.lists = Broker(), FencedLists()
        self.coordinator = Coordinator(partitions)
        self.loops: dict[str, Loop] = {}
        self.seconds = 0.0
        self._epochs = itertools.count()
        self.overrides: dict[str, Any] = {"round_s": 1.0, "workers": "many", "checkpoint_interval_s": 1e9}
        self.overrides |= {"group_warm_up_clicks": 0, **overrides}

    def publish(self, values: Sequence[Any]) -> None:
        for at, value in enumerate(values):
            partition = (
                sum(value.user_id.encode()) % self.partitions if isinstance(value, Click) else at % self.partitions
            )
            self.broker.append(CLICKS, encode(value) if isinstance(value, Click) else value, partition=partition)

    def begin(self, name: str, reached: StepHook = no_hook, **overrides: Any) -> Loop:
        """Starts a worker; one of that name must not run."""
        settings = Settings(data_dir=self.folder / name, **{**SMALL, **self.overrides, **overrides})
        settings.data_dir.mkdir(exist_ok=True)
        producer = ListProducer(self.broker)
        letters = DeadLetterWriter(producer, ListReader(self.broker, DEAD), DEAD, ListEraser(self.broker))  # type: ignore[arg-type]
        membership = Membership(
            name=name,
            identity=identity_of(settings.data_dir),
            epoch=f"epoch {next(self._epochs)}",
            topic=WeightsTopic(partial(ListTail, self.broker, WEIGHTS), ListProducer(self.broker), WEIGHTS),
            clicks=ListReader(self.broker, CLICKS),
        )
        loop = Loop(
            settings,
            source=SharedListSource(self.broker, self.coordinator, name),  # type: ignore[arg-type]
            items=ListFeed(self.broker, Partition(ITEMS, 0), settings.items_records_max),  # type: ignore[arg-type]
            feedback=ListFeed(self.broker, Partition(FEEDBACK, 0), settings.feedback_records_max),  # type: ignore[arg-type]
            dead_letters=letters,
            lists=self.lists,  # type: ignore[arg-type]
            checkpoints=Checkpoints(settings.checkpoints_dir, settings.checkpoints_kept, reached=reached),
            clock=lambda: NOW,
            monotonic=lambda: self.seconds,
            quarantine=Quarantine(),
            reached=reached,
            membership=membership,
        )
        loop.restore()
        assert loop.group is not None
        loop.group.start()
        loop.start()
        self.coordinator.join(name)
        self.loops[name] = loop
        return loop

    def kill(self, name: str) -> None:
        """The worker is gone without a word, and the group has noticed."""
        self.coordinator.leave(name)
        self.loops.pop(name).close()

    def turn(self, seconds: float = 0.3) -> int:
        """Each worker does a turn. Returns how many messages were read."""
        self.seconds += seconds
        return sum(loop.turn() for loop in list(self.loops.values()))

    def drain(self, rounds: int = 12) -> None:
        """Turns until nothing is left to read, and the weights have gone round."""
        quiet = 0
        while quiet < rounds:
            quiet = 0 if self.turn() else quiet + 1

    def checkpoint(self) -> None:
        for loop in self.loops.values():
            loop.checkpoint()
