"""The command `nextclick explain`: why items stand in a user's list, from the newest checkpoint of the data folder."""

from typing import Any

import numpy as np

from online.commands.newest_checkpoint import load_newest
from online.config.settings import Settings
from online.learner.asking import Answerer, Question
from online.learner.explaining import Explainer


class ExplainError(Exception):
    """What is asked for cannot be explained; the message is one line."""


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
    answerer, question = Answerer(learner, learner.queries), Question(user_id=user, k=k)
    answer = answerer.answer([question])[0]
    asked = answerer.ask([question])
    if item is not None:
        row, rows = learner.vocabulary.row_of(item), asked.scored.gathered.rows.astype(np.int64)
        if not row:
            raise ExplainError(f"nothing is known of item {item}: it has had no click, or none for long")
        if row not in rows:
            asked = answerer.ask([question], [np.append(rows, row)[-1_000:]])
    explained = Explainer(learner).explain(asked, 0, answer.items if item is None else [item])
    known = {"user_id": user, "known": answer.known, "checkpoint": number, "version": learner.version}
    return known | {"explanations": explained}
