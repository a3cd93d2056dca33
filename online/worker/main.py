"""The worker: builds the loop from the settings, runs it until it is asked to stop, and reports its status."""

import fcntl
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Protocol, TypeVar

import torch
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from online.config.cron import cron_trigger
from online.config.settings import Settings
from online.learner.facts.warm import warm_if_cold
from online.lifecycle.scheduler import SteadyScheduler
from online.lifecycle.versions import VersionError
from online.worker.backoff import StoppedError, backoff, retry_until
from online.worker.checkpoint import CheckpointError, Checkpoints, DiskFullError, no_room
from online.worker.connections import (
    open_eraser,
    open_items,
    open_lists,
    open_notices,
    open_producer,
    open_reader,
    open_source,
    prepare_topics,
    stream_origin,
)
from online.worker.dead_letters import DeadLetterWriter
from online.worker.loop import Loop
from online.worker.poison_pills import InconsistentStateError, InternalError, Quarantine
from online.worker.requests import answer_request
from online.worker.rollback_request import rollback
from online.worker.start import check_start
from online.worker.status import StatusReport, waiting_status
from online.worker.steps import StepHook, no_hook
from stream.lists import Lists, ListsError, RedisUnavailableError
from stream.source import UnavailableError

T = TypeVar("T")


class Closable(Protocol):
    """Any of the worker's parts."""

    def close(self) -> None: ...


class Retry(Protocol):
    """`retry_until` with all but the attempt given."""

    def __call__(self, attempt: Callable[[], T], /) -> T: ...


STATUS_TTL_S = 30  # a worker that has been silent for so long is not believed to be there
REPORT_PAUSES = 5.0  # times as long as it takes to report, before it is done again
DEAD_LETTER_S_MAX = 5.0  # for a broker to take them; longer, and clicks wait until it does

Part = TypeVar("Part", bound=Closable)

log = logging.getLogger(__name__)


def run_worker(
    settings: Settings,
    stop: threading.Event,
    *,
    from_beginning: bool = False,
    ready: threading.Event | None = None,
    reached: StepHook = no_hook,
) -> None:
    """Learns from the clicks topic until `stop` is set, then writes a last checkpoint.

    Without `redis_url` it serves the embedded Redis on its port. `ready` is set once clicks are being read. `reached`
    is called with each step's name (online/worker/steps.py). Brokers and topics that are not there yet are waited for;
    without Redis it begins all the same; so is a disk that is full. `from_beginning`: as `check_start` of
    online/worker/start.py.

    Raises:
        StartError: the data folder does not fit the stream; one line for operators.
        SourceError, ListsError, CheckpointError: a part refuses, and waiting would not help; one line for operators.
        InternalError: our own code fails on one event after the other; likewise.
    """
    torch.set_num_threads(settings.threads)
    quarantine = Quarantine()
    with suppress(StoppedError), ExitStack() as parts:
        # Only in the log: the folder is not ours yet.
        on_disk = partial(retry_until, settings=settings, stop=stop, unavailable=(DiskFullError,))
        on_disk(lambda: parts.enter_context(only_worker(settings)))
        on_disk(partial(Checkpoints, settings.checkpoints_dir, settings.checkpoints_kept))
        warm_if_cold(log.info)
        lists = _lists(settings, parts)
        errors = UnavailableError, DiskFullError
        report = partial(_report_waiting, lists)
        retry: Retry = partial(retry_until, settings=settings, stop=stop, unavailable=errors, report=report)
        retry(partial(prepare_topics, settings))
        stream = retry(partial(stream_origin, settings))
        fits = partial(check_start, stream=stream, from_beginning=from_beginning)
        while not _lives(
            settings, stop, retry, lists=lists, quarantine=quarantine, fits=fits, ready=ready, reached=reached
        ):
            gc.unfreeze()
            gc.collect()  # what was half learned goes before all is loaded again


def _lives(
    settings: Settings,
    stop: threading.Event,
    retry: Retry,
    *,
    lists: Lists,
    quarantine: Quarantine,
    fits: Callable[[Loop, int | None], None],
    ready: threading.Event | None,
    reached: StepHook,
) -> bool:
    """From the latest checkpoint to the end -> whether that was the one asked for, and not a bug of ours.

    Raises StoppedError: it was asked for while something was not there yet.
    """
    with ExitStack() as parts:

        def opened(open_part: Callable[[], Part]) -> Part:
            return parts.enter_context(closing(retry(open_part)))

        producer = opened(partial(open_producer, settings, acknowledge_s_max=DEAD_LETTER_S_MAX))
        source = opened(partial(open_source, settings, [settings.clicks_topic], settings.consumer_group))
        reader = opened(partial(open_reader, settings, settings.dead_letters_topic))
        eraser = open_eraser(settings)
        box = DeadLetterWriter(producer, reader, settings.dead_letters_topic, eraser, backoff(settings))
        items = opened(partial(open_items, settings))
        notices = parts.enter_context(closing(open_notices(settings)))
        loop = Loop(
            settings,
            source=source,
            items=items,
            dead_letters=box,
            lists=lists,
            checkpoints=Checkpoints(settings.checkpoints_dir, settings.checkpoints_kept, reached=reached),
            notices=notices,
            quarantine=quarantine,
            reached=reached,
        )
        parts.enter_context(closing(loop))
        number = retry(loop.restore)
        retry(partial(fits, loop, number))
        gc.freeze()  # what is there now stays: to look through all of it, again and again, held clicks up for 130 ms
        device = loop.learner.device
        log.info("learns on %s, with %d thread%s", device, settings.threads, "s" * (settings.threads > 1))
        loop.start()
        parts.enter_context(scheduled(loop))
        report = StatusReport(loop)
        if ready is not None:
            ready.set()
        try:
            _run(loop, report, stop)
        except InconsistentStateError as error:
            log.error("%s", error, exc_info=error.__cause__)
            return False
        except InternalError:
            _report(loop, report, "stopped")
            raise
    return True


