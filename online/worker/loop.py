"""The loop: clicks in, lists out, and the order of effects that lets it be killed at any moment.

Lists go to Redis first, then the checkpoint with the next offsets is written, then the offsets are committed. After a
crash the worker resumes from the checkpoint: clicks after it are learned again, by weights that have not seen them, and
their lists are written again. No click is lost, and none is in the surviving weights twice.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from online.learner.lookahead import UpcomingBatch
from online.lifecycle.reaction import Changes
from online.lifecycle.supervisor import Supervisor
from online.lifecycle.unreadable import UnreadableWatch
from online.lifecycle.versions import Versions
from online.worker.asking import Asking
from online.worker.catalogue import Catalogue
from online.worker.checkpoint import CheckpointError, Checkpoints, Saved
from online.worker.checkpointing import Checkpointer
from online.worker.dead_letters import DeadLetterWriter
from online.worker.feedback import FeedbackIntake
from online.worker.forget import Forgetting
from online.worker.group import Group, Membership
from online.worker.intake import Intake
from online.worker.items_feed import ItemsFeed
from online.worker.list_writer import ListWriter
from online.worker.loop_state import capture, read_for_rollback, restore
from online.worker.loss_notices import LossNotices
from online.worker.micro_batches import ForgetRequest, MicroBatch, ReceivedClick, micro_batches
from online.worker.monitor import Monitor
from online.worker.notices import Notices
from online.worker.overload import Overload
from online.worker.poison_pills import Quarantine
from online.worker.process_copy import can_copy
from online.worker.progress import Progress
from online.worker.shared_checkpoints import SharedCheckpoints
from online.worker.shown_lists import ImpressionIntake
from online.worker.steps import StepHook, no_hook
from online.worker.topic_intake import TopicIntake
from online.worker.user_attributes import UserIntake
from stream import feedback as feedback_records
from stream import impressions as impression_records
from stream import items as item_records
from stream import users as user_records
from stream.events import Click
from stream.lists import Lists, ListsError
from stream.notices import NoticeWriter
from stream.source import OffsetOutOfRange, Partition, Record, Source, SourceError

_NO_BUGS = (
    SourceError,
    ListsError,
    CheckpointError,
    MemoryError,
)  # these errors come from the environment (broker, Redis, disk, memory), not from a bug

log = logging.getLogger(__name__)


class Loop:
    """One worker's loop. Call `restore` first, then `start`, then `turn` repeatedly, and `finish` at the end."""

    def __init__(
        self,
        settings: Settings,
        *,
        source: Source,
        items: ItemsFeed,
        feedback: ItemsFeed,
        users: ItemsFeed | None = None,
        impressions: ItemsFeed | None = None,
        dead_letters: DeadLetterWriter,
        lists: Lists,
        checkpoints: Checkpoints,
        notices: NoticeWriter | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        quarantine: Quarantine | None = None,
        reached: StepHook = no_hook,
        executor: Executor | None = None,
        membership: Membership | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        """Creates a loop.

        Args:
            settings: all settings.
            source: where clicks come from.
            items: updates of items.
            feedback: what users say of items.
            users: what is known of users; None: nothing, as there is no topic of it.
            impressions: lists that were shown; None: they are not learned from.
            dead_letters: takes messages that are no clicks.
            lists: where lists are written.
            checkpoints: where checkpoints are written.
            notices: where notices are published; None: nowhere.
            clock: the computer's, in seconds since 1970.
            monotonic: a monotonic clock, in seconds, for durations.
            quarantine: the records on which earlier loops of this process failed.
            reached: called with the name of each step (online/worker/steps.py) just before it is done.
            executor: as for `Checkpointer`.
            membership: of a group of workers; None: this worker is alone.
            monitor: told of each turn, and of how long its steps take; None: one of the loop's own.
        """
        self.settings = settings
        self.source = source
        self.dead_letters = dead_letters
        self.checkpoints = checkpoints
        self.clock, self.monotonic = clock, monotonic
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self._reached = reached
        self.monitor = Monitor(monotonic) if monitor is None else monitor
        self._timings = self.monitor.timings
        self.learner = Learner(settings)
        self.progress = Progress()
        self.versions = Versions(settings.versions_kept, settings.versions_listed, at_ms=int(1000 * clock()))
        self.notices = Notices(
            settings.notices_held, progress=self.progress, versions=self.versions, clock=clock, writer=notices
        )
        self.unreadable = {
            topic: UnreadableWatch(
                topic,
                share=settings.unreadable_share,
                messages=settings.unreadable_messages,
                emit=self.notices.emit,
            )
            for topic in (settings.clicks_topic, *settings.topics_beside)
        }
        self.intake = Intake(
            settings,
            dead_letters=dead_letters,
            quarantine=self.quarantine,
            progress=self.progress,
            unreadable=self.unreadable[settings.clicks_topic],
            emit=self.notices.emit,
            clock=clock,
            owns=self._owns,
            trains=self._trains,
        )
        self.overload = Overload(settings, progress=self.progress, emit=self.notices.emit, clock=clock)
        intake = partial(TopicIntake, dead_letters=dead_letters, progress=self.progress, emit=self.notices.emit)
        catalogue = Catalogue(
            settings,
            intake(
                settings.items_topic,
                feed=items,
                read=lambda record: item_records.parse(record.key, record.value, limits=settings.limits),
                unreadable=self.unreadable[settings.items_topic],
            ),
            learner=self.learner,
            lists=lists,
        )
        self.losses = LossNotices(self.notices.emit, monotonic)
        self.writer = ListWriter(
            settings,
            learner=self.learner,
            progress=self.progress,
            catalogue=catalogue,
            lists=lists,
            losses=self.losses,
            emit=self.notices.emit,
            clock=clock,
            monotonic=monotonic,
            timings=self._timings,
        )
        self.changes = Changes(settings, self.learner)
        self.supervisor = Supervisor(
            settings,
            learner=self.learner,
            totals=self.progress,
            versions=self.versions,
            changes=self.changes,
            emit=self.notices.emit,
            read_checkpoint=partial(read_for_rollback, checkpoints),
            clock=clock,
            monotonic=monotonic,
        )
        self.forgetting = Forgetting(
            settings,
            learner=self.learner,
            progress=self.progress,
            writer=self.writer,
            supervisor=self.supervisor,
            dead_letters=dead_letters,
            checkpoints=checkpoints,
            versions=self.versions,
            emit=self.notices.emit,
            monotonic=monotonic,
        )
        self.feedback = FeedbackIntake(
            settings,
            intake(
                settings.feedback_topic,
                feed=feedback,
                read=lambda record: feedback_records.parse(record.value, now=clock(), limits=settings.limits),
                unreadable=self.unreadable[settings.feedback_topic],
            ),
            learner=self.learner,
            writer=self.writer,
            forgetting=self.forgetting,
            owns=self._owns,
        )
        self.users: UserIntake | None = None
        if users is not None and settings.users_topic is not None and self.learner.groups is not None:
            self.users = UserIntake(
                intake(
                    settings.users_topic,
                    feed=users,
                    read=lambda record: user_records.parse(record.key, record.value, limits=settings.limits),
                    unreadable=self.unreadable[settings.users_topic],
                ),
                groups=self.learner.groups,
                forgetting=self.forgetting,
                owns=lambda: self._owns(Partition(settings.clicks_topic, 0)),
            )
        self.impressions: ImpressionIntake | None = None
        if impressions is not None and self.learner.shown is not None:
            self.impressions = ImpressionIntake(
                intake(
                    settings.impressions_topic,
                    feed=impressions,
                    read=lambda record: impression_records.parse(record.value, now=clock(), limits=settings.limits),
                    dead_letters=None,  # each is worth little, and names a user
                    unreadable=self.unreadable[settings.impressions_topic],
                ),
                shown=self.learner.shown,
                now=lambda: self.learner.now[0],
            )
        self.read_from: dict[str, str] = {}  # cluster, topic, group: what the offsets belong to
        self.checkpointer = Checkpointer(
            settings,
            checkpoints=checkpoints,
            settle=self.learner.ranker.popular_list,
            capture=partial(capture, self),
            source=source,
            progress=self.progress,
            versions=self.versions,
            writer=self.writer,
            dead_letters=dead_letters,
            forgetting=self.forgetting,
            quarantine=self.quarantine,
            emit=self.notices.emit,
            clock=clock,
            monotonic=monotonic,
            reached=reached,
            executor=executor,
            timings=self._timings,
            copies=settings.checkpoint_in_copy and can_copy() and self.learner.device.type == "cpu",
        )
        self.asking: Asking | None = None  # answers questions; set before the first turn
        self.shared: SharedCheckpoints | None = None
        self.group: Group | None = None
        if membership is not None:
            self.group = Group(
                settings,
                membership=membership,
                source=source,
                learner=self.learner,
                progress=self.progress,
                supervisor=self.supervisor,
                writer=self.writer,
                intake=self.intake,
                monotonic=monotonic,
                reached=reached,
            )
            self.checkpointer.holds_back = self.group.takeover.is_pending
            if settings.shared_checkpoints is not None:
                self.shared = SharedCheckpoints(
                    settings.shared_checkpoints, interval_s=settings.shared_checkpoint_interval_s, monotonic=monotonic
                )
                self.forgetting.shared, self.forgetting.leads = self.shared, partial(_leads, self.group)
        self._active_at = monotonic()  # when messages last arrived, or it was last unknown whether any wait
        self._announced: list[Click] | None = None  # the next micro-batch, as announced to the learner

    def restore(self) -> int | None:
        """Restores the latest checkpoint.

        Returns:
            Its number; None if there is none.

        Raises:
            CheckpointError: no checkpoint can be used.
            SourceError: the dead letters' topic cannot be read; the call may be repeated.
        """
        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            self.dead_letters.load_state({}, {})
            return None
        number, arrays, state = checkpoint
        restore(self, number, arrays, state)
        self.checkpointer.restored(Saved(number, self.checkpoints.size_bytes(number), None))
        offsets = ", ".join(
            f"{p.topic}:{p.partition} from {at}" for p, at in sorted(self.progress.next_offsets.items())
        )
        text = "checkpoint %d restored: %d clicks learned; reading from %s"
        log.info(text, number, self.progress.learned, offsets, extra={"version": self.learner.version})
        return number

    def leave_stream(self) -> None:
        """Drops the offsets of the restored checkpoint, because the clicks to come are of another stream.

        The weights and counts stay. Call it between `restore` and `start`.

        Raises:
            SourceError: the dead letters' topic cannot be read; the call may be repeated.
        """
        self.dead_letters.load_state({}, {})  # first: the broker may be unavailable, and this is tried again
        self.progress.next_offsets.clear()

    def start(self) -> None:
        """Starts reading: partitions begin at the checkpoint's offsets, new ones at their earliest record.

        So a worker that takes partitions over from another worker of its group learns all their retained records.
        """
        self.writer.start()
        self.feedback.start()
        if self.users is not None:
            self.users.start()
        if self.impressions is not None:
            self.impressions.start()
        group = self.group
        self.source.start(
            on_assigned=self._assigned,
            on_revoked=self._revoked,
            on_gone=self._out_of_range,
            on_gained=None if group is None else group.gained,
            on_lost=None if group is None else group.lost,
        )

    def turn(self) -> int:
        """Does one turn. The numbers are the order of effects, on which the guarantee after a crash rests.

        Returns:
            How many messages were read.

        Raises:
            InconsistentStateError: our own code failed on a micro-batch. Another loop has to resume from the
                checkpoint, with the same quarantine.
            InternalError: our own code failed on too many events in a row.
            SourceError: the broker, or the embedded log, refuses.
        """
        self.monitor.turned()
        if self._waits_for_dead_letters():
            return 0
        # 1. Poll a bounded batch.
        self._reached("poll")
        records = self._poll()
        # 2. Parse: messages that are no clicks become dead letters; events that were learned before are left out.
        self._reached("parse")
        batches = self._parse(records)
        for batch, following in pairwise([*batches, None]):
            assert batch is not None
            with self.quarantine.watch(batch, expected=_NO_BUGS), self._timings.micro_batch.timed():
                if isinstance(batch, ForgetRequest):
                    self.forgetting.forget(batch)
                else:
                    # 3. Score the served lists, learn, rank new lists.
                    self._reached("learn")
                    result = self._learn(batch, following)
                    learned = self._note_counted(batch, result)
                    if learned:
                        # 4. Write the new lists, in one pipeline.
                        self._reached("lists")
                        self.writer.publish([one for one in learned if one.owned], result.rankings)
                        # 5. The shadow learns the same clicks. A drift alarm starts a reaction, and asks for
                        # fine-tuning.
                        self._reached("shadow")
                        self._watch(learned, result)
            # 6. Apply item updates and feedback: after each micro-batch, because a full turn may take a second.
            self._apply_updates()
            self._answer_questions(idle=False)
        if not batches:
            self._apply_updates()
        # 7. Note the next offsets.
        self._check_silence(records)
        if records:  # not while idle: no checkpoint would follow, and state that is not saved must not change
            self.learner.states.rebuild()
        self._reached("offsets")
        self.progress.passed(self.source.positions())
        # 8. Refresh lists that have aged, and write those that Redis refused before.
        self._reached("refresh")
        self.writer.refresh()
        # 9. Decide which version serves, and do a slice of fine-tuning. Both wait while no checkpoint can be written,
        # because a version is saved before lists name it. In a group its leader decides, and weights are shared.
        self._reached("decide")
        published = self.checkpointer.failing_since is None and self.supervisor.step(late=self.overload.late)
        if self.group is not None:
            published |= self.group.step()
        if published and self.versions.came_back:
            self.writer.renew_all()  # replaces the lists of the version that was rolled back
        # 10. Checkpoint weights and offsets, then commit. Another thread completes the checkpoint, except where it must
        # be complete before the loop goes on: for a new version, and after a user was forgotten.
        self.checkpointer.step(at_once=published)
        self._share_checkpoint()
        self.overload.update(self.source)
        self._answer_questions(idle=not records)
        return len(records)

    def _apply_updates(self) -> None:
        """Takes in what the topics of items, feedback, users and impressions say; the next lists go by it."""
        self._reached("items")
        self.writer.apply_item_updates()
        self.feedback.take_in()
        if self.users is not None:
            self.users.take_in()
        if self.impressions is not None:
            self.impressions.take_in()

    def _answer_questions(self, *, idle: bool) -> None:
        """Ranks what the API asks for. It changes nothing that is saved, so it is no step of the order of effects."""
        if self.asking is not None:
            self.asking.step(idle=idle)

    def _share_checkpoint(self) -> None:
        """Has the leader's latest checkpoint copied to the shared folder, if it is time; another thread does it."""
        saved = self.checkpointer.last_saved
        if self.shared is not None and saved is not None and self.group is not None and self.group.leads:
            self.shared.step(self.checkpoints.folder / f"{saved.number:08d}", saved.number, self.group.name)

    def _poll(self) -> list[Record]:
        """Polls records; without waiting for clicks while there is fine-tuning to do or lists to write."""
        busy = (self.supervisor.busy and self.checkpointer.failing_since is None) or self.writer.waiting
        timeout_s = 0.0 if busy else self.settings.poll_timeout_s
        timeout_s = timeout_s if self.asking is None else self.asking.poll_timeout_s(timeout_s)
        share = 1 if self.group is None else max(1, self.group.counted_share)  # 0 before the topic is known
        with self._timings.poll.timed():
            records = self.source.poll(max_records=share * self.settings.poll_records_max, timeout_s=timeout_s)
        self.overload.received(records)
        if self.group is not None:
            self.group.own()
        else:
            self.writer.owns({p.partition for p in self.source.positions() if p.topic == self.settings.clicks_topic})
        return records

    def _owns(self, partition: Partition) -> bool:
        return self.group is None or partition in self.group.owned

    def _trains(self, record: Record) -> bool:
        return self.group is None or self.group.trains(record)

    def _parse(self, records: Sequence[Record]) -> list[MicroBatch]:
        received = list(self.intake.readable(records))
        per_user_max = self.settings.history_max // 2
        return [*micro_batches(received, self.settings.micro_batch_max, per_user_max, self.quarantine.alone)]

    def _learn(self, batch: Sequence[ReceivedClick], following: MicroBatch | None) -> BatchResult:
        """Learns one micro-batch. `following`: the next one of this turn, whose candidates are gathered meanwhile."""
        clicks = self._announced if self._announced is not None else [one.click for one in batch]
        self._announced = [one.click for one in following] if isinstance(following, list) else None
        announced = None
        if self._announced is not None:
            announced = partial(UpcomingBatch, self._announced, None, _learned(following))
        result = self.learner.learn(
            clicks, train=not self.overload.shedding, owned=_learned(batch), following=announced
        )
        self.progress.learned += len(batch)
        self.progress.learned_from += sum(one.owned for one in batch)
        self.progress.untrained += 0 if result.trained else int(result.trainable.sum())
        return result

    def _note_counted(self, batch: list[ReceivedClick], result: BatchResult) -> list[ReceivedClick]:
        """Notes what a micro-batch changed beside the weights, and returns the clicks that were learned from."""
        if self.group is None:
            return batch
        self.writer.note_origins(batch)
        learned = [one for one in batch if one.learned]
        self.group.on_batch(batch, learned, result)
        if not learned:
            self.supervisor.rows_changed(result)
        return learned

    def _watch(self, batch: Sequence[ReceivedClick], result: BatchResult) -> None:
        clicks = [one.click for one in batch]
        self.writer.latest.add(batch, result)
        self.supervisor.on_batch(clicks, result, [one.record.timestamp_ms / 1_000 for one in batch])
        self.losses.expired(result.expired, len(self.learner.vocabulary), self.settings.item_idle_s_max)
        if self.learner.seen is not None:
            self.losses.seen_items(self.learner.seen)
        self.losses.hidden_items(self.learner.hidden)
        self.losses.items(self.learner.items)
        self.losses.users(self.learner.histories)

    def _check_silence(self, records: Sequence[Record]) -> None:
        """Reports how long no messages have arrived, if all records were read and the broker answers."""
        lag = self.overload.lag
        if records or (lag is not None and lag.total) or self.source.trouble() or not self.source.positions():
            self._active_at = self.monotonic()
        else:
            self.supervisor.silence(self.monotonic() - self._active_at)

    def _waits_for_dead_letters(self) -> bool:
        """Returns whether dead letters cannot be stored: then no clicks are read, since no checkpoint could follow."""
        if self.dead_letters.waits_for is None or self.dead_letters.flush(self.progress.next_offsets):
            return False
        self.writer.refresh()
        time.sleep(self.settings.poll_timeout_s)
        return True

    def checkpoint(self) -> bool:
        """Does `Checkpointer.save`."""
        return self.checkpointer.save()

    def finish(self) -> None:
        """Writes a last checkpoint and commits. Raises as `checkpoint` does."""
        if not self.checkpoint():
            log.warning(
                "no last checkpoint was written, because dead letters cannot be stored: "
                "clicks since the previous checkpoint will be read again"
            )

    def answer_forget(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Does `Forgetting.answer`, once no checkpoint is being written: it searches them."""
        self.checkpointer.wait()
        return self.forgetting.answer(request)

    def close(self) -> None:
        """Does `Supervisor.close` and `Checkpointer.close`."""
        self.supervisor.close()
        self.checkpointer.close()
        if self.shared is not None:
            self.shared.close()

    def _assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Returns the offsets at which the partitions begin."""
        starts = self.progress.starts(partitions)
        places = (
            f"{p.partition} from {starts[p]:,}" if p in starts else f"{p.partition} from its earliest record"
            for p in partitions
        )
        log.info("reads topic %s, partition %s", self.settings.clicks_topic, ", ".join(places))
        return starts

    def _revoked(self, partitions: Sequence[Partition]) -> None:
        """Saves before another worker takes the partitions over, so that the commit covers all that was learned."""
        if self.group is not None:
            self.group.revoking()
        if any(partition in self.progress.next_offsets for partition in partitions):
            self.checkpointer.try_save()

    def _out_of_range(self, gone: OffsetOutOfRange) -> None:
        """Handles an offset that the broker no longer retains. Raises SourceError if the settings say `stop`."""
        if self.settings.offset_out_of_range == "stop":
            raise SourceError(
                f"{gone}; the worker stops, as NEXTCLICK_OFFSET_OUT_OF_RANGE says: set it to earliest to go on "
                f"from {gone.earliest}"
            )
        self.progress.lost += gone.lost
        figures = {"topic": gone.partition.topic, "partition": gone.partition.partition, "records": gone.lost}
        figures |= {"wanted": gone.wanted, "earliest": gone.earliest}
        self.notices.emit("messages_lost", f"{gone}; going on from {gone.earliest}", figures)


def _leads(group: Group) -> bool:
    return group.leads


def _learned(batch: Sequence[ReceivedClick] | ForgetRequest | None) -> NDArray[np.bool_] | None:
    """Returns which clicks of a micro-batch the weights learn from; None: all."""
    learned = [one.learned for one in batch] if isinstance(batch, Sequence) else []
    return None if all(learned) else np.array(learned, np.bool_)
