"""The worker's surroundings in memory: a broker, Redis, and what is on disk, each of which outlives a crash.

`crash` makes a step of a loop raise at its n-th call; `ABORT` among the values of a topic makes `poll` raise once.
"""

import itertools
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from online.cli import main
from online.config.settings import PREFIX, Settings
from online.evaluation.town import Town
from online.worker.checkpoint import Checkpoints
from online.worker.connections import open_lists
from online.worker.dead_letters import DeadLetterWriter
from online.worker.items_feed import Prepare
from online.worker.loop import Loop
from online.worker.main import run_worker
from online.worker.poison_pills import Quarantine
from online.worker.steps import StepHook, no_hook
from stream.events import Click, encode
from stream.feedback import Feedback
from stream.feedback import encode as encode_feedback
from stream.impressions import Impression
from stream.impressions import encode as encode_impression
from stream.item_records import ItemRecord
from stream.lists import Lists, ListsError, Memory, TopList, Watermark, WriteResult
from stream.source import Partition, Record, SourceError

NOW = 1_730_600_000.0  # two days after the town's first click
ARRIVED_MS = 1_000 * (int(NOW) + 86_400)  # of records: no click that can be read is ahead of that
ABORT = object()
ERASED: Any = object()  # the value of what an eraser took out
SMALL: dict[str, Any] = {
    "device": "cpu",
    "layers": ("lsh",),
    "width": 8,
    "heads": 2,
    "rounds": 1,
    "buckets": 2,
    "window": 4,
    "online_history": 6,
    "history_max": 12,
    "users_held": 64,
    "items_held": 200,
    "successors_held": 8,
    "popularity_half_lives": (10, 100),
    "moments_held": 500,
    "recall_latest": 4,
    "recall_users_held": 32,
    "recall_buckets": 4,
    "recall_ring": 4,
    "world_buckets": 16,
    "world_ring": 8,
    "ranker_hidden": 8,
    "replay_held": 300,
    "replay_candidates": 8,
    "replay_batch": 8,
    "negatives": 8,
    "micro_batch_max": 16,
    "poll_records_max": 32,
    "poll_timeout_s": 0.01,
    "list_size": 12,
    "checkpoint_interval_s": 0.0,
    "finetune_interval_s": 0.0,
    "finetune_slice_ms": 600_000,
    "retry_s_min": 1e-6,
    "retry_s_max": 1e-6,
    "drift_delta": 1e-9,
    "lag_told_s": 0.0,
    "warm_up_steps": 2,
    "gate": False,
}


class AbortedError(BaseException):
    """The crash that a test asked for: nothing of ours catches it."""


class Broker:
    """Topics, what groups committed, and nothing that a crash of the worker could lose."""

    def __init__(self) -> None:
        self.arrived_ms = ARRIVED_MS
        self.topics: dict[Partition, list[Any]] = defaultdict(list)
        self.committed: dict[Partition, int] = {}

    def append(
        self, topic: str, value: Any, *, partition: int = 0, key: bytes | None = None, headers: Any = ()
    ) -> None:
        held = self.topics[Partition(topic, partition)]
        offset = sum(one is not ABORT for one in held)
        held.append(
            ABORT
            if value is ABORT
            else Record(topic, partition, offset, self.arrived_ms + offset, key, value, tuple(headers))
        )

    def records(self, partition: Partition) -> list[Record]:
        return [one for one in self.topics[partition] if one is not ABORT]


