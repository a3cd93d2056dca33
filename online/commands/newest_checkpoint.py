"""The newest checkpoint of a data folder, opened only to be read, also while workers write to the folder."""

from online.config.data_folder import newest_checkpoints
from online.config.settings import Settings
from online.learner.learner import Learner
from online.worker.checkpoint import CheckpointError, Checkpoints
from online.worker.loop_state import check_shape, shape_of


def load_newest(settings: Settings) -> tuple[int, Learner]:
    """Returns the number of the newest checkpoint, of many workers the newest of all, and a learner as it was then.

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
        learner = Learner(settings)
        learner.load_state(arrays, state["learner"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {number} in {newest} cannot be used: {error}") from error
    return number, learner
