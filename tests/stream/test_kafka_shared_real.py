"""Workers that read a topic of Apache Kafka together: ownership moves, reading goes on. Each is a process."""

import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from kafka import TopicPartition

import stream
from stream.kafka_shared import SharedKafkaSource
from stream.source import Partition

pytestmark = pytest.mark.real

SESSION_S = 6.0  # the least that a broker takes unless told otherwise
WORKER = Path(__file__).with_name("sharing_worker.py")


class Worker:
    """A process that shares, and what it has said."""

    def __init__(self, group, name, session_s):
        self.group, self.name = group, name
        command = [
            sys.executable,
            str(WORKER),
            group.servers,
            group.topic,
            group.control,
            group.id,
            name,
            str(session_s),
        ]
        root = Path(stream.__file__).parent.parent
        self.process = subprocess.Popen(
            command, cwd=root, env={"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said, self.errors = [], []
        self.threads = [
            threading.Thread(target=lambda: self.said.extend(map(json.loads, self.process.stdout)), daemon=True),
            threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def all(self, what):
        return [one for one in list(self.said) if one["what"] == what]

    @property
    def owned(self):
        return set(self.all("owns")[-1]["partitions"]) if self.all("owns") else set()

    @property
    def epoch(self):
        return self.all("owns")[-1]["epoch"] if self.all("owns") else None

    @property
    def read(self):
        return self.all("read")[-1]["count"] if self.all("read") else 0

    @property
    def generation(self):
        return self.all("read")[-1]["generation"]

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Group:
    """Workers of one group, its topic, and what holds of them at all times."""

    def __init__(self, harness, partitions):
        self.harness, self.servers = harness, harness.where
        self.topic, self.control, self.id = harness.topic(partitions), harness.topic(1), uuid.uuid4().hex
        self.producer = harness.producer()
        self.workers = []

    def worker(self, name="-", session_s=SESSION_S):
        self.workers.append(Worker(self, name, session_s))
        return self.workers[-1]

    def send(self, count, partitions):
        for number in range(count):
            self.producer.send(self.topic, key=None, value=b"%d" % number, partition=number % partitions)
        self.producer.flush()

    def until(self, holds, within_s=60.0):
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, [(w.said[-3:], w.errors[-5:]) for w in self.workers]
            time.sleep(0.02)

    def settled(self, workers, partitions):
        """Whether these own all partitions, none twice, as evenly as they can, and one of them leads."""
        owned = [worker.owned for worker in workers]
        sizes = [len(some) for some in owned]
        one_leads = sum(worker.epoch is not None for worker in workers) == 1
        return (
            sorted(at for some in owned for at in some) == list(range(partitions))
            and one_leads
            and max(sizes) - min(sizes) <= 1
        )

    def epochs(self):
        """Of all leaders, in the order of time."""
        said = sorted((one["at"], one["epoch"]) for worker in self.workers for one in worker.all("owns"))
        epochs = [epoch for _, epoch in said if epoch is not None]
        return [epoch for place, epoch in enumerate(epochs) if place == 0 or epoch != epochs[place - 1]]


def owned_twice(workers, until_s):
    """Partitions that two workers owned at one time, as far as what they said tells; the dead own nothing."""
    spans = []
    for worker in workers:
        said = worker.all("owns")
        for place, one in enumerate(said):
            end = said[place + 1]["at"] if place + 1 < len(said) else until_s
            spans += [(at, one["at"], end, worker) for at in one["partitions"]]
    return [
        (at, begin, end)
        for place, (at, begin, end, worker) in enumerate(spans)
        for other_at, other_begin, other_end, other in spans[:place]
        if at == other_at and worker is not other and begin < other_end - 0.05 and other_begin < end - 0.05
    ]


@pytest.fixture
def group(kafka_harness):
    made = []

    def make(partitions):
        made.append(Group(kafka_harness, partitions))
        return made[-1]

    yield make
    for one in made:
        for worker in one.workers:
            worker.kill()


def test_ownership_follows_those_who_come_and_go_while_all_go_on_reading(group):
    four = group(4)
    first = four.worker()
    four.until(lambda: four.settled([first], 4))
    epoch = first.epoch
    second, third = four.worker(), four.worker()
    four.until(lambda: four.settled([first, second, third], 4))
    assert first.epoch == epoch  # it stays with who has it
    sent = 0
    for _ in range(5):
        four.send(40, 4)
        sent += 40
        four.until(lambda: all(worker.read == sent for worker in (first, second, third)))  # noqa: B023

    assert not owned_twice([first, second, third], time.time())
    first.kill()
    began = time.time()
    while time.time() < began + SESSION_S - 2:  # its partitions have no owner yet, but they are read
        four.send(8, 4)
        sent += 8
        four.until(lambda: second.read == third.read == sent, within_s=2)  # noqa: B023
    four.until(lambda: four.settled([second, third], 4))
    taken = max(worker.all("owns")[-1]["at"] for worker in (second, third)) - began
    print(f"without an owner for {taken:.1f} s")
    assert four.epochs() == sorted(four.epochs())
    assert max(second.epoch or 0, third.epoch or 0) > epoch
    # A worker that gained a partition was told what the one before it had committed.
    told = {
        at: offset
        for worker in (second, third)
        for one in worker.all("gained")
        for at, offset in one["committed"].items()
    }
    assert any(offset is not None for offset in told.values())


def test_a_partition_that_is_added_is_read_by_all_and_owned_by_one(group):
    two = group(2)
    first, second = two.worker("one"), two.worker("two")
    two.until(lambda: two.settled([first, second], 2))
    # Who assigns may be one that was restarted under its name, and does not know that it does.
    first.kill()
    first = two.worker("one")
    two.until(lambda: two.settled([first, second], 2))
    two.harness.add_partitions(two.topic, 4)
    two.send(40, 4)
    two.until(lambda: first.read >= 40 and second.read >= 40 and two.settled([first, second], 4))


def test_a_named_worker_that_is_back_soon_gets_what_it_had_without_a_rebalance(group):
    four = group(4)
    workers = [four.worker(name, 30.0) for name in ("one", "two", "three")]
    four.until(lambda: four.settled(workers, 4))
    time.sleep(2)  # a rebalance that changes nothing may be under way
    four.until(lambda: four.settled(workers, 4))
    owned, generation = [worker.owned for worker in workers], max(worker.generation for worker in workers)
    said = [len(worker.all("owns")) for worker in workers]
    for place in range(3):
        workers[place].kill()
        workers[place] = four.worker(workers[place].name, 30.0)
        four.until(lambda: four.settled(workers, 4))
        time.sleep(1)
        assert [worker.owned for worker in workers] == owned
        said[place] = len(workers[place].all("owns"))
        assert [len(worker.all("owns")) for worker in workers] == said  # no other noticed
        assert [worker.generation for worker in workers] == [generation] * 3
    assert not any(worker.all("lost") for worker in workers)


def test_a_worker_whose_name_is_taken_stops_with_the_reason(group):
    four = group(4)
    first = four.worker("same")
    four.until(lambda: four.settled([first], 4))
    second = four.worker("same")
    four.until(lambda: first.process.poll() is not None)
    four.until(lambda: "another worker of consumer group" in "".join(first.errors))
    four.until(lambda: four.settled([second], 4))
    assert first.all("lost")


def test_a_worker_that_stood_still_finds_out_before_it_answers_for_anything(group):
    four = group(4)
    first, second = four.worker(), four.worker()
    four.until(lambda: four.settled([first, second], 4))
    sleeper, other = (first, second) if first.epoch is not None else (second, first)
    epoch, had = sleeper.epoch, sleeper.owned
    four.send(40, 4)
    four.until(lambda: first.read == second.read == 40)
    sleeper.signal(signal.SIGSTOP)
    four.until(lambda: four.settled([other], 4))
    four.send(40, 4)
    four.until(lambda: other.read == 80)
    time.sleep(1)
    before, awake = len(sleeper.said), time.time()
    sleeper.signal(signal.SIGCONT)
    four.until(lambda: four.settled([first, second], 4))
    assert other.epoch > epoch
    lost = sleeper.all("lost")
    assert [set(one["partitions"]) for one in lost] == [had]
    # Before it was told it read nothing: what it read under way was still what it owned in its own eyes.
    said = sleeper.said[before:]
    news = next(place for place, one in enumerate(said) if one["what"] == "lost")
    assert not [one for one in said[:news] if one["what"] == "read" and one["count"] > 40]
    assert lost[-1]["at"] - awake < 5
    four.until(lambda: sleeper.read == 80)


def test_all_goes_on_after_the_broker_was_away(group, kafka_broker):
    four = group(4)
    first, second = four.worker(), four.worker()
    four.until(lambda: four.settled([first, second], 4))
    owned = first.owned, second.owned
    for away_s in (1.0, SESSION_S + 3):
        kafka_broker.kill()
        time.sleep(away_s)
        kafka_broker.start()
        sent = first.read
        four.send(40, 4)
        four.until(lambda: first.read == second.read == sent + 40, within_s=90)  # noqa: B023
        four.until(lambda: four.settled([first, second], 4), within_s=90)
    print("before and after the outage", owned, (first.owned, second.owned))
    assert first.process.poll() is None
    assert second.process.poll() is None


@pytest.fixture
def alone(kafka_harness):
    """Members of a group in this process, each with what it was told, and a way to poll one until something holds."""
    topic, control, name = kafka_harness.topic(1), kafka_harness.topic(1), uuid.uuid4().hex
    kafka_harness.fill(kafka_harness.producer(), topic, range(9))

    def member(session_s=SESSION_S):
        source = SharedKafkaSource(kafka_harness.where, topic, control, name, session_timeout_s=session_s)
        kafka_harness.opened.append(source)
        told = []
        source.start(
            on_assigned=lambda _: {},
            on_revoked=lambda some: told.append(("revoked", list(some))),
            on_gained=lambda some: told.append(("gained", list(some))),
            on_lost=lambda some: told.append(("lost", list(some))),
        )
        return source, told

    return Partition(topic, 0), member


def poll_until(source, holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        source.poll(max_records=10, timeout_s=0.05)


def leads(source):
    return source.owned() and source.leadership() is not None


def test_what_a_zombie_commits_does_not_count(alone, caplog):
    partition, member = alone
    zombie, told = member()
    poll_until(zombie, lambda: leads(zombie))
    epoch = zombie.leadership()
    zombie._membership._coordinator._heartbeat_enabled = False  # as in a process that stands still
    heir, _ = member()
    poll_until(heir, lambda: leads(heir))
    heir.commit({partition: 7})
    zombie.commit({partition: 3})
    assert heir.committed() == {partition: 7}
    assert "positions are not committed" in caplog.text
    assert heir.leadership() > epoch
    zombie.poll(max_records=10, timeout_s=0)
    assert told == [("gained", [partition]), ("lost", [partition])]
    assert zombie.owned() == frozenset()
    assert zombie.leadership() is None


@pytest.mark.parametrize("rejoining", [False, True])
def test_a_member_that_is_thrown_out_is_told_so_also_in_the_midst_of_a_rebalance(alone, rejoining):
    partition, member = alone
    source, told = member()
    poll_until(source, lambda: leads(source))
    epoch = source.leadership()
    coordinator = source._membership._coordinator
    coordinator.rejoining = rejoining
    coordinator.reset_generation()
    source._membership.step()
    source._act_on_changes()
    assert told == [("gained", [partition]), ("lost", [partition])]
    assert source.leadership() is None
    poll_until(source, lambda: leads(source))
    assert told[2:] == [("gained", [partition])]
    assert source.leadership() > epoch


def test_as_long_as_what_is_revoked_is_not_dealt_with_nobody_else_gets_it(alone):
    _, member = alone
    source, _ = member()
    poll_until(source, lambda: leads(source))
    source._membership.note("revoked", {TopicPartition("another", 0)})
    assert not source._membership.changes  # not held
    partition = next(iter(source.owned()))
    source._membership.note("revoked", {TopicPartition(*partition)})
    source._membership._coordinator.request_rejoin()
    source._membership.step()
    assert source._membership._coordinator.rejoin_needed
    assert source.owned() == {partition}
    source._act_on_changes()
    assert source.owned() == frozenset()


def test_a_worker_that_is_closed_leaves_at_once(alone):
    partition, member = alone
    first, _ = member(30.0)
    poll_until(first, lambda: leads(first))
    first.commit({partition: 4})
    second, told = member(30.0)
    poll_until(second, second.positions)
    first.close()
    began = time.monotonic()
    poll_until(second, lambda: leads(second))
    assert time.monotonic() - began < 25
    print(f"without an owner for {time.monotonic() - began:.2f} s")
    assert told == [("gained", [partition])]
    assert second.committed() == {partition: 4}
    first.close()
    assert first.owned() == frozenset()
