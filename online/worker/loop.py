"""The loop: clicks in, lists out, and the order of effects that lets it be killed at any moment.

Lists go to Redis first, then the checkpoint with the next offsets is written, then the broker is told. After a crash
everything goes on from the checkpoint: what came after it is learned again by weights that have not seen it, and its
lists are written again. Nothing is lost, and no click is in the surviving weights twice.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from numpy.typing import NDArray

from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.facts.features import features
from online.learner.learner import Learner
from online.learner.lookahead import UpcomingBatch
from online.lifecycle.reaction import Changes
from online.lifecycle.supervisor import Supervisor
from online.lifecycle.unreadable import UnreadableWatch
from online.lifecycle.versions import VersionError, Versions
from online.worker.arrived import Arrived, ToForget, micro_batches
from online.worker.catalogue import Catalogue
from online.worker.checkpoint import CheckpointError, Checkpoints, Saved
from online.worker.dead_letters import DeadLetterWriter
from online.worker.departures import Departures
from online.worker.forget import Forgetting
from online.worker.intake import Intake
from online.worker.items_feed import ItemsFeed
from online.worker.list_writer import ListWriter
from online.worker.notices import Notices
from online.worker.overload import Overload
from online.worker.poison_pills import InconsistentStateError, Quarantine, last_line, place
from online.worker.progress import Progress
from online.worker.steps import StepHook, no_hook
from stream.events import Click
from stream.lists import Lists, ListsError
from stream.notices import NoticeWriter
from stream.source import OffsetOutOfRange, Partition, Record, Source, SourceError

# Weights saved with others cannot be loaded.
SHAPED_BY = (
    *("layers", "width", "heads", "rounds", "buckets"),
    *("ranker_hidden", "ranker_networks", "popularity_half_lives"),
)

_NO_BUGS = (
    SourceError,
    ListsError,
    CheckpointError,
    MemoryError,
)  # of ours: something around us is not as it should be

log = logging.getLogger(__name__)


class _Writing(NamedTuple):
    """A checkpoint that is being completed in another thread, and where the stream stood when it was begun."""

    saved: Future[Saved]
    progress: dict[str, Any]
    next_offsets: dict[Partition, int]


class Loop:
    """One worker's loop. `restore` first, then `start`, then `turn` again and again, then `finish`."""

    def __init__(
        self,
        settings: Settings,
        *,
        source: Source,
        items: ItemsFeed,
        dead_letters: DeadLetterWriter,
        lists: Lists,
        checkpoints: Checkpoints,
        notices: NoticeWriter | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        quarantine: Quarantine | None = None,
        reached: StepHook = no_hook,
        aside: Executor | None = None,
    ) -> None:
        """`clock`: the computer's, in seconds since 1970; `monotonic`: a monotonic one, for how long things take.
        `quarantine`: what loops before this one failed on. `reached` is called with the name of each step
        (online/worker/steps.py) just before it is done. `aside`: what completes checkpoints while the loop
        goes on; None: a thread."""
        self.settings = settings
        self.source = source
        self.dead_letters = dead_letters
        self.checkpoints = checkpoints
        self.clock, self.monotonic = clock, monotonic
        self._quarantine = Quarantine() if quarantine is None else quarantine
        self._reached = reached
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
            for topic in (settings.clicks_topic, settings.items_topic)
        }
        self.intake = Intake(
            settings,
            dead_letters=dead_letters,
            quarantine=self._quarantine,
            progress=self.progress,
            unreadable=self.unreadable[settings.clicks_topic],
            emit=self.notices.emit,
            clock=clock,
        )
        self.overload = Overload(settings, progress=self.progress, emit=self.notices.emit, clock=clock)
        catalogue = Catalogue(
            settings,
            feed=items,
            learner=self.learner,
            lists=lists,
            dead_letters=dead_letters,
            progress=self.progress,
            unreadable=self.unreadable[settings.items_topic],
            emit=self.notices.emit,
        )
        self.departures = Departures(self.notices.emit, monotonic)
        self.writer = ListWriter(
            settings,
            learner=self.learner,
            progress=self.progress,
            catalogue=catalogue,
            lists=lists,
            departures=self.departures,
            emit=self.notices.emit,
            clock=clock,
            monotonic=monotonic,
        )
        self.changes = Changes(settings, self.learner)
        self.supervisor = Supervisor(
            settings,
            learner=self.learner,
            totals=self.progress,
            versions=self.versions,
            changes=self.changes,
            emit=self.notices.emit,
            read_checkpoint=partial(_read_for_rollback, checkpoints),
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
        self.read_from: dict[str, str] = {}  # cluster, topic, group: what the offsets belong to
        self.last_saved: Saved | None = None
        self.unsaved_since: float | None = None  # seconds since 1970: since then no checkpoint could be written
        self._unsaved_at = 0.0  # the same, by the monotonic clock
        self._saved_at = monotonic()
        self._heard_at = monotonic()  # when messages came last, or it was not known whether any wait
        self._saved_progress = self.progress.to_state()
        self._aside = ThreadPoolExecutor(1, "checkpoint") if aside is None else aside
        self._writing: _Writing | None = None
        self._announced: list[Click] | None = None  # to the learner, as the micro-batch that comes next

    def restore(self) -> int | None:
        """Takes back the latest checkpoint -> its number, None where there is none.

        Raises CheckpointError; SourceError, where the dead letters' topic cannot be read: it may be tried again.
        """
        found = self.checkpoints.load()
        if found is None:
            self.dead_letters.load_state({}, {})
            return None
        number, arrays, state = found
        self._check_shape(number, state["shape"])
        self.progress.load_state(state["progress"])
        self.dead_letters.load_state(state["dead_letters"], self.progress.next_offsets)  # first: the broker may be away
        self.intake.seen.load_state(arrays.pop("seen"))
        for topic, unreadable in state.get("unreadable", {}).items():
            if topic in self.unreadable:
                self.unreadable[topic].load_state(unreadable)
        self.learner.load_state(arrays, state["learner"])
        self.versions.load_state(state["versions"], self.checkpoints.numbers())
        self.notices.load_state(state["notices"])
        self.overload.load_state(state["overload"])
        self.supervisor.load_state(below(arrays, "supervisor"), state["supervisor"])
        self.writer.load_state(state["lists"])
        self.forgetting.load_state(state["forgetting"])
        self.read_from = state.get("read_from", {})
        self._saved_progress = self.progress.to_state()
        self.last_saved = Saved(number, self.checkpoints.size_bytes(number), None)
        offsets = ", ".join(
            f"{p.topic}:{p.partition} from {at}" for p, at in sorted(self.progress.next_offsets.items())
        )
        log.info("checkpoint %d restored: %d clicks learned; goes on at %s", number, self.progress.learned, offsets)
        return number

    def leave_stream(self) -> None:
        """Between `restore` and `start`: the clicks to come are of another stream. What was learned stays.

        Raises SourceError; it may be tried again.
        """
        self.dead_letters.load_state({}, {})  # first: the broker may be away, and this is tried again
        self.progress.next_offsets.clear()

    def start(self) -> None:
        """Join the stream; partitions begin where the checkpoint says, new ones at their earliest record. That goes for
        those of another worker of the group too: who takes them over learns all that is kept of them.
        """
        self.writer.start()
        self.source.start(on_assigned=self._assigned, on_revoked=self._revoked, on_gone=self._gone)

    def turn(self) -> int:
        """One turn -> messages taken. The numbers are the order of effects; it is what the promise rests on.

        Raises:
            InconsistentStateError: our own code failed on a micro-batch. Another loop has to go on from the checkpoint,
                with the same quarantine.
            InternalError: it fails on one event after the other.
            SourceError: the broker, or the log, does not do what it must.
        """
        if self._held_up():
            return 0
        # 1. Poll a bounded batch. While fine-tuning or lists wait, do not wait for clicks.
        self._reached("poll")
        busy = (self.supervisor.busy and self.unsaved_since is None) or self.writer.waiting
        records = self.source.poll(
            max_records=self.settings.poll_records_max, timeout_s=0.0 if busy else self.settings.poll_timeout_s
        )
        self.overload.saw(records)
        positions = self.source.positions()
        self.writer.owns({p.partition for p in positions if p.topic == self.settings.clicks_topic})
        # 2. Tell clicks from what cannot be read, and leave out what was learned before.
        self._reached("parse")
        arrived = list(self.intake.readable(records))
        per_user_max = self.settings.history_max // 2
        batches = [*micro_batches(arrived, self.settings.micro_batch_max, per_user_max, self._quarantine.alone), None]
        for batch, after in pairwise(batches):
            assert batch is not None
            self._take_in(batch, after)
            self._reached("items")
            self.writer.apply_item_updates()  # here too: a full turn may take a second
        if not arrived:
            self._reached("items")
            self.writer.apply_item_updates()
        self._listen(records)
        if records:  # not while idle: a checkpoint follows clicks, and what it does not hold must not change
            self.learner.states.rebuild()
        self._reached("offsets")
        self.progress.passed(self.source.positions())
        self._reached("refresh")
        self.writer.refresh()
        # 6. What is decided of the shadow, and a slice of fine-tuning; whether another version serves now. While no
        # checkpoint can be written all that waits: a version is saved before lists name it.
        self._reached("decide")
        published = self.unsaved_since is None and self.supervisor.step(late=self.overload.late)
        if published and self.versions.came_back:
            self.writer.renew_all()  # what the version that was given up has written must not stand
        # 7. Weights and offsets become the checkpoint, and then the commit. Another thread completes it, but for what
        # must stand before the loop goes on: a new version; all without somebody who was forgotten, so that checkpoints
        # that know them may go.
        if self._writing is not None and self._writing.saved.done():
            self._try(self._written)
        interval_s = self.settings.checkpoint_interval_s
        if published or self.forgetting.unsaved or not interval_s:
            self._try(self.checkpoint)
        elif self._writing is None and self.monotonic() - self._saved_at >= interval_s:
            self._try(self._begin_checkpoint)
        if self._writing is None:
            self.forgetting.drop_checkpoints()
        self.overload.look(self.source)
        return len(records)

    def _take_in(self, batch: Sequence[Arrived] | ToForget, after: Sequence[Arrived] | ToForget | None = None) -> None:
        """One micro-batch, or that somebody is to be forgotten; and what comes after it in this turn."""
        try:
            if isinstance(batch, ToForget):
                self.forgetting.forget(batch)
            else:
                self._learn(batch, after)
        except _NO_BUGS:
            raise
        except Exception as error:
            records = [batch.record] if isinstance(batch, ToForget) else [one.record for one in batch]
            aside = self._quarantine.failed(records, error)
            then = "it goes to the dead letters" if aside else "they are tried again"
            first = "{} partition {} offset {}".format(*place(records[0]))
            raise InconsistentStateError(
                f"a bug of ours met {len(records)} click(s), the first of them at {first}; {then}, everything goes on "
                f"from the checkpoint: {last_line(error)}"
            ) from error

    def _learn(self, batch: Sequence[Arrived], after: Sequence[Arrived] | ToForget | None) -> None:
        clicks = self._announced if self._announced is not None else [one.click for one in batch]
        self._announced = None if after is None or isinstance(after, ToForget) else [one.click for one in after]
        following = None if self._announced is None else partial(UpcomingBatch, self._announced)
        # 3. Score the lists that stand, learn, rank anew.
        self._reached("learn")
        learned = self.learner.learn(clicks, train=not self.overload.shedding, following=following)
        self.progress.learned += len(batch)
        self.progress.untrained += 0 if learned.trained else int(learned.trainable.sum())
        # 4. The new lists, in one pipeline.
        self._reached("lists")
        self.writer.publish(batch, learned.rankings)
        # 5. The shadow learns the same; drift: an alarm begins a reaction, and asks for fine-tuning.
        self._reached("shadow")
        self.supervisor.on_batch(clicks, learned, [one.record.timestamp_ms / 1_000 for one in batch])
        self.departures.expired(learned.expired, len(self.learner.vocabulary), self.settings.item_idle_s_max)
        if self.learner.seen is not None:
            self.departures.seen_items(self.learner.seen)

    def _listen(self, records: Sequence[Record]) -> None:
        """Whether clicks are missing: only where all there is was read, and the broker answers."""
        lag = self.overload.lag
        if records or (lag is not None and lag.total) or self.source.trouble() or not self.source.positions():
            self._heard_at = self.monotonic()
        else:
            self.supervisor.silence(self.monotonic() - self._heard_at)

    def _held_up(self) -> bool:
        """While dead letters wait for their topic no clicks are taken: no checkpoint could follow."""
        if self.dead_letters.waits_for is None or self.dead_letters.flush(self.progress.next_offsets):
            return False
        self.writer.refresh()
        time.sleep(self.settings.poll_timeout_s)
        return True

    def checkpoint(self) -> bool:
        """Everything so far, as one version on disk, then the commit; only the commit where nothing was taken in since
        (an earlier one may have failed, or died with the worker). Raises CheckpointError.

        Returns whether that is done; not while dead letters wait for their topic: the offsets must not pass them.
        """
        try:
            self._written()
        except CheckpointError as error:  # the one that follows holds all that it should have held
            log.warning("%s; it is tried again at once", error)
        if not self._ready_to_save():
            return False
        if self._news:
            arrays, state, pinned = self._content()
            try:
                saved = self.checkpoints.save(arrays, state, pinned)
            except CheckpointError:
                self.versions.not_saved()
                raise
            self._note(saved, state["progress"], self.progress.next_offsets)
        self._commit(self.progress.next_offsets)
        return True

    def _begin_checkpoint(self) -> bool:
        """As `checkpoint`, but what takes longest is done by another thread, and the commit once that is done: by
        `_written`. Meanwhile the loop goes on: what it takes in is the next checkpoint's."""
        if not self._ready_to_save():
            return False
        if not self._news:
            self._commit(self.progress.next_offsets)
            return True
        arrays, state, pinned = self._content()
        try:
            complete = self.checkpoints.begin(arrays, state, pinned)
        except CheckpointError:
            self.versions.not_saved()
            raise
        self._writing = _Writing(self._aside.submit(complete), state["progress"], dict(self.progress.next_offsets))
        return False

    def _written(self) -> bool:
        """Waits for the checkpoint that is being completed, if one is, and commits what it holds -> whether one stands
        that did not before. Raises CheckpointError.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return False
        try:
            saved = writing.saved.result()
        except CheckpointError:
            self.versions.not_saved()
            raise
        self._note(saved, writing.progress, writing.next_offsets)
        self._commit(writing.next_offsets)
        return True

    @property
    def _news(self) -> bool:
        """Whether there is something that the latest checkpoint does not hold."""
        return self.progress.to_state() != self._saved_progress or self.versions.unsaved or self.forgetting.has_pending

    def _ready_to_save(self) -> bool:
        """Outputs first: whether all of them are where they belong, or owed in the checkpoint."""
        self._saved_at = self.monotonic()
        self.writer.settle()
        if not self._news:
            return True
        self._reached("dead_letters")
        if not self.dead_letters.flush(self.progress.next_offsets):
            return False
        self.forgetting.saving(self.checkpoints.next_number())
        return True

    def _note(self, saved: Saved, progress: dict[str, Any], next_offsets: Mapping[Partition, int]) -> None:
        """A checkpoint stands: `progress` and `next_offsets` are what it holds."""
        self.last_saved = saved
        self._saved_progress = progress
        self._quarantine.forget_before(next_offsets)

    def _commit(self, next_offsets: Mapping[Partition, int]) -> None:
        mine = self.source.positions()
        if offsets := {p: offset for p, offset in next_offsets.items() if p in mine}:
            self._reached("commit")
            self.source.commit(offsets)

    def _try(self, save: Callable[[], bool]) -> None:
        """Where the disk does not take a checkpoint, learning goes on, nothing is committed, and it is tried again
        later. `save`: says whether one stands."""
        try:
            stands = save()
        except CheckpointError as error:
            if self.unsaved_since is None:
                self.unsaved_since, self._unsaved_at = self.clock(), self.monotonic()
                text = f"{error}; learning goes on, and would begin again at the latest checkpoint"
                self.notices.emit("unsaved", text, {})
            else:
                log.warning("still: %s", error)
            return
        if stands and self.unsaved_since is not None:
            seconds, self.unsaved_since = self.monotonic() - self._unsaved_at, None
            self.notices.emit("saved_again", f"a checkpoint is written again, after {seconds:.0f} s", {})

    def _content(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any], set[int]]:
        """Of a checkpoint: arrays, state, and the numbers of those that have to stay."""
        arrays, learner = self.learner.to_state()
        shadow, supervisor = self.supervisor.to_state()
        arrays |= joined({"supervisor": shadow}) | {"seen": self.intake.seen.to_state()}
        pinned = self.versions.saving(self.checkpoints.next_number())
        state: dict[str, Any] = {
            "learner": learner,
            "progress": self.progress.to_state(),
            "versions": self.versions.to_state(),
            "notices": self.notices.to_state(),
            "unreadable": {topic: watch.to_state() for topic, watch in self.unreadable.items()},
            "overload": self.overload.to_state(),
            "supervisor": supervisor,
            "dead_letters": self.dead_letters.to_state(),
            "lists": self.writer.to_state(),
            "forgetting": self.forgetting.to_state(),
            "shape": self._shape(),
            "read_from": self.read_from,
        }
        return arrays, state, pinned

    def finish(self) -> None:
        """Graceful end: a last checkpoint, and the commit. Raises as `checkpoint` does."""
        if not self.checkpoint():
            log.warning("no last checkpoint, because dead letters wait; the clicks since the one before come again")

    def answer_forget(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As `Forgetting.answer`, of whole checkpoints: none comes or goes while they are searched."""
        self._try(self._written)
        return self.forgetting.answer(request)

    def close(self) -> None:
        """Waits for a checkpoint that is being completed: whoever comes next must not meet it half done."""
        self._aside.shutdown()

    def _shape(self) -> dict[str, Any]:
        shape = {name: getattr(self.settings, name) for name in SHAPED_BY}
        shape = {name: list(value) if isinstance(value, tuple) else value for name, value in shape.items()}
        return shape | {"features": [feature.name for feature in features(self.settings.popularity_half_lives)]}

    def _check_shape(self, number: int, saved: Mapping[str, Any]) -> None:
        """Whether the weights of a checkpoint are of this learner's shape. Raises CheckpointError."""
        here = self._shape()
        others = [f"NEXTCLICK_{name.upper()}={saved[name]}" for name in SHAPED_BY if saved[name] != here[name]]
        if others:
            made, way = f"was made with {', '.join(others)}", "set it back"
        else:
            made, way = "was written by another version", "go on with that"
        differing = _differing_features(saved["features"], here["features"])
        if others or differing:
            raise CheckpointError(
                f"checkpoint {number} in {self.checkpoints.folder} {made}{differing}: {way}, "
                "or set NEXTCLICK_DATA_DIR to another folder to start anew"
            )

    def _assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Where they begin."""
        starts = self.progress.starts(partitions)
        places = (f"{p.partition} from {starts[p]:,}" if p in starts else f"{p.partition} anew" for p in partitions)
        log.info("reads topic %s, partition %s", self.settings.clicks_topic, ", ".join(places))
        return starts

    def _revoked(self, partitions: Sequence[Partition]) -> None:
        """Another worker takes over: it must not be told less than was learned here."""
        if any(partition in self.progress.next_offsets for partition in partitions):
            self._try(self.checkpoint)

    def _gone(self, gone: OffsetOutOfRange) -> None:
        """The broker has not kept what comes next. Raises SourceError where that is not to be passed over."""
        if self.settings.offset_out_of_range == "stop":
            raise SourceError(
                f"{gone}; the worker stops, as NEXTCLICK_OFFSET_OUT_OF_RANGE says: set it to earliest to go on "
                f"from {gone.earliest}"
            )
        self.progress.lost += gone.lost
        figures = {"topic": gone.partition.topic, "partition": gone.partition.partition, "records": gone.lost}
        figures |= {"wanted": gone.wanted, "earliest": gone.earliest}
        self.notices.emit("lost", f"{gone}; going on from {gone.earliest}", figures)


def _read_for_rollback(checkpoints: Checkpoints, number: int) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]:
    """Raises VersionError where that checkpoint cannot be read."""
    try:
        return checkpoints.read(number)
    except CheckpointError as error:
        raise VersionError(str(error)) from error


def _differing_features(saved: Sequence[str], here: Sequence[str]) -> str:
    """Which of the ranker's features a checkpoint has and this version has not, and so on, as the end of a sentence;
    empty where they are the same in the same order."""
    if list(saved) == list(here):
        return ""
    gone, new = [name for name in saved if name not in here], [name for name in here if name not in saved]
    said = [f"with {', '.join(gone)}"] * bool(gone) + [f"without {', '.join(new)}"] * bool(new)
    if not said:
        moved = [name for name, other in zip(saved, here, strict=False) if name != other]
        said = [f"with {', '.join(moved)} in another order"]
    return f" ({' and '.join(said)} among the ranker's features)"