class ListSource:
    """A `PausableSource` of full polls. It takes the record of the partition that is least far, so that what a poll
    returns follows from the positions alone."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.broker = broker
        self.topic = topic
        self.at: dict[Partition, int] = {}
        self.paused: frozenset[Partition] = frozenset()
        self.revoking: list[Partition] = []
        self.assigning: list[Partition] | None = None
        self.began_at: list[dict[Partition, int]] = []
        self.commits: list[dict[Partition, int]] = []

    def start(self, *, on_assigned: Any, on_revoked: Any, on_gone: Any = None, **others: Any) -> None:  # noqa: ARG002
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self.assign([partition for partition in sorted(self.broker.topics) if partition.topic == self.topic])

    def assign(self, partitions: Sequence[Partition]) -> None:
        wanted = self._on_assigned(partitions)
        self.at |= {partition: wanted.get(partition, 0) for partition in partitions}
        self.began_at.append(dict(self.at))

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:  # noqa: ARG002
        if self.revoking:
            self._on_revoked(self.revoking)
            for partition in self.revoking:
                del self.at[partition]
            self.revoking = []
        found: list[Record] = []
        while len(found) < max_records:
            there = {p: at for p, at in self.at.items() if p not in self.paused}
            behind = {p: at for p, at in there.items() if at < len(self.broker.records(p))}
            if not behind:
                break
            partition = min(behind, key=lambda one: (self.at[one], one))
            self._abort_at(partition)
            found.append(self.broker.records(partition)[self.at[partition]])
            self.at[partition] += 1
        return found

    def _abort_at(self, partition: Partition) -> None:
        """Raises once where ABORT stands just before the next record."""
        held, passed = self.broker.topics[partition], 0
        for place, one in enumerate(held):
            if one is ABORT and passed == self.at[partition]:
                del held[place]
                raise AbortedError
            passed += one is not ABORT

    def positions(self) -> dict[Partition, int]:
        return dict(self.at)

    def owned(self) -> frozenset[Partition]:
        return frozenset(self.at)

    def leadership(self) -> int | None:
        return 0

    def seek(self, partition: Partition, offset: int) -> None:
        self.at[partition] = offset

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self.commits.append(dict(offsets))
        self.broker.committed |= offsets

    def committed(self) -> dict[Partition, int]:
        return {p: self.broker.committed[p] for p in self.at if p in self.broker.committed}

    def ends(self) -> dict[Partition, int]:
        return {partition: len(self.broker.records(partition)) for partition in self.at}

    def known_ends(self) -> dict[Partition, int]:
        return self.ends()

    def pause(self, partitions: Collection[Partition]) -> None:
        self.paused = frozenset(partitions)

    def trouble(self) -> str | None:
        return None

    def close(self) -> None:
        pass


class ListProducer:
    """A `Producer` whose buffer holds one record: an earlier one is on its topic before `flush`, and the last is lost
    in a crash."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.waiting: list[tuple[str, bytes | None, bytes | None, Any]] = []

    def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Any = ()) -> None:
        self.flush()
        self.waiting.append((topic, key, value, headers))

    def flush(self) -> None:
        for topic, key, value, headers in self.waiting:
            self.broker.append(topic, value, key=key, headers=headers)
        self.waiting = []

    def close(self) -> None:
        self.flush()


class ListReader:
    """A `TopicReader`."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.broker = broker
        self.topic = topic

    def _partitions(self) -> list[Partition]:
        return [partition for partition in sorted(self.broker.topics) if partition.topic == self.topic]

    def ends(self) -> dict[Partition, int]:
        return {partition: len(self.broker.records(partition)) for partition in self._partitions()}

    def read(self, starts: Mapping[Partition, int] | None = None) -> Iterator[Record]:
        for partition in self._partitions():
            for record in self.broker.records(partition)[(starts or {}).get(partition, 0) :]:
                if record.value is not ERASED:
                    yield record

    def close(self) -> None:
        pass


class ListEraser:
    """An `Eraser`, as Kafka's is: what stays is written again at the end, and what stood there goes. What is gone is
    None, as far as the broker's own list is concerned."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.away = False

    def erase(self, topic: str, gone: Callable[[Record], bool]) -> int:
        if self.away:
            raise SourceError("the broker refuses")
        erased = 0
        for partition in [one for one in self.broker.topics if one.topic == topic]:
            held = self.broker.topics[partition]
            there = [record for record in held if record.value is not ERASED]
            kept = [record for record in there if not gone(record)]
            if len(kept) < len(there):
                held[:] = [replace(record, key=None, value=ERASED, headers=()) for record in held]
                for record in kept:
                    self.broker.append(topic, record.value, key=record.key, headers=record.headers)
            erased += len(there) - len(kept)
        return erased


