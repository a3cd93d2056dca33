"""The newest checkpoint of a data folder, opened only to be read, also while workers write to the folder."""

from collections.abc import Mapping
from typing import NamedTuple

from online.config.data_folder import newest_checkpoints
from online.config.settings import Settings
from online.learner.learner import Learner
from online.worker.checkpoint import CheckpointError, Checkpoints
from online.worker.loop_state import check_shape, shape_of
from online.worker.progress import Progress
from stream.source import Partition


class NewestCheckpoint(NamedTuple):
    """A checkpoint, and a learner as it was then."""

    number: int
    learner: Learner
    next_offsets: Mapping[Partition, int]  # the first of each partition that the learner has not seen


def load_newest(settings: Settings) -> NewestCheckpoint:
    """Returns the newest checkpoint, of many workers the newest of all.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    newest = newest_checkpoints(settings.data_dir)
    loaded = None if newest is None else Checkpoints.existing(newest).load()
    if newest is None or loaded is None:
        raise CheckpointError(
            f"there is no checkpoint in {settings.data_dir}: start `nextclick worker`, or name --data-dir"
        )
    number, arrays, state = loaded
    try:
        check_shape(f"checkpoint {number} in {newest}", state["shape"], shape_of(settings))
        arrays.pop("seen", None)  # ids of events
        learner, progress = Learner(settings), Progress()
        learner.load_state(arrays, state["learner"])
        if "progress" in state:
            progress.load_state(state["progress"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {number} in {newest} cannot be used: {error}") from error
    return NewestCheckpoint(number, learner, progress.next_offsets)
