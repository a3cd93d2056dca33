"""The command `nextclick explain`: why items stand in a user's list, as the running worker says, or from the newest
checkpoint of the data folder."""

from typing import Any

from online.commands.newest_checkpoint import load_newest
from online.config.settings import Settings
from online.learner.asking import Question
from online.learner.explaining import explained
from online.worker.ask import ask_question
from online.worker.connections import open_lists
from stream.lists import ListsError

ANSWER_S_MAX = 5.0  # for the running worker's answer


class ExplainError(Exception):
    """What is asked for cannot be explained; the message is one line."""


def explain_from_worker(settings: Settings, user: str, item: str | None, k: int) -> dict[str, Any] | None:
    """Asks the running worker to rank a user's list and to explain it. Arguments and result as below.

    Returns:
        The object, with `checkpoint` None; None where no worker answers.

    Raises:
        ExplainError: nothing is known of the item.
    """
    try:
        answer = ask_question(open_lists(settings), ANSWER_S_MAX, kind="explain", user_id=user, item_id=item, k=k)
    except ListsError:
        return None
    if answer is not None and answer.refused:
        raise ExplainError(str(answer.error))
    if answer is None or answer.error is not None:
        return None
    known = {"user_id": user, "known": answer.known, "checkpoint": None, "version": answer.version}
    return known | {"explanations": answer.explanations}


def explain_from_checkpoint(settings: Settings, user: str, item: str | None, k: int) -> dict[str, Any]:
    """Ranks a user's list from the newest checkpoint, and explains it. Nothing is written.

    Args:
        settings: whose data folder holds the checkpoint; of many workers, the newest of all.
        user: id of the user; of an unknown one it is a visitor's list.
        item: the only one to be explained, whether it is in the list or not; None: the first k.
        k: length of the list.

    Returns:
        An object for JSON: `user_id`, `known`, `checkpoint`, `version`, and `explanations` (`Explainer.explain`).

    Raises:
        ExplainError: nothing is known of the item.
        CheckpointError: there is no checkpoint, or it cannot be used.
    """
    number, learner, _ = load_newest(settings)
    try:
        answer = explained(learner.answerer, Question(user_id=user, k=k), item)
    except LookupError as error:
        raise ExplainError(str(error)) from None
    known = {"user_id": user, "known": answer.known, "checkpoint": number, "version": learner.version}
    return known | {"explanations": answer.explanations}