class ListFeed:
    """An `ItemsFeed` without a thread: what a turn takes follows from what was published."""

    def __init__(self, broker: Broker, partition: Partition, records_max: int) -> None:
        self.broker = broker
        self.partition = partition
        self.records_max = records_max
        self.began_at: list[dict[Partition, int]] = []

    def start(self, starts: Mapping[Partition, int], prepare: Prepare | None = None) -> None:
        self.at = starts.get(self.partition, 0)
        self.began_at.append(dict(starts))
        self.prepare = prepare

    def take(self) -> list[Record]:
        found = self.broker.records(self.partition)[self.at : self.at + self.records_max]
        self.at += len(found)
        if self.prepare is not None:
            self.prepare(found)
        return found

    def close(self) -> None:
        pass


class MemoryItems:
    """The records of items beside `MemoryLists`."""

    def __init__(self, lists: "MemoryLists") -> None:
        self.lists, self.ttl_s = lists, 3_600
        self.held: dict[str, ItemRecord] = {}
        self.complete: int | None = None
        self.writes: list[int] = []  # records of each write

    def write(self, records: Mapping[str, ItemRecord | None]) -> None:
        self._check()
        self.writes.append(len(records))
        for item_id, record in records.items():
            self.held.pop(item_id, None)
            if record is not None:
                self.held[item_id] = record

    def mark_complete(self, count: int) -> None:
        self._check()
        self.complete = count

    def mark_incomplete(self) -> None:
        self._check()
        self.complete = None

    def _check(self) -> None:
        if self.lists.away:
            raise ListsError("no Redis answers at memory")


class MemoryHidden:
    """What users have hidden beside `MemoryLists`."""

    def __init__(self, lists: "MemoryLists") -> None:
        self.lists, self.ttl_s = lists, 7_200
        self.held: dict[str, dict[str, float | None]] = {}
        self.writes: list[int] = []  # users of each write

    def write(self, hidden: Mapping[str, Mapping[str, float | None]]) -> None:
        if self.lists.away:
            raise ListsError("no Redis answers at memory")
        self.writes.append(len(hidden))
        for user, items in hidden.items():
            self.held.pop(user, None)
            if items:
                self.held[user] = dict(items)


class MemoryLists:
    """Lists in a dict; `away` makes it answer as a Redis that is not there."""

    def __init__(self) -> None:
        self.held: dict[str, TopList] = {}
        self.popular_list: TopList | None = None
        self.paged: list[str] = []
        self.marks: dict[str, int] = {}
        self.clicks: dict[str, Any] = {}
        self.away = False
        self.items = MemoryItems(self)
        self.hidden = MemoryHidden(self)

    address = "memory"

    def write(
        self,
        lists: Mapping[str, TopList],
        popular: TopList | None = None,
        *,
        mark: Watermark | None = None,
        replacing: Collection[str] = (),
    ) -> WriteResult:
        if self.away:
            raise ListsError("no Redis answers at memory")
        for user, top in lists.items():
            if not top.items:
                self.held.pop(user, None)
            elif user in self.held or user not in replacing:
                self.held[user] = top
        if popular is not None:
            self.popular_list = popular
        if mark is None:
            return WriteResult({})
        found = self.marks.get(mark.id)
        self.marks[mark.id] = mark.number
        return WriteResult({"": found})

    def standing(self, user_ids: Collection[str]) -> int:
        return sum(user in self.held for user in user_ids)

    def memory(self) -> Memory:
        return Memory("memory", evicted=0, used_bytes=0, bytes_max=0, policy="noeviction")

    def forget(self, gone: Callable[[str], bool]) -> int:
        if self.away:
            raise ListsError("no Redis answers at memory")
        mine = [(held, user) for held in (self.held, self.hidden.held) for user in held if gone(user)]
        for held, user in mine:
            del held[user]
        return len(mine)

    def write_clicks(self, clicks: Mapping[str, Any], ttl_s: int) -> None:  # noqa: ARG002
        if self.away:
            raise ListsError("no Redis answers at memory")
        self.clicks = dict(clicks)

    def popular(self) -> TopList | None:
        if self.away:
            raise ListsError("no Redis answers at memory")
        return self.popular_list

    def page(self, cursor: int = 0) -> tuple[int, dict[str, TopList]]:
        """Five lists a page, of those that stood at the first."""
        if self.away:
            raise ListsError("no Redis answers at memory")
        self.paged = self.paged if cursor else sorted(self.held)
        following = cursor + 5 if cursor + 5 < len(self.paged) else 0
        return following, {user: self.held[user] for user in self.paged[cursor : cursor + 5] if user in self.held}

    def amend(self, lists: Mapping[str, TopList]) -> None:
        if self.away:
            raise ListsError("no Redis answers at memory")
        for user in lists.keys() & self.held.keys():
            self.held[user] = lists[user]
            if not lists[user].items:
                del self.held[user]

    def lose_everything(self) -> None:
        """As a Redis that is started again and kept nothing."""
        self.held, self.popular_list, self.marks = {}, None, {}
        self.items.held, self.items.complete, self.hidden.held = {}, None, {}


