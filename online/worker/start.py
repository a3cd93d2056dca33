"""The worker's start: what it says first, and whether what it finds fits together.

The checkpoint decides where reading goes on. So a folder without one, or with one of another stream, is no small thing:
everything would be learned anew, or the wrong clicks passed over. Then it stops, and says the ways on.
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

BEFORE = Path("data")  # the default folder of before, in whichever folder one stood
_STATE = ("checkpoints", "log.db", "worker.lock")
_NAMED = 4  # partitions in a line
BEHIND_REPORTED = 100  # records that the checkpoint may be behind: a broker's own markers have offsets too
AHEAD_REPORTED = 10_000  # records that it may be ahead: a commit that failed is made good by the next one
_REDIS_URL = re.compile(
    r"(rediss?://)(?:[^@/?#]*@)?((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d+)?(?:/\d*)?)(?:\?.*)?"
)

log = logging.getLogger(__name__)


class StartError(Exception):
    """What is in the data folder does not fit the stream; one line that says the ways on."""


def announce(settings: Settings) -> None:
    """The first line of the log: what the settings say. It needs nothing that takes long to load."""
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
    """Where Redis is, without user and password. Of a URL that is not understood nothing is shown."""
    if settings.redis_url is None:
        return f"the embedded Redis at 127.0.0.1:{settings.embedded_redis_port}"
    url = _REDIS_URL.fullmatch(settings.redis_url.get_secret_value())
    return f"Redis at {url[1]}{url[2]}" if url else "the Redis of NEXTCLICK_REDIS_URL"


def old_folder(settings: Settings) -> Path | None:
    """A folder `data` here that holds state, where no folder was named: it may be the one that is meant."""
    here = BEFORE.absolute()
    if "data_dir" in settings.model_fields_set or here == settings.data_dir:
        return None
    return here if any(os.path.lexists(here / name) for name in _STATE) else None


def check_folder(settings: Settings) -> None:
    """Says it where the state of before stands in the folder `data`, and is not used."""
    if (old := old_folder(settings)) is not None:
        log.warning(
            "state is looked for in %s; %s holds some too, which is not used: --data-dir data (or "
            "NEXTCLICK_DATA_DIR=%s) goes on with that",
            settings.data_dir,
            old,
            old,
        )


def check_start(loop: "Loop", number: int | None, stream: Origin, *, from_beginning: bool) -> None:
    """Whether the checkpoint that was restored (`number`; None: there is none) belongs to this stream and group.

    `from_beginning`: learn everything anew, or, with a checkpoint of another stream, keep what was learned and read
    this stream from its earliest record.

    Raises StartError.
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
        log.warning("checkpoint %d %s: what was learned stays, this one is read from its beginning", number, others)
        loop.leave_stream()
    else:
        if from_beginning:
            log.warning(
                "--from-beginning: checkpoint %d is there, and is gone on from; to learn everything anew, name another "
                "folder with --data-dir",
                number,
            )
        _compare(loop, number, committed)
    loop.read_from = {
        "cluster": stream.cluster,
        "topic": settings.clicks_topic,
        "group": settings.consumer_group,
    }


def _check_new(settings: Settings, committed: Mapping[Partition, int], *, from_beginning: bool) -> None:
    if from_beginning or not committed:
        progress = f", although group {settings.consumer_group} has read {_places(committed)}" if committed else ""
        log.info("no checkpoint in %s: begins with the earliest click%s", settings.checkpoints_dir, progress)
        return
    old = old_folder(settings)
    hint = f" (there is state in {old}: --data-dir data)" if old is not None else ""
    raise StartError(
        f"there is no checkpoint in {settings.data_dir}, but group {settings.consumer_group} has read "
        f"{_places(committed)}, so its state stands elsewhere: name its folder with --data-dir{hint}, or learn "
        "everything anew from the earliest click with --from-beginning"
    )


def _of_another_stream(loop: "Loop", stream: Origin) -> str | None:
    """What the checkpoint has read instead, as the end of a sentence; None: this one."""
    topic, was = loop.settings.clicks_topic, loop.read_from
    besides = {loop.settings.items_topic}
    read = {partition.topic for partition in loop.progress.next_offsets} - besides
    if read and topic not in read:
        return f"has read topic {', '.join(sorted(read))}, not {topic}"
    cluster = was.get("cluster", "")
    if cluster and stream.cluster and cluster != stream.cluster:
        return f"has read {_cluster(cluster)}, not {_cluster(stream.cluster)}"
    return None


def _cluster(cluster: str) -> str:
    return f"the {EMBEDDED}" if cluster == EMBEDDED else f"Kafka cluster {cluster}"


def _compare(loop: "Loop", number: int, committed: Mapping[Partition, int]) -> None:
    """Says it where checkpoint and commits are far from each other: the checkpoint decides."""
    at, settings = loop.progress.next_offsets, loop.settings
    group = loop.read_from.get("group", settings.consumer_group)
    if group != settings.consumer_group:
        log.warning("checkpoint %d was written for group %s, not %s", number, group, settings.consumer_group)
        return
    behind = {p: offset for p, offset in committed.items() if p in at and offset - at[p] > BEHIND_REPORTED}
    ahead = {p: offset for p, offset in committed.items() if p in at and at[p] - offset > AHEAD_REPORTED}
    if behind:
        log.warning(
            "checkpoint %d is at %s, group %s at %s already: this folder is an older copy, or another worker has read "
            "on; what came since is learned again",
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
