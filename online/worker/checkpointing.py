"""When a checkpoint is written, by which thread, and the commit after it: outputs, then state, then offsets."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from numpy.typing import NDArray

from online.config.settings import Settings
from online.lifecycle.emit import Emit
from online.lifecycle.versions import Versions
from online.worker.checkpoint import CheckpointError, Checkpoints, Saved
from online.worker.dead_letters import DeadLetterWriter
from online.worker.forget import Forgetting
from online.worker.list_writer import ListWriter
from online.worker.poison_pills import Quarantine
from online.worker.progress import Progress
from online.worker.steps import StepHook, no_hook
from stream.source import Partition, Source

log = logging.getLogger(__name__)

#: Arrays, state, and the numbers of the checkpoints that have to stay. The argument: the number this one will have.
Capture = Callable[[int], tuple[dict[str, NDArray[Any]], dict[str, Any], set[int]]]


class _Writing(NamedTuple):
    """A checkpoint that is being completed in another thread, and where the stream stood when it was begun."""

    saved: Future[Saved]
    progress: dict[str, Any]
    next_offsets: dict[Partition, int]


class Checkpointer:
    """Writes a loop's checkpoints, and commits what they hold. For the loop's thread alone."""

    def __init__(
        self,
        settings: Settings,
        *,
        checkpoints: Checkpoints,
        capture: Capture,
        source: Source,
        progress: Progress,
        versions: Versions,
        writer: ListWriter,
        dead_letters: DeadLetterWriter,
        forgetting: Forgetting,
        quarantine: Quarantine,
        emit: Emit,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        reached: StepHook = no_hook,
        executor: Executor | None = None,
    ) -> None:
        """`executor`: what completes checkpoints while the loop goes on; None: a thread."""
        self.checkpoints = checkpoints
        self.last_saved: Saved | None = None
        self.failing_since: float | None = None  # seconds since 1970: since then no checkpoint could be written
        self._interval_s = settings.checkpoint_interval_s
        self._capture = capture
        self.source, self._progress, self._versions = source, progress, versions
        self._writer, self._dead_letters, self._forgetting = writer, dead_letters, forgetting
        self._quarantine, self._emit = quarantine, emit
        self._clock, self._monotonic, self._reached = clock, monotonic, reached
        self._failing_at = 0.0  # as `failing_since`, by the monotonic clock
        self._tried_at = monotonic()
        self._saved_progress = progress.to_state()
        self._executor = ThreadPoolExecutor(1, "checkpoint") if executor is None else executor
        self._writing: _Writing | None = None

    def restored(self, saved: Saved) -> None:
        """The loop goes on from this checkpoint."""
        self.last_saved = saved
        self._saved_progress = self._progress.to_state()

    def step(self, *, at_once: bool) -> None:
        """Once a turn: what is due. `at_once`: a checkpoint has to stand before the loop goes on. Where the disk does
        not take one, learning goes on, nothing is committed, and it is tried again later."""
        if self._writing is not None and self._writing.saved.done():
            self._try(self._complete)
        if at_once or self._forgetting.unsaved or not self._interval_s:
            self._try(self.save)
        elif self._writing is None and self._monotonic() - self._tried_at >= self._interval_s:
            self._try(self._begin)
        if self._writing is None:
            self._forgetting.drop_checkpoints()

    def try_save(self) -> None:
        """As `save`, but a disk that does not take it is only reported."""
        self._try(self.save)

    def save(self) -> bool:
        """Everything so far, as one version on disk, then the commit; only the commit where nothing was learned since
        (an earlier one may have failed, or died with the worker). Raises CheckpointError.

        Returns whether that is done; not while dead letters wait for their topic: the offsets must not pass them.
        """
        try:
            self._complete()
        except CheckpointError as error:  # the one that follows holds all that it should have held
            log.warning("%s; it is tried again at once", error)
        if not self._ready_to_save():
            return False
        if self._has_news:
            arrays, state, pinned = self._capture(self.checkpoints.next_number())
            try:
                saved = self.checkpoints.save(arrays, state, pinned)
            except CheckpointError:
                self._versions.not_saved()
                raise
            self._note(saved, state["progress"], self._progress.next_offsets)
        self._commit(self._progress.next_offsets)
        return True

    def wait(self) -> None:
        """Until no checkpoint is being completed."""
        self._try(self._complete)

    def close(self) -> None:
        """Waits for a checkpoint that is being completed: the next loop must not meet it half done."""
        self._executor.shutdown()

    def _begin(self) -> bool:
        """As `save`, but what takes longest is done by another thread, and the commit once that is done: by
        `_complete`. Meanwhile the loop goes on: what it learns then is the next checkpoint's."""
        if not self._ready_to_save():
            return False
        if not self._has_news:
            self._commit(self._progress.next_offsets)
            return True
        arrays, state, pinned = self._capture(self.checkpoints.next_number())
        try:
            complete = self.checkpoints.begin(arrays, state, pinned)
        except CheckpointError:
            self._versions.not_saved()
            raise
        self._writing = _Writing(self._executor.submit(complete), state["progress"], dict(self._progress.next_offsets))
        return False

    def _complete(self) -> bool:
        """Waits for the checkpoint that is being completed, if one is, and commits what it holds -> whether one stands
        that did not before. Raises CheckpointError."""
        writing, self._writing = self._writing, None
        if writing is None:
            return False
        try:
            saved = writing.saved.result()
        except CheckpointError:
            self._versions.not_saved()
            raise
        self._note(saved, writing.progress, writing.next_offsets)
        self._commit(writing.next_offsets)
        return True

    @property
    def _has_news(self) -> bool:
        """Whether there is something that the latest checkpoint does not hold."""
        changed = self._progress.to_state() != self._saved_progress
        return changed or self._versions.unsaved or self._forgetting.has_pending

    def _ready_to_save(self) -> bool:
        """Outputs first: whether all of them are where they belong, or pending in the checkpoint."""
        self._tried_at = self._monotonic()
        self._writer.settle()
        if not self._has_news:
            return True
        self._reached("dead_letters")
        if not self._dead_letters.flush(self._progress.next_offsets):
            return False
        self._forgetting.saving(self.checkpoints.next_number())
        return True

    def _note(self, saved: Saved, progress: dict[str, Any], next_offsets: Mapping[Partition, int]) -> None:
        """A checkpoint stands: `progress` and `next_offsets` are what it holds."""
        self.last_saved = saved
        self._saved_progress = progress
        self._quarantine.forget_before(next_offsets)

    def _commit(self, next_offsets: Mapping[Partition, int]) -> None:
        assigned = self.source.positions()
        if offsets := {p: offset for p, offset in next_offsets.items() if p in assigned}:
            self._reached("commit")
            self.source.commit(offsets)

    def _try(self, save: Callable[[], bool]) -> None:
        """`save`: returns whether a checkpoint stands."""
        try:
            stands = save()
        except CheckpointError as error:
            if self.failing_since is None:
                self.failing_since, self._failing_at = self._clock(), self._monotonic()
                text = f"{error}; learning goes on, and would begin again at the latest checkpoint"
                self._emit("checkpoint_failed", text, {})
            else:
                log.warning("still: %s", error)
            return
        if stands and self.failing_since is not None:
            seconds, self.failing_since = self._monotonic() - self._failing_at, None
            self._emit("checkpoint_recovered", f"a checkpoint is written again, after {seconds:.0f} s", {})