@dataclass
class WorkerHarness:
    """One topic of clicks, and everything that outlives a crash. `loop` makes a new worker's loop on it."""

    folder: Path
    broker: Broker = field(default_factory=Broker)
    lists: MemoryLists = field(default_factory=MemoryLists)
    clicks_topic: str = "clicks"
    items_topic: str = "items"
    feedback_topic: str = "nextclick.feedback"
    users_topic: str = "users"
    impressions_topic: str = "nextclick.impressions"
    dead_topic: str = "clicks.dead"
    abort: Any = ABORT
    aborted: type[BaseException] = AbortedError
    producer: ListProducer = field(init=False)  # of dead letters, for the latest loop, as are the following
    eraser: ListEraser = field(init=False)
    feed: ListFeed = field(init=False)
    feedback: ListFeed = field(init=False)
    users: ListFeed = field(init=False)
    impressions: ListFeed = field(init=False)

    def publish(self, values: Sequence[Any], *, partitions: int = 1) -> None:
        """Clicks, bytes as they are, or ABORT; a user's clicks stay in one partition."""
        for value in values:
            partition = sum(value.user_id.encode()) % partitions if isinstance(value, Click) else 0
            self.broker.append(
                self.clicks_topic, encode(value) if isinstance(value, Click) else value, partition=partition
            )

    def publish_item(self, item_id: str, value: bytes | None) -> None:
        """What the items topic says of an item; None: a tombstone."""
        self.broker.append(self.items_topic, value, key=item_id.encode())

    def publish_user(self, user_id: str, value: bytes | None) -> None:
        """What the users topic says of a user; None: a tombstone."""
        self.broker.append(self.users_topic, value, key=user_id.encode())

    def publish_impression(self, shown: Impression | bytes) -> None:
        """A list that was shown; bytes as they are."""
        value = shown if isinstance(shown, bytes) else encode_impression(shown)
        self.broker.append(self.impressions_topic, value, key=None)

    def publish_feedback(self, *records: Any) -> None:
        """What users say of items; bytes as they are."""
        for one in records:
            value = encode_feedback(one) if isinstance(one, Feedback) else one
            self.broker.append(self.feedback_topic, value, key=one.user_id.encode() if value is not one else None)

    def loop(
        self,
        reached: StepHook = no_hook,
        quarantine: Quarantine | None = None,
        *,
        monotonic: Callable[[], float] = lambda: 0.0,
        aside: Executor | None = None,
        **overrides: Any,
    ) -> Loop:
        settings = Settings(data_dir=self.folder, **{**SMALL, **overrides})
        self.producer, self.eraser = ListProducer(self.broker), ListEraser(self.broker)
        self.feed = ListFeed(self.broker, Partition(self.items_topic, 0), settings.items_records_max)
        self.feedback = ListFeed(self.broker, Partition(self.feedback_topic, 0), settings.feedback_records_max)
        self.users = ListFeed(self.broker, Partition(self.users_topic, 0), settings.users_records_max)
        self.impressions = ListFeed(self.broker, Partition(self.impressions_topic, 0), settings.impressions_records_max)
        box = DeadLetterWriter(self.producer, ListReader(self.broker, self.dead_topic), self.dead_topic, self.eraser)
        return Loop(
            settings,
            source=ListSource(self.broker, self.clicks_topic),  # type: ignore[arg-type]
            items=self.feed,  # type: ignore[arg-type]
            feedback=self.feedback,  # type: ignore[arg-type]
            users=self.users,  # type: ignore[arg-type]
            impressions=self.impressions,  # type: ignore[arg-type]
            dead_letters=box,
            lists=self.lists,  # type: ignore[arg-type]
            checkpoints=Checkpoints(settings.checkpoints_dir, settings.checkpoints_kept, reached=reached),
            clock=lambda: NOW,
            monotonic=monotonic,
            quarantine=quarantine,
            reached=reached,
            executor=aside,
        )

    @staticmethod
    def begin(loop: Loop) -> Loop:
        loop.restore()
        loop.start()
        return loop

    @staticmethod
    def drain(loop: Loop) -> Loop:
        """Turns until nothing is left, then the graceful end."""
        while loop.turn():
            pass
        loop.finish()
        return loop

    def run(self, *faults: Any, **overrides: Any) -> Loop:
        """A worker that takes in everything and stops. `faults`: as `loop` takes them."""
        return self.drain(self.begin(self.loop(*faults, **overrides)))

    def crashes(self, loop: Loop) -> None:
        """Runs a loop that has to crash; nothing of it is used afterwards."""
        with pytest.raises(AbortedError):
            self.drain(self.begin(loop))

    def partition(self, number: int = 0) -> Partition:
        return Partition(self.clicks_topic, number)

    def dead(self) -> list[Record]:
        return [one for one in self.broker.records(Partition(self.dead_topic, 0)) if one.value is not ERASED]

    @staticmethod
    def crash(owner: Any, name: str, *, call: int, after: bool = False) -> None:
        """Makes a method raise at its n-th call (from 1), before or after it did its work."""
        method, calls = getattr(owner, name), itertools.count(1)

        def crashing(*args: Any, **kwargs: Any) -> Any:
            now = next(calls) == call
            if now and not after:
                raise AbortedError
            result = method(*args, **kwargs)
            if now:
                raise AbortedError
            return result

        setattr(owner, name, crashing)

    def everything(self, loop: Loop) -> dict[str, Any]:
        """All that a worker knows and has said, as plain values that can be compared exactly."""
        return {**known(loop), "lists": dict(self.lists.held), "popular": self.lists.popular_list}


