"""Captures the state of a loop for a checkpoint, and restores it. The keys of the state are named only here."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.facts.features import features
from online.learner.learner import Learner
from online.lifecycle.supervisor import Supervisor
from online.lifecycle.unreadable import UnreadableWatch
from online.lifecycle.versions import VersionError, Versions
from online.worker.checkpoint import CheckpointError, Checkpoints
from online.worker.dead_letters import DeadLetterWriter
from online.worker.forget import Forgetting
from online.worker.group import Group
from online.worker.intake import Intake
from online.worker.list_writer import ListWriter
from online.worker.notices import Notices
from online.worker.overload import Overload
from online.worker.progress import Progress

# Weights saved with others cannot be loaded.
SHAPED_BY = (
    *("layers", "width", "heads", "rounds", "buckets"),
    *("ranker_hidden", "ranker_networks", "popularity_half_lives"),
)


class LoopParts(Protocol):
    """The parts of a loop whose state is in a checkpoint."""

    settings: Settings
    checkpoints: Checkpoints
    dead_letters: DeadLetterWriter
    forgetting: Forgetting
    group: Group | None
    intake: Intake
    learner: Learner
    notices: Notices
    overload: Overload
    progress: Progress
    read_from: dict[str, str]
    supervisor: Supervisor
    unreadable: dict[str, UnreadableWatch]
    versions: Versions
    writer: ListWriter


def capture(loop: LoopParts) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Returns arrays and state of a checkpoint. Nothing of the loop changes."""
    arrays, learner = loop.learner.to_state()
    shadow, supervisor = loop.supervisor.to_state()
    arrays |= joined({"supervisor": shadow}) | {"seen": loop.intake.seen.to_state()}
    state: dict[str, Any] = {
        "learner": learner,
        "progress": loop.progress.to_state(),
        "versions": loop.versions.to_state(),
        "notices": loop.notices.to_state(),
        "unreadable": {topic: watch.to_state() for topic, watch in loop.unreadable.items()},
        "overload": loop.overload.to_state(),
        "supervisor": supervisor,
        "dead_letters": loop.dead_letters.to_state(),
        "lists": loop.writer.to_state(),
        "forgetting": loop.forgetting.to_state(),
        "shape": shape_of(loop.settings),
        "read_from": loop.read_from,
    }
    if loop.group is not None:
        shared, state["group"] = loop.group.to_state()
        arrays |= joined({"group": shared})
    return arrays, state


def restore(loop: LoopParts, number: int, arrays: dict[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
    """Restores what `capture` returned. Raises as `Loop.restore` does."""
    check_shape(f"checkpoint {number} in {loop.checkpoints.folder}", state["shape"], shape_of(loop.settings))
    loop.progress.load_state(state["progress"])
    if loop.settings.private and "privacy" not in state["learner"] and loop.progress.learned:
        raise CheckpointError(
            f"checkpoint {number} in {loop.checkpoints.folder} was learned without NEXTCLICK_PRIVACY_EPSILON, which "
            "cannot be made up for: unset it, or set NEXTCLICK_DATA_DIR to another folder to start anew"
        )
    # First: the broker may be unavailable.
    loop.dead_letters.load_state(state["dead_letters"], loop.progress.next_offsets)
    loop.intake.seen.load_state(arrays.pop("seen"))
    for topic, unreadable in state.get("unreadable", {}).items():
        if topic in loop.unreadable:
            loop.unreadable[topic].load_state(unreadable)
    loop.learner.load_state(arrays, state["learner"])
    loop.versions.load_state(state["versions"], loop.checkpoints.numbers())
    loop.notices.load_state(state["notices"])
    loop.overload.load_state(state["overload"])
    loop.supervisor.load_state(below(arrays, "supervisor"), state["supervisor"])
    loop.writer.load_state(state["lists"])
    loop.forgetting.load_state(state["forgetting"])
    loop.read_from = state.get("read_from", {})
    if loop.group is not None:
        loop.supervisor.follow()
        if "group" in state:
            loop.group.load_state(below(arrays, "group"), state["group"])
        else:
            loop.group.load_alone()


def read_for_rollback(checkpoints: Checkpoints, number: int) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]:
    """Reads a checkpoint for a rollback. Raises VersionError if it cannot be read."""
    try:
        return checkpoints.read(number)
    except CheckpointError as error:
        raise VersionError(str(error)) from error


def shape_of(settings: Settings) -> dict[str, Any]:
    """Returns the settings on which the shape of the weights depends."""
    shape = {name: getattr(settings, name) for name in SHAPED_BY}
    shape = {name: list(value) if isinstance(value, tuple) else value for name, value in shape.items()}
    return shape | {"features": [feature.name for feature in features(settings.popularity_half_lives)]}


def check_shape(checkpoint: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Checks that the weights of a checkpoint have this learner's shape. Raises CheckpointError."""
    others = [f"NEXTCLICK_{name.upper()}={saved[name]}" for name in SHAPED_BY if saved[name] != here[name]]
    if others:
        made, way = f"was made with {', '.join(others)}", "set it back"
    else:
        made, way = "was written by another version", "go on with that"
    differing = _differing_features(saved["features"], here["features"])
    if others or differing:
        raise CheckpointError(
            f"{checkpoint} {made}{differing}: {way}, or set NEXTCLICK_DATA_DIR to another folder to start anew"
        )


def _differing_features(saved: Sequence[str], here: Sequence[str]) -> str:
    """Returns how the features of a checkpoint differ from this version's, as the end of a sentence; empty if they are
    the same in the same order."""
    if list(saved) == list(here):
        return ""
    gone, new = [name for name in saved if name not in here], [name for name in here if name not in saved]
    parts = [f"with {', '.join(gone)}"] * bool(gone) + [f"without {', '.join(new)}"] * bool(new)
    if not parts:
        moved = [name for name, other in zip(saved, here, strict=False) if name != other]
        parts = [f"with {', '.join(moved)} in another order"]
    return f" ({' and '.join(parts)} among the ranker's features)"