def _run(loop: Loop, report: StatusReport, stop: threading.Event) -> None:
    report_at = 0.0
    while not stop.is_set():
        loop.turn()
        if (began := time.monotonic()) >= report_at:
            loop.writer.check()
            if loop.writer.link.answers:
                asked = {"rollback": rollback(partial(roll_back, loop)), "forget": loop.answer_forget}
                answer_request(loop.writer.lists, asked)
            _report(loop, report, "running")
            # With a Redis or a broker that takes its time this must not be all that the worker does.
            took_s = time.monotonic() - began
            report_at = began + max(loop.settings.status_interval_s, REPORT_PAUSES * took_s)
    log.info("stopping: a last checkpoint is written")
    loop.finish()
    _report(loop, report, "stopped")
    log.info("stopped after %d clicks", loop.progress.learned)


def roll_back(loop: Loop, to: int) -> int:
    """A turn in which version `to` serves again, as a new one -> its number. Raises VersionError."""
    before = loop.versions.live.number
    loop.supervisor.ask_rollback(to, "asked for")
    loop.turn()
    for version in loop.versions.all():
        if version.number > before and version.parent == to:
            return version.number
    raise VersionError(f"version {to} does not serve again: `nextclick status` and the worker's log say why")


def _report_waiting(lists: Lists, line: str | None) -> None:
    if line is not None:
        with suppress(ListsError):
            lists.write_status(waiting_status(line), STATUS_TTL_S)


def _report(loop: Loop, report: StatusReport, state: str) -> None:
    if not loop.writer.link.answers:
        return
    try:
        loop.writer.lists.write_status(report.describe(state), STATUS_TTL_S)
    except ListsError as error:
        log.debug("the status is not written: %s", error)


def _lists(settings: Settings, parts: ExitStack) -> Lists:
    if settings.redis_url is None:
        from stream.embedded_redis import EmbeddedRedis  # noqa: PLC0415 - an extra of its own

        redis = parts.enter_context(EmbeddedRedis(settings.embedded_redis_port))
        log.info("embedded Redis at %s", redis.url)
        return Lists(redis.client, ttl_s=settings.list_ttl_s)
    try:
        return open_lists(settings)
    except RedisUnavailableError:
        return open_lists(settings, there=False)  # the writer of lists says so, and how long


@contextmanager
def only_worker(settings: Settings) -> Iterator[None]:
    """Holds the data folder: two workers would overwrite each other's checkpoints. Raises CheckpointError."""
    path = settings.data_dir / "worker.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        line = f"cannot write to {settings.data_dir} ({error.strerror})"
        if no_room(error):
            raise DiskFullError(f"{line}: free space, or set NEXTCLICK_DATA_DIR to another folder") from error
        raise CheckpointError(f"{line}: set NEXTCLICK_DATA_DIR to a folder of yours") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another worker uses {settings.data_dir}: stop it, or set NEXTCLICK_DATA_DIR to another folder"
            ) from error
        yield


@contextmanager
def scheduled(loop: Loop) -> Iterator[None]:
    """APScheduler asks by the clock; the loop does what is asked, because weights and lists have one writer."""
    settings = loop.settings
    scheduler = SteadyScheduler(timezone="UTC")

    def at(trigger: BaseTrigger, ask: Callable[[], None], name: str) -> None:
        # Late is better than never, and several that were missed are one: asking twice is asking once.
        scheduler.add_job(ask, trigger, id=name, max_instances=1, coalesce=True, misfire_grace_time=None)

    def every(seconds: float, jitter_s: float = 0.0) -> IntervalTrigger:
        return IntervalTrigger(seconds=seconds, timezone="UTC", jitter=jitter_s or None)

    jitter_s = settings.finetune_jitter_s
    if settings.finetune_interval_s:
        ask = partial(loop.supervisor.ask_finetuning, "by the clock")
        at(every(settings.finetune_interval_s, jitter_s), ask, "finetune-interval")
    if settings.finetune_cron is not None:
        ask = partial(loop.supervisor.ask_finetuning, "by the timetable")
        at(cron_trigger(settings.finetune_cron, jitter_s), ask, "finetune-cron")
    if settings.refresh_ages_s:
        at(every(settings.refresh_interval_s), loop.writer.aging.ask, "refresh")
    scheduler.start()
    try:
        yield
    finally:
        scheduler.shutdown(wait=False)
