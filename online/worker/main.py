"""The worker: builds the loop from the settings, runs it until it is asked to stop, and reports its status."""

import gc
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from online.config.cron import cron_trigger
from online.config.settings import Settings
from online.learner.content.encoders import load_encoder
from online.learner.delta import warm as warm_delta
from online.learner.facts.warm import warm_if_cold
from online.lifecycle.finetune_outside import remove_left_jobs
from online.lifecycle.scheduler import SteadyScheduler
from online.lifecycle.versions import VersionError
from online.logs import name_log_lines
from online.worker.asking import Asking
from online.worker.backoff import StoppedError, backoff, retry_until
from online.worker.checkpoint import Checkpoints, DiskFullError
from online.worker.connections import (
    open_eraser,
    open_feedback,
    open_impressions,
    open_items,
    open_lists,
    open_notices,
    open_producer,
    open_reader,
    open_source,
    open_tail,
    open_users,
    prepare_topics,
    stream_origin,
)
from online.worker.dead_letters import DeadLetterWriter
from online.worker.folders import identity_of, worker_folder
from online.worker.group import Membership
from online.worker.loop import Loop
from online.worker.monitor import Monitor, starting_status
from online.worker.overview import read_overview
from online.worker.poison_pills import InconsistentStateError, InternalError, Quarantine
from online.worker.requests import answer_request
from online.worker.rollback_request import rollback
from online.worker.shared_checkpoints import fetch
from online.worker.start import check_start
from online.worker.status import StatusReport, waiting_status
from online.worker.steps import StepHook, no_hook
from online.worker.weights_topic import WeightsTopic
from stream.lists import Lists, ListsError, RedisUnavailableError
from stream.questions import QuestionQueue
from stream.source import Producer, UnavailableError

T = TypeVar("T")


class Closable(Protocol):
    """A part of the worker that has to be closed."""

    def close(self) -> None: ...


class Retry(Protocol):
    """`retry_until` with all arguments but the attempt."""

    def __call__(self, attempt: Callable[[], T], /) -> T: ...


STATUS_TTL_S = 30  # after so long without a status the worker counts as stopped
REPORT_PAUSES = 5.0  # least pause between two reports, in times the duration of a report
ROLLBACK_S_MAX = 20.0  # until the topic of weights has brought a version back; below the time to live of a status
DEAD_LETTER_S_MAX = 5.0  # longest wait for a broker to store dead letters; after it clicks wait

Part = TypeVar("Part", bound=Closable)

log = logging.getLogger(__name__)