WORKER_WAIT_S = 120.0  # on a busy machine


@contextmanager
def worker_thread(settings: Settings, *, from_beginning: bool = False) -> Iterator[Lists]:
    """A worker in a thread -> its lists; at the end it is stopped, and whatever it raised is raised here."""
    stop, ready = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        try:
            run_worker(settings, stop, from_beginning=from_beginning, ready=ready)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(WORKER_WAIT_S) or failed
    try:
        if not failed:
            yield open_lists(settings)
    finally:
        stop.set()
        thread.join(WORKER_WAIT_S)
        assert not thread.is_alive()
        if failed:
            raise failed[0]


def known(loop: Loop) -> dict[str, Any]:
    arrays, state = loop.learner.to_state()
    shadow, supervisor = loop.supervisor.to_state()
    arrays |= {f"supervisor.{name}": array for name, array in shadow.items()}
    arrays["seen"] = loop.intake.seen.to_state()
    return {
        **{name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
        "learner": state,
        "progress": loop.progress.to_state(),
        "supervisor": supervisor,
        "versions": loop.versions.to_state(),
        "notices": loop.notices.to_state(),
        "unreadable": {topic: watch.to_state() for topic, watch in loop.unreadable.items()},
    }


@pytest.fixture(autouse=True)
def _one_thread_and_no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def new_harness(tmp_path: Path) -> Callable[[], WorkerHarness]:
    """Makes empty harnesses."""
    numbers = itertools.count()
    return lambda: WorkerHarness(tmp_path / f"harness-{next(numbers)}")


@pytest.fixture
def harness(new_harness: Callable[[], WorkerHarness]) -> WorkerHarness:
    return new_harness()


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a network that learns a thousand clicks in a fraction of a second."""
    return lambda **overrides: Settings(**{"data_dir": tmp_path, **SMALL, **overrides})


@pytest.fixture(scope="session")
def town_clicks() -> list[Click]:
    return list(Town(users=20, items=40, seed=5, start=NOW - 172_800).clicks(400))


@pytest.fixture
def same() -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], bool]:
    """Whether two sets of arrays are equal bit for bit."""

    def compare(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in one.items()} == {
            name: (array.dtype, array.shape, array.tobytes()) for name, array in other.items()
        }

    return compare


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `nextclick ...` in this process -> exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nextclick", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run
