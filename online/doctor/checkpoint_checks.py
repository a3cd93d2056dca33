"""Checks whether the newest checkpoint can be gone on from: by these settings, on this topic, at these offsets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from online.config.data_folder import newest_checkpoints
from online.config.settings import Settings
from online.doctor.verdict import Verdict, size
from stream.inspection import COMMITTED, TOPICS, BrokerView
from stream.source import Partition

AREA = "folder"
_BEGIN_ANEW = "learn everything again with `nextclick worker --from-beginning`"


@dataclass(frozen=True)
class CheckpointView:
    """The newest checkpoint of a data folder. `problem`: why it cannot be used, or `unknown`: why it was not read."""

    folder: Path | None = None  # of all checkpoints beside it; None: there is none
    number: int = 0
    size_bytes: int = 0
    next_offsets: Mapping[Partition, int] = field(default_factory=dict)
    read_from: Mapping[str, str] = field(default_factory=dict)  # cluster, topic and group
    problem: str = ""
    unknown: str = ""


def read_checkpoint(settings: Settings) -> CheckpointView:
    """Reads what the newest checkpoint says of itself, checksums included."""
    try:
        folder = newest_checkpoints(settings.data_dir)
    except OSError as error:
        return CheckpointView(unknown=f"{settings.data_dir} cannot be read ({error.strerror})")
    if folder is None:
        return CheckpointView()
    number = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    try:
        return _read(settings, folder, number)
    except ImportError:
        text = f"checkpoint {number} in {folder} was not read, because the extra worker of nextclick is not installed"
        return CheckpointView(folder, number, unknown=text)


def _read(settings: Settings, folder: Path, number: int) -> CheckpointView:
    from online.worker.checkpoint import CheckpointError, Checkpoints  # noqa: PLC0415 - they need the extra
    from online.worker.loop_state import check_shape, shape_of  # noqa: PLC0415
    from online.worker.progress import Progress  # noqa: PLC0415

    checkpoints = Checkpoints.existing(folder)
    try:
        size_bytes = checkpoints.size_bytes(number)
        with checkpoints.opened(number, lambda _: False) as (state, _):
            content: dict[str, Any] = state
        progress = Progress()
        progress.load_state(content["progress"])
        read_from = content.get("read_from", {})
        view = CheckpointView(folder, number, size_bytes, dict(progress.next_offsets), read_from)
        check_shape(f"checkpoint {number} in {folder}", content["shape"], shape_of(settings))
    except CheckpointError as error:
        return CheckpointView(folder, number, problem=str(error))
    except (KeyError, ValueError, OSError) as error:
        return CheckpointView(folder, number, problem=f"checkpoint {number} in {folder} cannot be used: {error}")
    return view


def check_checkpoint(settings: Settings, newest: CheckpointView, view: BrokerView | None) -> list[Verdict]:
    """Checks the newest checkpoint. `view`: of the broker; None: it does not answer."""
    if newest.unknown:
        return [Verdict(AREA, "checkpoint", "not checked", newest.unknown, "Run doctor where the worker runs.")]
    if newest.problem:
        way_out = f"Follow what it says, or move {newest.folder} away and {_BEGIN_ANEW}."
        return [Verdict(AREA, "checkpoint", "wrong", newest.problem, way_out)]
    if newest.folder is None:
        return [_without(settings, view)]
    about = f"checkpoint {newest.number} in {newest.folder}, {size(newest.size_bytes)}"
    if view is None or TOPICS in view.errors:
        text = f"{about}; its offsets could not be compared with the topic"
        return [Verdict(AREA, "checkpoint", "not checked", text, "Let doctor reach the broker.")]
    found = [*_other_stream(settings, newest, view)] or [*_not_retained(settings, newest, view)]
    return found or [Verdict(AREA, "checkpoint", "ok", about)]


def _without(settings: Settings, view: BrokerView | None) -> Verdict:
    """There is no checkpoint: is that the first start, or another folder?"""
    text = f"there is no checkpoint in {settings.data_dir}"
    if view is None or COMMITTED in view.errors:
        why = "" if view is None else f" ({view.errors[COMMITTED]})"
        text += f", and what group {settings.consumer_group} has read is not known{why}"
        return Verdict(AREA, "checkpoint", "not checked", text, "Let doctor reach the broker.")
    read = {at: offset for at, offset in view.committed.items() if at.topic == settings.clicks_topic and offset > 0}
    if not read:
        return Verdict(AREA, "checkpoint", "ok", f"{text} yet: a worker begins with the earliest click")
    places = ", ".join(f"{at.topic}:{at.partition} up to {offset:,}" for at, offset in sorted(read.items())[:3])
    text += f", but group {settings.consumer_group} has read {places}: the state is in another folder"
    if settings.workers == "many":
        way_out = "Nothing, if a new worker is to join its group; else set NEXTCLICK_DATA_DIR to the folder it was in."
        return Verdict(AREA, "checkpoint", "warning", text, way_out)
    way_out = f"Set NEXTCLICK_DATA_DIR (or --data-dir) to the folder it was in, or {_BEGIN_ANEW}."
    return Verdict(AREA, "checkpoint", "wrong", text, way_out)


def _other_stream(settings: Settings, newest: CheckpointView, view: BrokerView) -> Iterator[Verdict]:
    topic, was = settings.clicks_topic, newest.read_from
    where = f"checkpoint {newest.number} in {newest.folder}"
    way_out = f"Set NEXTCLICK_DATA_DIR to the folder of this stream, or keep what was learned and {_BEGIN_ANEW}."
    read = {at.topic for at in newest.next_offsets} - {*settings.topics_beside}
    if read and topic not in read:
        text = f"{where} has read topic {', '.join(sorted(read))}, not {topic}"
        yield Verdict(AREA, "checkpoint", "wrong", text, way_out)
    elif was.get("cluster") and view.cluster and was["cluster"] != view.cluster:
        text = f"{where} has read another cluster ({was['cluster']}, and this one is {view.cluster})"
        yield Verdict(AREA, "checkpoint", "wrong", text, way_out)
    elif was.get("group", settings.consumer_group) != settings.consumer_group:
        text = f"{where} was written for group {was['group']}, not {settings.consumer_group}"
        way_out = f"Set NEXTCLICK_CONSUMER_GROUP={was['group']}, unless the change is meant."
        yield Verdict(AREA, "checkpoint", "warning", text, way_out)


def _not_retained(settings: Settings, newest: CheckpointView, view: BrokerView) -> Iterator[Verdict]:
    topic = view.topics.get(settings.clicks_topic)
    if topic is None:
        return
    for partition, offset in sorted(newest.next_offsets.items()):
        extent = topic.extents.get(partition)
        if partition.topic != settings.clicks_topic or extent is None or extent.earliest <= offset <= extent.end:
            continue
        where = f"checkpoint {newest.number} goes on at offset {offset:,} of {partition.topic}:{partition.partition}"
        if offset < extent.earliest:
            text = f"{where}, and the topic begins at {extent.earliest:,}: {extent.earliest - offset:,} clicks are lost"
            way_out = "Start the worker, which goes on with what is left, and raise the topic's retention."
        else:
            text = f"{where}, and the topic ends at {extent.end:,}: it was made anew, or has lost records"
            way_out = "Start the worker, which goes on with the earliest record, if the topic was made anew on purpose."
        yield Verdict(AREA, "checkpoint's offsets", "wrong", text, way_out)
