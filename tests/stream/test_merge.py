"""Partitions merged by event time, over a broker that is made up: what arrives when is the test's to say."""

import itertools
import random
from collections.abc import Callable, Collection, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import merge
from stream.merge import MergedSource
from stream.source import OnAssigned, OnGone, OnRevoked, Partition, Record, warn_of

WAIT_S = 1.0


def at(number: int) -> Partition:
    return Partition("clicks", number)


def record(number: int, offset: int, seconds: float | None, size: int = 0) -> Record:
    """One whose event time is its value."""
    value = b"" if seconds is None else str(seconds).encode().ljust(size)
    return Record("clicks", number, offset, 0, None, value)


def event_time(one: Record) -> float | None:
    return float(one.value) if one.value else None


class Broker:
    """Partitions, a clock, and what the network lets through."""

    def __init__(self, partitions: Sequence[Sequence[float | None]]) -> None:
        self.now = 0.0
        self.logs = {at(number): [] for number in range(len(partitions))}
        for number, times in enumerate(partitions):
            self.append(number, times)
        self.away: set[Partition] = set()
        self.lets_through: Callable[[Partition], int] = lambda _: 10**9  # records of a partition, at each fetch

    def append(self, number: int, times: Sequence[float | None]) -> None:
        log = self.logs.setdefault(at(number), [])
        log += [record(number, len(log) + index, seconds) for index, seconds in enumerate(times)]