def run_worker(
    settings: Settings,
    stop: threading.Event,
    *,
    from_beginning: bool = False,
    ready: threading.Event | None = None,
    reached: StepHook = no_hook,
    monitor: Monitor | None = None,
) -> None:
    """Learns from the clicks topic until `stop` is set, then writes a last checkpoint.

    It waits for brokers and topics that are not available yet, and for space on a full disk. It starts without Redis
    too. Without `redis_url` it serves the embedded Redis on its port.

    Args:
        settings: all settings.
        stop: ends the worker.
        from_beginning: as for `check_start` (online/worker/start.py).
        ready: set once clicks are being read.
        reached: called with the name of each step (online/worker/steps.py).
        monitor: where the status is published for other threads; None: nowhere but in Redis.

    Raises:
        StartError: the data folder does not belong to the stream; one line for operators.
        SourceError, ListsError, CheckpointError: a part refuses, and waiting would not help; one line for operators.
        InternalError: our own code fails on too many events in a row; one line for operators.
        SettingsError: the encoder of texts cannot be loaded.
    """
    if settings.content and settings.text_encoder is not None:
        load_encoder(settings.text_encoder)  # before anything is waited for
    torch.set_num_threads(settings.threads)
    quarantine = Quarantine()
    monitor = Monitor() if monitor is None else monitor
    if settings.workers == "many":
        name_log_lines(worker=worker_name(settings))
    with suppress(StoppedError), ExitStack() as parts:
        # Waiting is reported only in the log: until the folder is locked, another worker may own the status.
        on_disk = partial(retry_until, settings=settings, stop=stop, unavailable=(DiskFullError,))
        settings = on_disk(lambda: parts.enter_context(worker_folder(settings)))
        remove_left_jobs(settings.data_dir)
        on_disk(partial(Checkpoints, settings.checkpoints_dir, settings.checkpoints_kept))
        warm_if_cold(log.info)
        warm_delta()
        lists = _lists(settings, parts)
        errors = UnavailableError, DiskFullError
        report = partial(_report_before_start, lists, monitor)
        report(None)
        retry: Retry = partial(retry_until, settings=settings, stop=stop, unavailable=errors, report=report)
        retry(partial(prepare_topics, settings))
        stream = retry(partial(stream_origin, settings))
        fits = partial(check_start, stream=stream, from_beginning=from_beginning)
        while not _lives(
            settings, stop, retry, lists=lists, quarantine=quarantine, fits=fits, ready=ready, reached=reached,
            monitor=monitor,
        ):  # fmt: skip
            report(None)
            gc.unfreeze()
            gc.collect()  # frees the inconsistent state before the checkpoint is loaded


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
    monitor: Monitor,
) -> bool:
    """Runs a loop from the latest checkpoint until the worker is stopped.

    Returns:
        True once the worker was stopped; False after an internal error: another loop has to resume from the checkpoint.

    Raises:
        StoppedError: the worker was stopped while it waited for a part.
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
        feedback = opened(partial(open_feedback, settings))
        users = None if settings.users_topic is None else opened(partial(open_users, settings, settings.users_topic))
        impressions = opened(partial(open_impressions, settings)) if settings.learn_impressions else None
        notices = parts.enter_context(closing(open_notices(settings)))
        membership = None if settings.workers == "one" else _membership(settings, opened, producer)
        loop = Loop(
            settings,
            source=source,
            items=items,
            feedback=feedback,
            users=users,
            impressions=impressions,
            dead_letters=box,
            lists=lists,
            checkpoints=Checkpoints(
                settings.checkpoints_dir,
                settings.checkpoints_kept,
                level=settings.checkpoint_compression,
                increments_max=settings.checkpoint_increments_max,
                reached=reached,
            ),
            notices=notices,
            quarantine=quarantine,
            reached=reached,
            membership=membership,
            monitor=monitor,
        )
        parts.enter_context(closing(loop))
        number = retry(loop.restore)
        retry(partial(fits, loop, number))
        gc.freeze()  # these objects live on: collections that look through all of them delayed clicks by 130 ms
        device = loop.learner.device
        log.info("learns on %s, with %d thread%s", device, settings.threads, "s" * (settings.threads > 1))
        if loop.group is not None:
            retry(loop.group.start)
        loop.start()
        loop.asking = parts.enter_context(closing(Asking(settings, loop.learner, _questions(lists))))
        loop.asking.start()
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
            _report(loop, report, "failed")
            raise
        finally:
            monitor.rests()
    return True


def _questions(lists: Lists) -> QuestionQueue:
    return QuestionQueue(lists.client, lists.worker)


def _membership(settings: Settings, opened: Callable[[Callable[[], Any]], Any], producer: Producer) -> Membership:
    """Returns what a worker of a group has of its own; an empty folder gets another worker's latest checkpoint."""
    checkpoints = Checkpoints(settings.checkpoints_dir, settings.checkpoints_kept)
    if not checkpoints.numbers():
        copied = fetch(settings.shared_checkpoints, settings.data_dir.parent, settings.checkpoints_dir)
        if copied is not None:
            log.info("begins with another worker's checkpoint, from %s", copied)
    follow = partial(open_tail, settings, settings.weights_topic)
    return Membership(
        name=worker_name(settings),
        identity=identity_of(settings.data_dir),
        epoch=uuid.uuid4().hex,
        topic=WeightsTopic(follow, producer, settings.weights_topic, backoff(settings)),
        clicks=opened(partial(open_reader, settings, settings.clicks_topic)),
    )


