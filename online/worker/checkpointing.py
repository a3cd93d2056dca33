"""When a checkpoint is written, by which thread, and the commit after it: outputs, then state, then offsets."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from online.config.settings import Settings
from online.lifecycle.emit import Emit
from online.lifecycle.versions import Versions
from online.worker.checkpoint import CheckpointError, Checkpoints, Content, Saved
from online.worker.dead_letters import DeadLetterWriter
from online.worker.forget import Forgetting
from online.worker.list_writer import ListWriter
from online.worker.monitor import Timings
from online.worker.poison_pills import Quarantine
from online.worker.progress import Progress
from online.worker.steps import StepHook, no_hook
from stream.source import Partition, Source

log = logging.getLogger(__name__)

COPY_FROM_BYTES = 1 << 20  # of the latest checkpoint: smaller ones are written sooner than a process is copied


class _Writing(NamedTuple):
    """A checkpoint that is being completed in another thread, and the progress that it holds."""

    saved: Future[Saved]
    progress: dict[str, Any]
    next_offsets: dict[Partition, int]


class Checkpointer:
    """Writes a loop's checkpoints, and commits their offsets. For the loop's thread only."""

    def __init__(
        self,
        settings: Settings,
        *,
        checkpoints: Checkpoints,
        settle: Callable[[], object],
        capture: Callable[[], Content],
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
        timings: Timings | None = None,
        copies: bool = False,
    ) -> None:
        """Creates a checkpointer for the parts of a loop.

        Args:
            settings: all settings.
            settle: computes what is part of the state and is not there yet, before `capture`.
            capture: collects the loop's state, and changes nothing.
            executor: completes checkpoints while the loop goes on; None: a thread.
            copies: whether a copy of this process may write large ones.
            timings: observes how long writing takes; None: nothing does.
            The rest: the loop's parts, and its clocks.
        """
        self.checkpoints = checkpoints
        self.last_saved: Saved | None = None
        self.failing_since: float | None = None  # seconds since 1970, from when on no checkpoint could be written
        self._interval_s = settings.checkpoint_interval_s
        self._copies = copies
        self._settle, self._capture = settle, capture
        self.source, self._progress, self._versions = source, progress, versions
        self._writer, self._dead_letters, self._forgetting = writer, dead_letters, forgetting
        self._quarantine, self._emit = quarantine, emit
        self._clock, self._monotonic, self._reached = clock, monotonic, reached
        self._timings = timings
        self._failing_at = 0.0  # as `failing_since`, by the monotonic clock
        self._tried_at = monotonic()
        self._saved_progress = progress.to_state()
        self._executor = ThreadPoolExecutor(1, "checkpoint") if executor is None else executor
        self._writing: _Writing | None = None
        self.holds_back: Callable[[Partition], bool] = lambda _: False  # partitions that must not be committed yet

    def restored(self, saved: Saved) -> None:
        """Notes the checkpoint from which the loop resumes."""
        self.last_saved = saved
        self._saved_progress = self._progress.to_state()

    def step(self, *, at_once: bool) -> None:
        """Begins or completes a checkpoint if one is due; called once a turn.

        If the disk refuses one, learning goes on, nothing is committed, and the next attempt follows later.

        Args:
            at_once: whether a checkpoint has to be complete before the loop goes on.
        """
        if self._writing is not None and self._writing.saved.done():
            self._try(self._complete)
        if at_once or self._forgetting.unsaved or not self._interval_s:
            self._try(self.save)
        elif self._writing is None and self._monotonic() - self._tried_at >= self._interval_s:
            self._try(self._begin)
        if self._writing is None:
            self._forgetting.drop_checkpoints()

    def try_save(self) -> None:
        """Does `save`, but only reports a disk that refuses it."""
        self._try(self.save)

    def save(self) -> bool:
        """Writes a checkpoint of everything so far, then commits its offsets.

        If nothing was learned since the latest checkpoint it only commits, since an earlier commit may have failed.

        Returns:
            Whether that was done; it is not while dead letters cannot be stored, because offsets must not pass them.

        Raises:
            CheckpointError: the disk refuses it.
        """
        try:
            self._complete()
        except CheckpointError as error:  # the next one holds all that this one should have held
            log.warning("%s; trying again at once", error)
        if not self._ready_to_save():
            return False
        if self._has_news:
            with self._versions_noted() as pinned:
                arrays, state = self._capture()
                saved = self.checkpoints.save(arrays, state, pinned, full=self._forgetting.needs_full)
            self._note(saved, state["progress"], self._progress.next_offsets)
        self._commit(self._progress.next_offsets)
        return True

    def wait(self) -> None:
        """Waits until no checkpoint is being completed."""
        self._try(self._complete)

    def close(self) -> None:
        """Waits for a checkpoint that is being completed, because the next loop must not find it incomplete."""
        self._executor.shutdown()

    def _begin(self) -> bool:
        """Begins a checkpoint like `save`, but lets another thread complete it; `_complete` commits later.

        Meanwhile the loop goes on: clicks that it learns then belong to the next checkpoint.
        """
        if not self._ready_to_save():
            return False
        if not self._has_news:
            self._commit(self._progress.next_offsets)
            return True
        large = self.last_saved is not None and self.last_saved.size_bytes >= COPY_FROM_BYTES
        with self._versions_noted() as pinned:
            full = self._forgetting.needs_full
            if self._copies and large:
                complete = self.checkpoints.begin_in_copy(self._capture, pinned, full=full)
            else:
                complete = self.checkpoints.begin(*self._capture(), pinned, full=full)
        progress = self._progress.to_state(), dict(self._progress.next_offsets)
        self._writing = _Writing(self._executor.submit(complete), *progress)
        return False

    @contextmanager
    def _versions_noted(self) -> Iterator[set[int]]:
        """Prepares the state for the next checkpoint; yields the numbers of those to pin."""
        self._settle()
        pinned = self._versions.saving(self.checkpoints.next_number())
        try:
            yield pinned
        except CheckpointError:
            self._versions.not_saved()
            raise

    def _complete(self) -> bool:
        """Waits for the checkpoint that is being completed, if there is one, and commits its offsets.

        Returns:
            Whether there is a new checkpoint.

        Raises:
            CheckpointError: the disk refuses it.
        """
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
        """Whether the state differs from the latest checkpoint."""
        changed = self._progress.to_state() != self._saved_progress
        return changed or self._versions.unsaved or self._forgetting.has_pending

    def _ready_to_save(self) -> bool:
        """Writes all outputs first. Returns whether they are stored, or pending as part of the checkpoint."""
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
        """Notes a complete checkpoint with its progress and next offsets."""
        self.last_saved = saved
        if self._timings is not None and saved.seconds is not None:
            self._timings.checkpoint_write.observe(saved.seconds)
        self._saved_progress = progress
        self._quarantine.forget_before(next_offsets)

    def _commit(self, next_offsets: Mapping[Partition, int]) -> None:
        assigned = self.source.positions()
        if offsets := {p: at for p, at in next_offsets.items() if p in assigned and not self.holds_back(p)}:
            self._reached("commit")
            self.source.commit(offsets)

    def _try(self, save: Callable[[], bool]) -> None:
        """Calls `save`, which returns whether a checkpoint is complete; reports failures and their end."""
        try:
            stands = save()
        except CheckpointError as error:
            if self.failing_since is None:
                self.failing_since, self._failing_at = self._clock(), self._monotonic()
                text = f"{error}; learning goes on, but a restart would resume from the latest checkpoint"
                self._emit("checkpoint_failed", text, {})
            else:
                log.warning("checkpoints still cannot be written: %s", error)
            return
        if stands and self.failing_since is not None:
            seconds, self.failing_since = self._monotonic() - self._failing_at, None
            self._emit("checkpoint_recovered", f"checkpoints can be written again, after {seconds:.0f} s", {})
