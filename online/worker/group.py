"""This worker among the others of its group: what it owns, and the weights that it shares with them.

Every worker counts all clicks. The group's assignment says which partitions a worker *owns*: it learns from their
clicks and answers for their users. What its weights learned goes to the others as a *change*, in rounds. One worker
leads: it merges changes into the next *base*, and decides about drift, fine-tuning and versions. All of them read the
same topic in the same order, so each agrees on every base; no worker waits for another one.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from online.lifecycle.supervisor import Supervisor
from online.rounds.base import BaseRecord, Kind, Outcome
from online.rounds.change import Change
from online.rounds.encoding import decode, encode_base, encode_change
from online.rounds.merger import Merger
from online.rounds.replica import Replica
from online.rounds.weights import RoundsError
from online.worker.decisions import Decisions
from online.worker.intake import Intake
from online.worker.list_writer import ListWriter
from online.worker.micro_batches import COUNTED_MAX, ReceivedClick
from online.worker.progress import Progress
from online.worker.steps import StepHook, no_hook
from online.worker.takeover import Takeover
from online.worker.weights_topic import Message, Outbox, WeightsTopic
from stream.source import Partition, Record, Source, SourceError, TopicReader, UnavailableError

ASK_S = 5.0  # time between two requests for the whole base, and between two answers
MERGE_SHARE = 0.5  # of the time between two changes of a worker: the leader merges so often
START_S_MAX, START_WAIT_S = 30.0, 0.01  # of the wait for what the others have shared so far
PAUSE_S = 5.0  # after so long without a poll the group may have taken this worker for dead
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
        self.outbox = Outbox(membership.topic)
        self.replica = Replica(learner, membership.identity, membership.epoch)
        self.merger = Merger(self.replica.base, membership.identity)
        learner.on_rows_changed = self.replica.rows_changed
        self.decisions = Decisions(
            supervisor=supervisor, replica=self.replica, merger=self.merger, outbox=self.outbox, reached=reached
        )
        self.takeover = Takeover(
            clicks=membership.clicks,
            intake=intake,
            dead_letters=intake.dead_letters,
            learner=learner,
            trained=self.replica.trained,
            is_merged=self.replica.is_merged,
            batch_max=settings.micro_batch_max,
            behind_max=settings.moments_held,
        )
        intake.before_letter = self._doubt_after_pause
        self.owned: frozenset[Partition] = frozenset()
        # Whether so few clicks are merged that every worker learns from all of them: what is learned fastest would
        # suffer from being averaged. The leader's weights are everybody's then.
        self.warming_up = True
        self._owned_numbers: frozenset[int] = frozenset()
        self.leader_epoch: int | None = None
        self.rounds = 0  # bases that were taken
        self.round_at: float | None = None  # by the monotonic clock
        self._position: int | None = None  # of the topic, where reading begins
        self._claimed: dict[int, int] = {}  # by partition: changes on their way cover the offsets before it
        self._changed_at = self._merged_at = monotonic()
        self._asked_at = self._answered_at = float("-inf")
        self._polled_at = monotonic()
        self._on_its_way: tuple[str, int] | None = None  # identity and number of this worker's base, not read back yet
        self._alone = False  # whether the weights are those of a worker that was alone, and not shared yet
        self._asked = False  # whether a worker lacks the base
        self._check_warm_up()
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
        if record.partition not in self._owned_numbers and not self.warming_up:
            return False  # first, since it holds of most
        claimed = record.offset < self._claimed.get(record.partition, 0)
        return not claimed and not self.replica.is_merged(record.partition, record.offset)

    def _check_warm_up(self) -> None:
        merged = sum(self.replica.base.position.merged.values())
        self.warming_up = merged < self.settings.group_warm_up_clicks

    def own(self) -> None:
        """Follows the group's assignment; called after each poll."""
        topic = self.settings.clicks_topic
        self._polled_at = self._monotonic()
        owned = frozenset(partition for partition in self.source.owned() if partition.topic == topic)
        if owned != self.owned:
            self._forget_states(self.owned - owned)
            self.owned, self._owned_numbers = owned, frozenset(partition.partition for partition in owned)
            self.takeover.only(owned)
            self.writer.owns_only(self._owned_numbers)
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
            self.writer.renew_records()
            self._merged_at = self._monotonic()
        elif led and not self.leads:
            log.info("another worker leads group %s now", self.settings.consumer_group)
            self.supervisor.follow()
            self.decisions.lapse()
            self._on_its_way = None

    def _doubt_after_pause(self) -> None:
        """After a pause another worker may have written dead letters of messages that this one has polled before."""
        if self._monotonic() - self._polled_at >= PAUSE_S:
            at = self.source.positions()
            self._intake.dead_letters.doubt({partition: at[partition] for partition in self.owned if partition in at})

    def _forget_states(self, partitions: frozenset[Partition]) -> None:
        """Forgets the attention memories of users whose clicks are only counted from now on: they would have gaps."""
        numbers = {partition.partition for partition in partitions}
        for user in self.writer.users_of(numbers) if numbers else ():
            self.learner.states.forget(user)

    def gained(self, committed: Mapping[Partition, int | None]) -> None:
        """Takes partitions over: their users' lists are written, those first that their owner may not have written."""
        self.own()
        self._read()  # also the last change of the former owner
        self._claimed = self.merger.claimed()
        at = self.source.positions()
        self.takeover.gained(committed, at, self._trained_until())
        since = {partition.partition: offset or 0 for partition, offset in committed.items()}
        self.writer.owe(self.writer.users_of(since.keys(), since))
        self.writer.mark_stale(self.writer.users_of(since.keys()))

    def _trained_until(self) -> dict[int, int]:
        """Returns the offsets, by partition, before which clicks are trained, here or in any change on its way."""
        until = dict(self.replica.base.position.merged)
        in_flight = self.replica.in_flight
        for ranges in (self.replica.ranges, {} if in_flight is None else in_flight.ranges):
            for partition, (_, stop) in ranges.items():
                until[partition] = max(stop, until.get(partition, 0))
        for partition, stop in self._claimed.items():
            until[partition] = max(stop, until.get(partition, 0))
        return until

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
        if not self._alone:
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
        self._read()
        if self.replica.base.lost and self._monotonic() - self._asked_at >= ASK_S:
            self._asked_at = self._monotonic()
            self.topic.ask()
        self._train_again()
        if self.outbox.send():
            self._share()
        self.decisions.tell_of_reaction(leads=self.leads)
        return self.learner.version != version

    def _read(self) -> None:
        try:
            for message in self.topic.read():
                self._take(message)
        except SourceError as error:
            log.debug("the others' weights cannot be read yet: %s", error)

    def _train_again(self) -> None:
        """Goes on with what former owners have left; the models in the shadow are moved as the live one is."""
        self.takeover.go_over()
        if self.takeover.training:
            self._reached("train_again")
            before = self._trial_weights()
            self.takeover.train()
            self._carry_over(before)

    def _share(self) -> None:
        if self._alone:
            self._share_all()
        elif self._change_is_due() and not self.takeover.training:  # else its offsets would count as trained, too
            self._publish_change()
        if self.leads:
            self._publish_base()

    def _share_all(self) -> None:
        """Makes the weights of a worker that was alone the base, unless the group has learned from more clicks."""
        if self._on_its_way is not None or self.replica.base.lost:
            return
        learned = {p.partition: at for p, at in self.progress.next_offsets.items() if at and self._is_clicks(p)}
        if sum(self.replica.base.position.merged.values()) > sum(learned.values()) or not learned:
            log.warning("the group has learned from more clicks than this worker: its weights take their place")
            self.replica.give_up_own()
            self._alone = False
            return
        whole = self.replica.whole(self.learner.weights.tensors())
        change = self.replica.all_learned(self.progress.learned, {p: (0, at) for p, at in learned.items()})
        epoch = self.replica.base.position.leader_epoch if self.leader_epoch is None else self.leader_epoch
        record = self.merger.replacement(whole, epoch, discard=False, change=change)
        self.decisions.tell_version(record.position.identity)
        self._write_base(record)

    def _is_clicks(self, partition: Partition) -> bool:
        return partition.topic == self.settings.clicks_topic

    # Messages

    def _take(self, message: Message) -> None:
        if message.asks:
            self._asked = True
        elif message.news is not None:
            self.decisions.take_news(message.news)
        elif message.weights is not None:
            try:
                record = decode(message.weights, self.replica.base.shape)
                if isinstance(record, Change):
                    self.merger.add(record)
                else:
                    self._take_base(record)
            except RoundsError as error:
                log.warning("what a worker has shared does not fit the weights of this one: %s", error)
                self._on_its_way = None  # it may have been that

    def _take_base(self, record: BaseRecord) -> None:
        identity, number = record.position.identity, record.position.number
        before, warmed_up = self._trial_weights(), not self.warming_up
        own = self.decisions.is_own_version(record)
        was = self.learner.weights.copy() if own else None
        outcome = self.replica.rebase(record)
        accepted = outcome == Outcome.APPLIED
        if self._on_its_way is not None:
            sent, sent_number = self._on_its_way
            if identity == sent or (accepted and number >= sent_number):
                self._alone = self._alone and not (accepted and identity == sent)
                self._on_its_way = None
        if outcome == Outcome.GAP:
            log.info("base %d is not the one after %d: asking for the whole base", number,
                     self.replica.base.position.number)  # fmt: skip
        if accepted:
            self.merger.settle(record)
            self._check_warm_up()
            if not (self.leads or warmed_up or self.warming_up):
                self.replica.drop_fresh()  # of all partitions; from here on it learns from its own
            self.rounds, self.round_at = self.rounds + 1, self._monotonic()
            self._carry_over(before)
            if record.kind != Kind.STEP:
                self.learner.states.weights_replaced()
        if record.kind == Kind.SNAPSHOT:
            self._asked = False
        self.decisions.record_read(record, accepted=accepted, before=was)

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
            self.outbox.put(encode_change(change))

    def _publish_base(self) -> None:
        now = self._monotonic()
        assert self.leader_epoch is not None
        if self._asked and now - self._answered_at >= ASK_S and not self.replica.base.lost:
            self._asked, self._answered_at = False, now
            self._reached("share_base")
            self.decisions.tell_version(self.replica.base.position.identity)
            self.outbox.put(encode_base(self.merger.snapshot()))
        if self._on_its_way is not None or self.replica.base.lost:
            return  # the next one has to follow it
        if self.decisions.waits:
            number = self.replica.base.position.number + 1
            identity = self.decisions.send(self.leader_epoch)
            self._on_its_way = None if identity is None else (identity, number)
            return
        if now - self._merged_at < MERGE_SHARE * self.settings.round_s:
            return
        self._merged_at = now
        held: set[str] | None = None
        if self.rounds % HELD_EVERY == HELD_EVERY - 1:
            items = self.learner.vocabulary.items_of(range(self.learner.vocabulary.rows))
            held = {item for item in items if item is not None}
        record = self.merger.next_base(self.leader_epoch, held)
        if record is not None:
            self._write_base(record)

    def _write_base(self, record: BaseRecord) -> None:
        self._on_its_way = record.position.identity, record.position.number
        self._reached("share_base")
        self.outbox.put(encode_base(record))

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
            "takeover": dict(self.takeover.counts),
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
            "decisions": self.decisions.to_state(),
            "alone": self._alone,
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned, after the learner has loaded its own."""
        self.replica.load_state(below(arrays, "replica"), state["replica"])
        if state["replica"]["worker"] != self.replica.worker:
            self.progress.learned_from = 0  # those were another worker's
        self.merger.load_state(below(arrays, "merger"), state["merger"])
        self._position = state["position"]
        self._check_warm_up()
        self.decisions.load_state(state["decisions"])
        self._alone = state["alone"] and state["replica"]["worker"] == self.replica.worker
        if self._alone:
            self.replica.in_flight = None

    def load_alone(self) -> None:
        """Takes over from a checkpoint of a worker that was alone: its weights are to become the group's base."""
        self.replica.realign()
        self._alone = True

    def close(self) -> None:
        """Closes what it reads from."""
        self.topic.close()
        self._clicks.close()