def _run(loop: Loop, report: StatusReport, stop: threading.Event) -> None:
    report_at = 0.0
    while not stop.is_set():
        loop.turn()
        if (began := time.monotonic()) >= report_at:
            loop.writer.check()
            if loop.writer.link.answers:
                answers = {"rollback": rollback(partial(roll_back, loop)), "forget": loop.answer_forget}
                answer_request(loop.writer.lists, answers)
            _report(loop, report, "running")
            # With a slow Redis or broker, reports must not take most of the worker's time.
            took_s = time.monotonic() - began
            report_at = began + max(loop.settings.status_interval_s, REPORT_PAUSES * took_s)
    loop.monitor.rests()
    log.info("stopping: writing a last checkpoint")
    loop.finish()
    _report(loop, report, "stopped")
    with suppress(ListsError):
        loop.writer.lists.sign_off()
    log.info("stopped after %d clicks", loop.progress.learned)


def roll_back(loop: Loop, to: int) -> int:
    """Makes the weights of version `to` serve again, as a new version, in one turn of the loop.

    In a group the leader sends them to all workers, and they serve once the topic has brought them back to itself,
    some turns later.

    Returns:
        The number of the new version.

    Raises:
        VersionError: the version cannot be restored; in a group also if another worker leads.
    """
    if loop.group is not None and not loop.group.leads:
        raise VersionError(_who_leads(loop.writer.lists, loop.group.name))
    before, refused = loop.versions.live.number, loop.notices.counts["rollback_refused"]
    loop.supervisor.ask_rollback(to, "asked for")
    deadline = time.monotonic() + ROLLBACK_S_MAX
    while True:
        loop.turn()
        for version in loop.versions.all():
            if version.number > before and version.parent == to:
                return version.number
        waits = loop.group is not None and loop.notices.counts["rollback_refused"] == refused
        if not waits or time.monotonic() > deadline:
            break
    raise VersionError(f"version {to} was not restored: see `nextclick status` and the worker's log for the reason")


def _who_leads(lists: Lists, name: str) -> str:
    leader = None
    with suppress(ListsError):
        leader = read_overview(lists).leader
    who = "no other one does as yet" if leader in {None, name} else f"{leader} does"
    return f"worker {name} does not lead its group, and only the leader goes back to a version: {who}"


def _report_before_start(lists: Lists, monitor: Monitor, line: str | None) -> None:
    """Reports that the worker starts, or what it waits for."""
    status = starting_status() if line is None else waiting_status(line)
    monitor.publish(status)
    with suppress(ListsError):
        lists.write_status(status, STATUS_TTL_S)


def _report(loop: Loop, report: StatusReport, state: str) -> None:
    status = report.describe(state)
    loop.monitor.publish(status)
    if not loop.writer.link.answers:
        return
    try:
        loop.writer.lists.write_status(status, STATUS_TTL_S)
        loop.writer.write_latest()
        report.history.note(status)
    except ListsError as error:
        log.debug("the status cannot be written: %s", error)


def worker_name(settings: Settings) -> str:
    """Returns the name of a worker of a group: that of the settings, or of this machine and the worker's folder."""
    return settings.worker_name or f"{socket.gethostname()}-{settings.data_dir.name}"


def _lists(settings: Settings, parts: ExitStack) -> Lists:
    if settings.workers == "many":
        if settings.redis_url is None:
            raise ListsError("NEXTCLICK_WORKERS=many needs a Redis that all workers reach: set NEXTCLICK_REDIS_URL")
        named = partial(open_lists, settings, worker=worker_name(settings), fenced=True)
        try:
            return named()
        except RedisUnavailableError:
            return named(there=False)
    if settings.redis_url is None:
        from stream.embedded_redis import EmbeddedRedis  # noqa: PLC0415 - an extra of its own

        redis = parts.enter_context(EmbeddedRedis(settings.embedded_redis_port))
        log.info("embedded Redis at %s", redis.url)
        return Lists(redis.client, ttl_s=settings.list_ttl_s)
    try:
        return open_lists(settings)
    except RedisUnavailableError:
        return open_lists(settings, there=False)  # the list writer logs the outage and its end


@contextmanager
def scheduled(loop: Loop) -> Iterator[None]:
    """Schedules fine-tuning and refreshes. APScheduler only requests them; the loop, the one writer, does them."""
    settings = loop.settings
    scheduler = SteadyScheduler(timezone="UTC")

    def at(trigger: BaseTrigger, ask: Callable[[], None], name: str) -> None:
        # A missed run is made up for, several missed runs once: requests do not add up.
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
