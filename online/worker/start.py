"""The worker's start: its first log lines, and the check that the data folder belongs to the stream.

The checkpoint decides where reading resumes. With a folder that has none, or one of another stream, everything would be
learned again, or the wrong clicks skipped. So the worker stops then, with a line that names the ways to go on.
"""

import logging
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from online.config.settings import Settings
from online.worker.connections import named_broker
from stream.origin import EMBEDDED, Origin
from stream.source import Partition

if TYPE_CHECKING:
    from online.worker.loop import Loop

BEFORE = Path("data")  # the default of earlier releases, relative to the current folder
_STATE = ("checkpoints", "log.db", "worker.lock")
_NAMED = 4  # partitions in a line
BEHIND_REPORTED = 100  # records that the checkpoint may be behind the commit: a broker's own markers have offsets too
AHEAD_REPORTED = 10_000  # records that it may be ahead of it: the next commit makes up for a failed one
_REDIS_URL = re.compile(
    r"(rediss?://)(?:[^@/?#]*@)?((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d+)?(?:/\d*)?)(?:\?.*)?"
)

log = logging.getLogger(__name__)


class StartError(Exception):
    """The data folder does not belong to the stream; one line that names the ways to go on."""


def announce(settings: Settings) -> None:
    """Logs the main settings as the first line. It loads no slow modules."""
    try:
        version = metadata.version("nextclick")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    topics = f"topics {settings.clicks_topic}, {settings.items_topic}, {settings.dead_letters_topic}"
    log.info(
        "nextclick %s: state in %s; clicks from %s (%s, %s; group %s); lists to %s; device %s",
        version,
        settings.data_dir,
        named_broker(settings).name,
        topics,
        settings.events_topic,
        settings.consumer_group,
        redis_place(settings),
        settings.device,
    )


def redis_place(settings: Settings) -> str:
    """Returns the address of Redis without user and password; nothing of a URL that cannot be parsed."""
    if settings.redis_url is None:
        return f"the embedded Redis at 127.0.0.1:{settings.embedded_redis_port}"
    url = _REDIS_URL.fullmatch(settings.redis_url.get_secret_value())
    return f"Redis at {url[1]}{url[2]}" if url else "the Redis of NEXTCLICK_REDIS_URL"


def old_folder(settings: Settings) -> Path | None:
    """Returns the default folder of earlier releases, if it holds state and no folder was named; else None."""
    here = BEFORE.absolute()
    if "data_dir" in settings.model_fields_set or here == settings.data_dir:
        return None
    return here if any(os.path.lexists(here / name) for name in _STATE) else None


def check_folder(settings: Settings) -> None:
    """Warns if the default folder of earlier releases holds state, which is not used."""
    if (old := old_folder(settings)) is not None:
        log.warning(
            "the data folder is %s; %s holds state too, which is not used: to use it, start with --data-dir data "
            "(or NEXTCLICK_DATA_DIR=%s)",
            settings.data_dir,
            old,
            old,
        )


def check_start(loop: "Loop", number: int | None, stream: Origin, *, from_beginning: bool) -> None:
    """Checks that the restored checkpoint belongs to this stream and group.

    Args:
        loop: after `restore`.
        number: of the checkpoint; None: there is none.
        stream: the stream that will be read.
        from_beginning: read this stream from its earliest record, with the weights of a checkpoint of another stream if
            there is one.

    Raises:
        StartError: the checkpoint is of another stream, or there is none although the group has committed offsets.
    """
    settings = loop.settings
    committed = {p: at for p, at in stream.committed.items() if p.topic == settings.clicks_topic and at > 0}
    if number is None:
        _check_new(settings, committed, from_beginning=from_beginning)
    elif (others := _of_another_stream(loop, stream)) is not None:
        if not from_beginning:
            raise StartError(
                f"checkpoint {number} in {settings.checkpoints_dir} {others}: name the folder of this one with "
                "--data-dir, or keep what was learned and read this one from its earliest record with --from-beginning"
            )
        log.warning("checkpoint %d %s: its weights are kept, this stream is read from its beginning", number, others)
        loop.leave_stream()
    else:
        if from_beginning:
            log.warning(
                "--from-beginning has no effect, because the worker resumes from checkpoint %d: to learn everything "
                "again, name another folder with --data-dir",
                number,
            )
        _compare(loop, number, committed)
    loop.read_from = {
        "cluster": stream.cluster,
        "topic": settings.clicks_topic,
        "group": settings.consumer_group,
    }


def _check_new(settings: Settings, committed: Mapping[Partition, int], *, from_beginning: bool) -> None:
    if from_beginning or not committed or settings.workers == "many":
        progress = f", although group {settings.consumer_group} has read {_places(committed)}" if committed else ""
        log.info("no checkpoint in %s: starting with the earliest click%s", settings.checkpoints_dir, progress)
        return
    old = old_folder(settings)
    hint = f" (there is state in {old}: --data-dir data)" if old is not None else ""
    raise StartError(
        f"there is no checkpoint in {settings.data_dir}, but group {settings.consumer_group} has read "
        f"{_places(committed)}, so its state is in another folder: name it with --data-dir{hint}, or learn "
        "everything again from the earliest click with --from-beginning"
    )


def _of_another_stream(loop: "Loop", stream: Origin) -> str | None:
    """Returns which other stream the checkpoint has read, as the end of a sentence; None if it is this one."""
    topic, was = loop.settings.clicks_topic, loop.read_from
    read = {partition.topic for partition in loop.progress.next_offsets} - {*loop.settings.topics_beside}
    if read and topic not in read:
        return f"has read topic {', '.join(sorted(read))}, not {topic}"
    cluster = was.get("cluster", "")
    if cluster and stream.cluster and cluster != stream.cluster:
        return f"has read {_cluster(cluster)}, not {_cluster(stream.cluster)}"
    return None


def _cluster(cluster: str) -> str:
    return f"the {EMBEDDED}" if cluster == EMBEDDED else f"Kafka cluster {cluster}"


def _compare(loop: "Loop", number: int, committed: Mapping[Partition, int]) -> None:
    """Warns if the checkpoint and the committed offsets are far apart; the checkpoint decides."""
    at, settings = loop.progress.next_offsets, loop.settings
    group = loop.read_from.get("group", settings.consumer_group)
    if group != settings.consumer_group:
        log.warning("checkpoint %d was written for group %s, not %s", number, group, settings.consumer_group)
        return
    behind = {p: offset for p, offset in committed.items() if p in at and offset - at[p] > BEHIND_REPORTED}
    ahead = {p: offset for p, offset in committed.items() if p in at and at[p] - offset > AHEAD_REPORTED}
    if behind and settings.workers == "one":  # in a group others go on committing while this one is away
        log.warning(
            "checkpoint %d is at %s, group %s at %s already: this folder is an older copy, or another worker has read "
            "further; clicks since the checkpoint are learned again",
            number, _places({p: at[p] for p in behind}), settings.consumer_group, _places(behind),
        )  # fmt: skip
    if ahead:
        log.warning(
            "checkpoint %d is at %s, group %s only at %s: the checkpoint decides; to read that again, name another "
            "folder with --data-dir",
            number, _places({p: at[p] for p in ahead}), settings.consumer_group, _places(ahead),
        )  # fmt: skip


def _places(offsets: Mapping[Partition, int]) -> str:
    """`clicks:0 up to 1,287, clicks:1 up to 4`, and how many more."""
    places = [f"{p.topic}:{p.partition} up to {offset:,}" for p, offset in sorted(offsets.items())]
    more = len(places) - _NAMED
    return ", ".join(places[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