class Source:
    """A `PausableSource` that reads a `Broker`; all of its partitions, unless told otherwise."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.at: dict[Partition, int] = {}
        self.paused: set[Partition] = set()
        self.group: list[Callable[[], None]] = []  # what the group does during the next poll
        self.polls: list[float] = []  # how long each could have waited
        self.turn = 0

    def start(self, *, on_assigned: OnAssigned, on_revoked: OnRevoked, on_gone: OnGone = warn_of) -> None:
        self.on_assigned, self.on_revoked, self.on_gone = on_assigned, on_revoked, on_gone
        self.assign(list(self.broker.logs))

    def assign(self, partitions: Sequence[Partition]) -> None:
        wanted = self.on_assigned(partitions)
        self.at |= {partition: wanted.get(partition, 0) for partition in partitions}
        self.paused -= set(partitions)

    def revoke(self, partitions: Sequence[Partition]) -> None:
        self.on_revoked(partitions)
        for partition in partitions:
            del self.at[partition]

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        self.polls.append(timeout_s)
        while self.group:
            self.group.pop(0)()
        records: list[Record] = []
        self.turn += 1
        where = sorted(self.at)
        for partition in where[self.turn % len(where) :] + where[: self.turn % len(where)] if where else []:
            if partition in self.paused or partition in self.broker.away:
                continue
            count = min(max_records - len(records), self.broker.lets_through(partition))
            batch = self.broker.logs[partition][self.at[partition] :][:count]
            self.at[partition] += len(batch)
            records += batch
        self.broker.now += 0.001 if records else max(timeout_s, 0.001)
        return records

    def positions(self) -> dict[Partition, int]:
        return dict(self.at)

    def known_ends(self) -> dict[Partition, int]:
        return {partition: len(self.broker.logs[partition]) for partition in self.at}

    def pause(self, partitions: Collection[Partition]) -> None:
        self.paused = set(partitions)

    def seek(self, partition: Partition, offset: int) -> None:
        self.at[partition] = offset


class Application:
    """Reads as the worker does: what it was given is its checkpoint."""

    def __init__(self, broker: Broker, starts: Mapping[Partition, int] | None = None, wait_s: float = WAIT_S) -> None:
        self.broker = broker
        self.records: list[Record] = []
        self.next = dict(starts or {})
        self.inner = Source(broker)
        self.merged = MergedSource(self.inner, event_time, wait_s=wait_s, monotonic=lambda: broker.now)
        self.revoked_at: list[dict[Partition, int]] = []
        self.fails: Exception | None = None
        self.merged.start(
            on_assigned=lambda some: {one: self.next[one] for one in some if one in self.next},
            on_revoked=self.revoked,
        )

    def revoked(self, _: Sequence[Partition]) -> None:
        self.revoked_at.append(self.merged.positions())
        if self.fails is not None:
            raise self.fails

    def poll(self, max_records: int = 100, timeout_s: float = 0.05) -> list[Record]:
        records = self.merged.poll(max_records=max_records, timeout_s=timeout_s)
        assert len(records) <= max_records
        for one in records:
            self.next[at(one.partition)] = one.offset + 1
        self.records += records
        positions = self.merged.positions()
        for where in positions:
            skipped = self.broker.logs[where][self.next.get(where, 0) : positions[where]]
            assert not any(skipped), "positions run ahead of what was given"
            assert positions[where] >= self.next.get(where, 0)
        return records

    def poll_all(self, max_records: int = 100) -> list[Record]:
        """Until everything was read."""
        for _ in range(10_000):
            self.poll(max_records)
            if all(self.next.get(where, 0) == len(log) for where, log in self.broker.logs.items()):
                return self.records
        raise AssertionError("it does not come to an end")


def merged_slowly(logs: Mapping[Partition, Sequence[Record]]) -> list[Record]:
    """Again and again the earliest of the heads; of equal ones that of the lower partition."""
    rest = {where: list(log) for where, log in logs.items()}
    latest = dict.fromkeys(rest, float("-inf"))
    records = []
    while any(rest.values()):
        heads = []
        for where, log in rest.items():
            if log:
                seconds = event_time(log[0])
                heads.append((latest[where] if seconds is None else seconds, where))
        seconds, where = min(heads)
        latest[where] = seconds
        records.append(rest[where].pop(0))
    return records


times = st.lists(st.one_of(st.none(), st.integers(0, 30).map(float)), max_size=30)
several = st.lists(times, min_size=1, max_size=5)


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "BUFFER_RECORDS_MAX", 4)
    monkeypatch.setattr(merge, "FETCH_RECORDS_MAX", 3)


@given(several, st.integers(1, 12), st.randoms(use_true_random=False))
def test_whatever_arrives_when_the_earliest_head_comes_first(partitions, max_records, chance):
    broker = Broker(partitions)
    broker.lets_through = lambda _: chance.choice([0, 0, 0, 1, 2, 100])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "BUFFER_RECORDS_MAX", 4)
        patch.setattr(merge, "FETCH_RECORDS_MAX", 3)
        application = Application(broker, wait_s=1e9)
        assert application.poll_all(max_records) == merged_slowly(broker.logs)


@given(several, st.randoms(use_true_random=False))
def test_nothing_is_lost_or_given_twice_whatever_happens(partitions, chance):
    broker = Broker(partitions)
    application = Application(broker, wait_s=0.1)
    broker.lets_through = lambda _: chance.choice([0, 1, 2, 100])
    given: list[Record] = []
    everything = sorted(broker.logs)

    def restart() -> None:
        nonlocal application
        given.extend(application.records)
        application = Application(broker, application.next, wait_s=0.1)

    def rebalance() -> None:
        owned = sorted(application.inner.at)
        application.inner.group += [lambda: application.inner.revoke(owned), lambda: application.inner.assign(wanted)]
        wanted = chance.sample(everything, chance.randint(1, len(everything)))

    def append() -> None:
        broker.append(chance.choice(everything).partition, [chance.choice([None, 1.0, 20.0, 40.0])])

    def away() -> None:
        broker.away = set(chance.sample(everything, chance.randint(0, len(everything))))

    for _ in range(40):
        application.poll(chance.choice([1, 3, 50]), chance.choice([0.0, 0.05]))
        chance.choice([restart, rebalance, append, append, away, lambda: None, lambda: None])()
    broker.away = set()
    restart()
    given += application.poll_all()
    for where, log in broker.logs.items():
        assert [one for one in given if at(one.partition) == where] == log


def test_equal_times_go_by_partition_and_then_by_offset():
    application = Application(Broker([[5.0, 5.0], [5.0], [5.0, 5.0]]))
    assert [(one.partition, one.offset) for one in application.poll_all()] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]


def test_what_has_no_time_neither_waits_nor_jumps_the_queue():
    application = Application(Broker([[None, 3.0, None, 9.0], [1.0, 2.0, 4.0, 8.0, 10.0]]))
    order = [(one.partition, one.offset) for one in application.poll_all()]
    assert order == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (1, 3), (0, 3), (1, 4)]


def test_a_partition_that_has_more_is_waited_for():
    broker = Broker([[10.0, 20.0], [1.0, 2.0]])
    broker.away = {at(1)}
    application = Application(broker)
    while broker.now < 0.9 * WAIT_S:
        assert application.poll() == []
    broker.away = set()
    assert [event_time(one) for one in application.poll_all()] == [1.0, 2.0, 10.0, 20.0]


def test_a_wait_does_not_make_a_poll_longer_than_asked():
    broker = Broker([[10.0], [1.0]])
    broker.away = {at(1)}
    application = Application(broker)
    for timeout_s in (0.05, 0.0, 0.3):
        began = broker.now
        assert application.poll(timeout_s=timeout_s) == []
        assert broker.now - began <= timeout_s + 0.01


def test_who_does_not_come_holds_the_others_up_once_and_not_at_each_record(caplog):
    broker = Broker([list(range(1, 400)), [0.0, 500.0], [0.5]])
    broker.away = {at(1), at(2)}  # both at once
    application = Application(broker)
    while not application.records:
        application.poll(10)
    assert WAIT_S <= broker.now < WAIT_S + 0.1
    while len(application.records) < 399:
        assert application.poll(10)
    broker.append(0, [401.0])
    application.poll()
    assert broker.now < WAIT_S + 0.2
    told = [line.getMessage() for line in caplog.records]
    assert len(told) == 2
    assert "clicks partition 1 has a record at offset 0 that does not arrive" in told[0]
    # It counts again as soon as it delivers.
    broker.append(0, [600.0])
    broker.away = {at(2)}
    broker.lets_through = lambda _: 1
    assert [event_time(one) for one in application.poll()] == [0.0]
    broker.away |= {at(1)}
    began = broker.now
    while not application.poll():
        pass
    assert WAIT_S <= broker.now - began < WAIT_S + 0.1


def test_no_wait_is_asked_for():
    broker = Broker([[10.0], [1.0]])
    broker.away = {at(1)}
    application = Application(broker, wait_s=0.0)
    assert [event_time(one) for one in application.poll()] == [10.0]
    assert broker.now < 0.05


def test_partitions_at_their_end_hold_no_other_up():
    broker = Broker([[1.0, 2.0, 3.0], [], [1.5], []])
    application = Application(broker)
    assert len(application.poll()) == 4
    for seconds in range(10, 20):
        broker.append(0, [float(seconds)])
        began = broker.now
        assert [event_time(one) for one in application.poll(timeout_s=5.0)] == [float(seconds)]
        assert broker.now - began < 0.01


def test_an_idle_stream_is_polled_with_all_the_time_there_is():
    application = Application(Broker([[], []]))
    application.poll(timeout_s=0.7)
    application.poll(timeout_s=0.7)
    assert application.inner.polls == [0.7, 0.7]


def test_marks_of_transactions_at_the_end_of_a_partition_count_as_read():
    broker = Broker([[1.0], [2.0]])
    broker.logs[at(0)].append(None)  # a mark, that no poll returns
    application = Application(broker)
    broker.lets_through = lambda where: 1 if application.inner.at[where] == 0 else 0
    application.poll()
    application.inner.at[at(0)] = 2
    began = broker.now
    assert [event_time(one) for one in application.poll()] == [2.0]
    assert broker.now - began < 0.1
    assert application.merged.positions() == {at(0): 2, at(1): 1}


@pytest.mark.usefixtures("small_buffers")
def test_a_full_buffer_pauses_its_partition_alone():
    broker = Broker([[100.0] * 50, [1.0] * 50])
    broker.lets_through = lambda where: 3 if where == at(0) else 1
    application = Application(broker)
    for count in range(50):
        assert [one.partition for one in application.poll(1)] == [1], count
        assert application.inner.at[at(0)] - application.next.get(at(0), 0) <= 4 + 3
    application.poll_all()
    assert application.records == merged_slowly(broker.logs)


def test_large_records_fill_a_buffer_too(monkeypatch):
    monkeypatch.setattr(merge, "BUFFER_BYTES_MAX", 1_000)
    broker = Broker([[], []])
    broker.logs[at(0)] = [record(0, offset, 100.0, size=400) for offset in range(50)]
    broker.append(1, [1.0] * 50)
    broker.lets_through = lambda _: 1
    application = Application(broker)
    for _ in range(50):
        application.poll(1)
        assert application.inner.at[at(0)] <= 3
    application.poll_all()
    assert len(application.records) == 100


def test_one_partition_goes_straight_through():
    broker = Broker([[9.0, 1.0, None, 5.0]])
    application = Application(broker)
    merged = MergedSource(application.inner, lambda _: pytest.fail("its time was looked at"), wait_s=1.0)
    application.inner.polls.clear()
    assert len(merged.poll(max_records=3, timeout_s=0.4)) == 3
    assert merged.positions() == {at(0): 3}
    assert len(merged.poll(max_records=3, timeout_s=0.4)) == 1
    assert application.inner.polls == [0.4, 0.4]


def test_a_partition_that_is_added_later_is_merged_from_then_on():
    broker = Broker([[5.0, 6.0]])
    application = Application(broker)
    broker.append(1, [1.0, 5.5])
    application.inner.group.append(lambda: application.inner.assign([at(1)]))
    assert [event_time(one) for one in application.poll_all()] == [1.0, 5.0, 5.5, 6.0]


def test_what_is_buffered_of_a_partition_goes_with_it_and_comes_again():
    broker = Broker([[10.0, 11.0, 12.0], [1.0, 2.0, 3.0]])
    application = Application(broker)
    application.poll(4)
    application.inner.group.append(lambda: application.inner.revoke([at(0)]))
    assert application.poll() == []
    assert application.revoked_at == [{at(0): 1, at(1): 3}]  # while it was told, nothing had gone
    assert application.merged.positions() == {at(1): 3}
    application.inner.group.append(lambda: application.inner.assign([at(0)]))
    assert [event_time(one) for one in application.poll_all()] == [1.0, 2.0, 3.0, 10.0, 11.0, 12.0]


def test_a_callback_that_fails_leaves_what_is_buffered_in_place():
    broker = Broker([[10.0, 11.0], [1.0, 2.0]])
    application = Application(broker)
    application.poll(1)

    application.fails = LookupError("the disk is full")
    application.inner.group.append(lambda: application.inner.revoke([at(0)]))
    with pytest.raises(LookupError):
        application.poll()
    assert [event_time(one) for one in application.poll_all()] == [1.0, 2.0, 10.0, 11.0]


def test_seek_forgets_what_was_buffered():
    broker = Broker([[10.0, 11.0, 12.0], [1.0, 2.0, 3.0]])
    application = Application(broker)
    application.poll(1)
    application.merged.seek(at(0), 2)
    application.next[at(0)] = 2
    assert application.merged.positions() == {at(0): 2, at(1): 1}
    application.merged.seek(at(1), 0)
    application.next[at(1)] = 0
    application.records.clear()
    assert [event_time(one) for one in application.poll_all()] == [1.0, 2.0, 3.0, 12.0]


def test_a_shuffled_archive_comes_out_as_it_was_written():
    """An archive over four partitions, in chunks, read by a worker that takes 512 records at a time."""
    chance = random.Random(7)
    stamps = sorted(chance.uniform(0, 1e7) for _ in range(8_000))
    partitions: list[list[float]] = [[], [], [], []]
    for seconds in stamps:
        partitions[chance.choices(range(4), [8, 4, 2, 1])[0]].append(seconds)
    broker = Broker(partitions)
    broker.lets_through = lambda _: chance.choice([0, 300, 600])
    seen = [event_time(one) for one in Application(broker).poll_all(512)]
    assert sum(later < earlier for earlier, later in itertools.pairwise(seen)) == 0
    assert seen == stamps


class SharedSource(Source):
    """A source whose partitions are all read, whichever worker owns them."""

    def start(self, *, on_gained, on_lost, **callbacks) -> None:
        self.mine = {at(0)}
        super().start(**callbacks)
        self.on_gained, self.on_lost = on_gained, on_lost

    def revoke(self, partitions: Sequence[Partition]) -> None:
        self.on_revoked(partitions)
        self.mine -= set(partitions)

    def gain(self, partitions: Sequence[Partition]) -> None:
        self.mine |= set(partitions)
        self.on_gained(dict.fromkeys(partitions, 7))

    def owned(self) -> frozenset[Partition]:
        return frozenset(self.mine)

    def leadership(self) -> int | None:
        return 5


def test_of_a_shared_source_what_is_revoked_is_still_read():
    broker = Broker([[1, 4, 7], [2, 5, 8], [3, 6, 9]])
    inner, told = SharedSource(broker), []
    merged = MergedSource(inner, event_time, wait_s=WAIT_S, monotonic=lambda: broker.now)
    merged.start(
        on_assigned=lambda _: {},
        on_revoked=lambda some: told.append(("revoked", some, merged.owned(), merged.positions())),
        on_gained=lambda some: told.append(("gained", some)),
        on_lost=lambda some: told.append(("lost", some)),
    )
    records = merged.poll(max_records=2, timeout_s=0.05)
    inner.group += [
        lambda: inner.revoke([at(0)]),
        lambda: inner.gain([at(1)]),
        lambda: inner.on_lost([at(1)]),
    ]
    while len(records) < 9:
        records += merged.poll(max_records=2, timeout_s=0.05)
    assert [event_time(one) for one in records] == list(range(1, 10))
    assert told == [
        ("revoked", [at(0)], {at(0)}, {at(0): 1, at(1): 1, at(2): 0}),
        ("gained", {at(1): 7}),
        ("lost", [at(1)]),
    ]
    assert (merged.owned(), merged.leadership()) == ({at(1)}, 5)
