"""This worker among the others of its group: what it owns, and the weights that it shares with them.

Every worker counts all clicks. The group's assignment says which partitions a worker *owns*: it learns from their
clicks and answers for their users. What its weights learned goes to the others as a *change*, in rounds. One worker
leads: it merges changes into the next *base*, and decides about drift, fine-tuning and versions. All of them read the
same topic in the same order, so each agrees on every base; no worker waits for another one.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from online.learner.ranking_model import RankingModel
from online.lifecycle.supervisor import Proposal, Supervisor
from online.rounds.base import BaseRecord, Kind, Outcome
from online.rounds.change import Change
from online.rounds.encoding import decode, encode_base, encode_change
from online.rounds.merger import Merger
from online.rounds.replica import Replica
from online.rounds.weights import RoundsError
from online.worker.intake import Intake
from online.worker.list_writer import ListWriter
from online.worker.micro_batches import COUNTED_MAX, ReceivedClick
from online.worker.progress import Progress
from online.worker.steps import StepHook, no_hook
from online.worker.weights_topic import Message, WeightsTopic
from stream.source import Partition, Record, Source, SourceError, TopicReader, UnavailableError

ASK_S = 5.0  # time between two requests for the whole base, and between two answers
MERGE_SHARE = 0.5  # of the time between two changes of a worker: the leader merges so often
START_S_MAX, START_WAIT_S = 30.0, 0.01  # of the wait for what the others have shared so far
HELD_EVERY = 20  # rounds after which the leader looks for items that it has lost

log = logging.getLogger(__name__)


class Membership(NamedTuple):
    """What a worker of a group has of its own."""

    name: str  # for people
    identity: str  # of its folder (`identity_of`); another worker's checkpoint names another one
    epoch: str  # another one after each start
    topic: WeightsTopic  # over which weights are shared
    clicks: TopicReader  # reads clicks again that a former owner has not answered for


class Group:
    """A member of a group of workers. For the loop's thread only."""

    def __init__(
        self,
        settings: Settings,
        *,
        membership: Membership,
        source: Source,
        learner: Learner,
        progress: Progress,
        supervisor: Supervisor,
        writer: ListWriter,
        intake: Intake,
        monotonic: Callable[[], float] = time.monotonic,
        reached: StepHook = no_hook,
    ) -> None:
        """Creates a member that owns nothing yet.

        Args:
            settings: all settings.
            membership: what this worker has of its own.
            monotonic: a monotonic clock, in seconds.
            reached: called with each step's name just before it is done.
            The rest: the loop's parts.
        """
        self.settings, self.name, self.source, self.learner = settings, membership.name, source, learner
        self.topic, self.progress, self.supervisor, self.writer = membership.topic, progress, supervisor, writer
        self._clicks, self._intake, self._monotonic, self._reached = membership.clicks, intake, monotonic, reached
        self.replica = Replica(learner, membership.identity, membership.epoch)
        self.merger = Merger(self.replica.base, membership.identity)
        learner.on_rows_changed = self.replica.rows_changed
        supervisor.propose = self._propose
        self.owned: frozenset[Partition] = frozenset()
        self.leader_epoch: int | None = None
        self.leader = ""  # the identity of the worker that made the latest base
        self.rounds = 0  # bases that were taken
        self._owed: dict[Partition, tuple[int | None, int]] = {}  # offsets of former owners, still to be gone through
        self.round_at: float | None = None  # by the monotonic clock
        self._position: int | None = None  # of the topic, where reading begins
        self._claimed: dict[int, int] = {}  # by partition: changes on their way cover the offsets before it
        self._changed_at = self._merged_at = monotonic()
        self._asked_at = self._answered_at = float("-inf")
        self._unsent: list[bytes] = []  # changes and bases that the broker has not acknowledged
        self._waiting_news: list[Mapping[str, Any]] = []
        self._asked = False  # whether a worker lacks the base
        self._reactions = 0
        self._proposed: str | None = None  # identity of the record with the version that this worker proposed
        self._announced: set[str] = set()  # identities of replacements that were taken, whose version is not known yet
        supervisor.follow()
        writer.owns_only(())
        writer.writes_popular = False

    @property
    def leads(self) -> bool:
        return self.leader_epoch is not None

    # Ownership

    def trains(self, record: Record) -> bool:
        """Returns whether the weights should learn from a click: from owned ones, unless the base has them; and at the
        beginning of a stream from all."""
        owned = Partition(record.topic, record.partition) in self.owned
        merged = self.replica.is_merged(record.partition, record.offset)
        claimed = record.offset < self._claimed.get(record.partition, 0)
        return (owned or self.warming_up) and not merged and not claimed

    @property
    def warming_up(self) -> bool:
        """Whether so few clicks are merged that every worker learns from all of them. What is learned fastest would
        suffer from being averaged. The leader's weights are everybody's then."""
        return sum(self.replica.base.position.merged.values()) < self.settings.group_warm_up_clicks

    def own(self) -> None:
        """Follows the group's assignment; called after each poll."""
        topic = self.settings.clicks_topic
        owned = frozenset(partition for partition in self.source.owned() if partition.topic == topic)
        if owned != self.owned:
            self._forget_states(self.owned - owned)
            self.owned = owned
            self.writer.owns_only({partition.partition for partition in owned})
        epoch = self.source.leadership()
        if epoch != self.leader_epoch:
            self._lead(epoch)

    def _lead(self, epoch: int | None) -> None:
        led, self.leader_epoch = self.leads, epoch
        self.writer.writes_popular = self.leads
        if self.leads and not led:
            log.info("leads group %s, in epoch %d", self.settings.consumer_group, epoch)
            self.supervisor.leads = True
            self.writer.popular_stale = True
            self._merged_at = self._monotonic()
        elif led and not self.leads:
            log.info("another worker leads group %s now", self.settings.consumer_group)
            self.supervisor.follow()

    def _forget_states(self, partitions: frozenset[Partition]) -> None:
        """Forgets the attention memories of users whose clicks are only counted from now on: they would have gaps."""
        numbers = {partition.partition for partition in partitions}
        for user in self.writer.users_of(numbers) if numbers else ():
            self.learner.states.forget(user)

    def gained(self, committed: Mapping[Partition, int | None]) -> None:
        """Takes partitions over: their users' lists are written, those first that their owner may not have written."""
        self.own()
        since = {partition.partition: offset or 0 for partition, offset in committed.items()}
        at = self.source.positions()
        self._owed |= {p: (offset, at[p]) for p, offset in committed.items() if at.get(p, 0) > (offset or 0)}
        self._go_over()
        self.writer.owe(self.writer.users_of(since.keys(), since))
        self.writer.mark_stale(self.writer.users_of(since.keys()))

    def owes(self, partition: Partition) -> bool:
        """Returns whether bad messages of its former owner may not be dead letters yet: then nothing is committed."""
        return partition in self._owed

    def _go_over(self) -> None:
        """Reads again what a former owner had read since its last commit, and this worker has only counted."""
        try:
            for partition, (start, stop) in list(self._owed.items()):
                self._intake.take_over(self._between(partition, start, stop))
                del self._owed[partition]
        except SourceError as error:
            log.warning("what the former owner has read cannot be read again yet: %s", error)

    def _between(self, partition: Partition, start: int | None, stop: int) -> Iterator[Record]:
        starts = {other: end for other, end in self._clicks.ends().items() if other != partition}
        for record in self._clicks.read(starts if start is None else starts | {partition: start}):
            if record.partition == partition.partition:
                if record.offset >= stop:
                    return
                yield record

    @property
    def counted_share(self) -> int:
        """How many times as many clicks are counted as are owned, at most `COUNTED_MAX`."""
        read = len(self.source.positions())
        return min(COUNTED_MAX, -(-read // max(1, len(self.owned))))

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Lets partitions go that another worker may have owned for a while. Nothing of them is committed."""
        log.warning(
            "the group has taken this worker for dead, and %d partitions are another worker's: what was learned of "
            "them since the last round may be dropped",
            len(partitions),
        )

    def revoking(self) -> None:
        """Publishes what was learned, because another worker's offsets are going to follow."""
        self._publish_change()

    # What the loop calls

    def on_batch(self, batch: Sequence[ReceivedClick], learned: Sequence[ReceivedClick], result: BatchResult) -> None:
        """Notes a micro-batch: `learned` are its clicks that the weights have learned from."""
        trained = int(result.trainable.sum()) if result.trained else 0
        for nth, one in enumerate(learned):
            offset = one.record.offset
            self.replica.trained(one.record.partition, offset, offset + 1, trained if not nth else 0)
        self.writer.owe(one.click.user_id for one in batch if one.owned and not one.learned)

    def start(self) -> None:
        """Reads what the others have shared so far. Raises SourceError; it may be called again."""
        self.topic.open(self._position)
        deadline = time.monotonic() + START_S_MAX
        while True:
            for message in self.topic.read():
                self._take(message)
            if self.topic.caught_up:
                break
            if time.monotonic() > deadline:
                raise UnavailableError(self.topic.trouble or f"topic {self.settings.weights_topic} cannot be read yet")
            time.sleep(START_WAIT_S)
        self._claimed = self.merger.claimed()
        position = self.replica.base.position
        log.info("group %s is at base %d; this worker is %s", self.settings.consumer_group, position.number, self.name)

    def step(self) -> bool:
        """Takes in what others have shared, and shares; called once a turn.

        Returns:
            Whether another version serves now; it has to be saved before any list names it.
        """
        version = self.learner.version
        self._reached("share_read")
        try:
            for message in self.topic.read():
                self._take(message)
        except SourceError as error:
            log.debug("the others' weights cannot be read yet: %s", error)
        if self._owed:
            self._go_over()
        if self.replica.base.lost and self._monotonic() - self._asked_at >= ASK_S:
            self._asked_at = self._monotonic()
            self.topic.ask()
        while self._unsent and self.topic.write_weights(self._unsent[0]):
            self._unsent.pop(0)
        while self._waiting_news and not self._unsent and self.topic.write_news(self._waiting_news[0]):
            self._waiting_news.pop(0)
        if not self._unsent:
            if self._change_is_due():
                self._publish_change()
            if self.leads:
                self._publish_base()
        self._tell_of_reaction()
        return self.learner.version != version

    # Messages

    def _take(self, message: Message) -> None:
        if message.asks:
            self._asked = True
        elif message.news is not None:
            self._take_news(message.news)
        elif message.weights is not None:
            try:
                record = decode(message.weights, self.replica.base.shape)
                if isinstance(record, Change):
                    self.merger.add(record)
                else:
                    self._take_base(record)
            except RoundsError as error:
                log.warning("what a worker has shared does not fit the weights of this one: %s", error)

    def _take_base(self, record: BaseRecord) -> None:
        before, warmed_up = self._trial_weights(), not self.warming_up
        outcome = self.replica.rebase(record)
        if outcome != Outcome.APPLIED:
            if outcome == Outcome.GAP:
                log.info("base %d is not the one after %d: asking for the whole base", record.position.number,
                         self.replica.base.position.number)  # fmt: skip
            return
        self.merger.settle(record)
        if not self.leads and not warmed_up and not self.warming_up:
            self.replica.drop_fresh()  # of all partitions; from here on it learns from its own
        self.leader, self.rounds, self.round_at = record.leader, self.rounds + 1, self._monotonic()
        self._carry_over(before)
        if record.kind != Kind.STEP:
            self.learner.states.weights_replaced()
            self._announced.add(record.position.identity)
        if record.kind == Kind.SNAPSHOT:
            self._asked = False

    def _trial_weights(self) -> dict[str, Tensor] | None:
        if self.supervisor.trials:
            return {name: tensor.detach().clone() for name, tensor in self.learner.weights.tensors().items()}
        return None

    @torch.no_grad()
    def _carry_over(self, before: Mapping[str, Tensor] | None) -> None:
        """Moves the weights in the shadow as the live ones were moved: what others have learned is no merit of
        either."""
        if before is None:
            return
        after = self.learner.weights.tensors()
        for trial in self.supervisor.trials:
            tensors = trial.weights.tensors()
            for name, was in before.items():
                if was.is_floating_point() and tensors[name].shape == was.shape == after[name].shape:
                    tensors[name] += after[name] - was

    # Changes and bases

    def _change_is_due(self) -> bool:
        waited_s = self._monotonic() - self._changed_at
        return self.replica.clicks >= self.settings.round_clicks or waited_s >= self.settings.round_s

    def _publish_change(self) -> None:
        self._changed_at = self._monotonic()
        if self.warming_up and not self.leads:
            return
        change = self.replica.change()
        if change is not None:
            self._reached("share_change")
            self._write(encode_change(change))

    def _publish_base(self) -> None:
        now = self._monotonic()
        assert self.leader_epoch is not None
        if self._asked and now - self._answered_at >= ASK_S:
            self._asked, self._answered_at = False, now
            self._write(encode_base(self.merger.snapshot()))
        if now - self._merged_at < MERGE_SHARE * self.settings.round_s:
            return
        self._merged_at = now
        held: set[str] | None = None
        if self.rounds % HELD_EVERY == HELD_EVERY - 1:
            items = self.learner.vocabulary.items_of(range(self.learner.vocabulary.rows))
            held = {item for item in items if item is not None}
        record = self.merger.next_base(self.leader_epoch, held)
        if record is not None:
            self._reached("share_base")
            self._write(encode_base(record))

    def _write(self, record: bytes) -> None:
        if self._unsent or not self.topic.write_weights(record):
            self._unsent.append(record)

    # The leader's decisions

    def _propose(self, proposal: Proposal, weights: RankingModel, *, tuned: bool) -> None:
        """Sends a version to all workers, this one included: it serves once the topic has brought it back."""
        if self.leader_epoch is None:
            return
        whole = self.replica.whole(weights.tensors(), tuned=tuned)
        record = self.merger.replacement(whole, self.leader_epoch, discard=not tuned)
        self._reached("share_base")
        self._write(encode_base(record))
        self._waiting_news.append({"kind": "version", "identity": record.position.identity} | proposal.as_dict())

    def _take_news(self, news: Mapping[str, Any]) -> None:
        kind, changes = news.get("kind"), self.supervisor.changes
        try:
            if kind == "version" and news["identity"] in self._announced:
                self._announced.discard(news["identity"])
                self.supervisor.adopt(Proposal.from_dict(news))
            elif kind == "reaction" and news["worker"] != self.replica.worker and changes is not None:
                changes.reaction.begin()
                self._reactions = changes.reaction.reactions
        except (KeyError, TypeError, ValueError) as error:
            log.warning("a decision of the leader cannot be read: %r is missing or wrong", error)

    def _tell_of_reaction(self) -> None:
        """Tells the others once a reaction to drift has begun here: their counts are scaled down too."""
        changes = self.supervisor.changes
        if changes is not None and changes.reaction.reactions > self._reactions:
            self._reactions = changes.reaction.reactions
            if self.leads:
                self._waiting_news.append({"kind": "reaction", "worker": self.replica.worker})

    # Status and state

    def describe(self) -> dict[str, Any]:
        """Returns the part of the status that is about the group."""
        position, now = self.replica.base.position, self._monotonic()
        return {
            "worker": self.name,
            "leads": self.leads,
            "leader_epoch": self.leader_epoch,
            "owned": sorted(partition.partition for partition in self.owned),
            "partitions": sorted(p.partition for p in self.source.positions() if p.topic == self.settings.clicks_topic),
            "base": position.number,
            "round_age_s": None if self.round_at is None else round(now - self.round_at, 1),
            "rounds": self.rounds,
            "round_s": self.settings.round_s,
            "unmerged": self.replica.clicks + len(self.merger),  # above 0: there is something for the next base
            "changes": dict(self.replica.counts),
            "merger": dict(self.merger.counts),
            "bytes_written": self.topic.bytes_written,
        }

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and a JSON object."""
        replica, replica_state = self.replica.to_state()
        merger, merger_state = self.merger.to_state()
        return joined({"replica": replica, "merger": merger}), {
            "replica": replica_state,
            "merger": merger_state,
            "position": self.topic.position,
            "reactions": self._reactions,
            "announced": sorted(self._announced),
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned, after the learner has loaded its own."""
        self.replica.load_state(below(arrays, "replica"), state["replica"])
        if state["replica"]["worker"] != self.replica.worker:
            self.progress.learned_from = 0  # those were another worker's
        self.merger.load_state(below(arrays, "merger"), state["merger"])
        self._position = state["position"]
        self._reactions = state["reactions"]
        self._announced = set(state["announced"])

    def load_alone(self) -> None:
        """Takes over from a checkpoint of a worker that was alone: its weights become this worker's own change."""
        self.replica.realign()

    def close(self) -> None:
        """Closes what it reads from."""
        self.topic.close()
        self._clicks.close()
