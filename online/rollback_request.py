"""`nextclick versions --rollback` asks the running worker, by way of Redis: so it works from any machine.

A request is one record; the worker takes it away between two turns, does it, and leaves an answer.
"""

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from online.checkpoint import CheckpointError
from online.versions import VersionError
from stream.lists import Lists, ListsError

_POLL_S = 0.1

log = logging.getLogger(__name__)


class RollbackError(Exception):
    """The worker did not roll back; one line that says why, and what to do."""


def ask_rollback(lists: Lists, to: int, timeout_s: float) -> dict[str, Any]:
    """Asks for a rollback and waits for it -> `version`, the new one, and `parent`.

    Raises RollbackError: it cannot be done, or nobody did it within `timeout_s` seconds; ListsError.
    """
    request_id = uuid.uuid4().hex
    # It must outlive the wait, so that who gives up knows whether the worker has taken it.
    if not lists.ask({"id": request_id, "rollback": to}, ttl_s=int(timeout_s) + 5):
        raise RollbackError("the worker has another request to answer first: try again in a moment")
    deadline = time.monotonic() + timeout_s
    while (answer := lists.answer_to(request_id)) is None:
        if time.monotonic() > deadline:
            if lists.withdraw_request():
                raise RollbackError(
                    f"no worker took the request within {timeout_s:g} s, and it is withdrawn: "
                    "see `nextclick status` whether one runs"
                )
            raise RollbackError(
                f"the worker took the request but has not answered within {timeout_s:g} s: see `nextclick versions`"
            )
        time.sleep(_POLL_S)
    if "error" in answer:
        raise RollbackError(str(answer["error"]))
    return answer


def answer_rollback(lists: Lists, roll_back: Callable[[int], int]) -> None:
    """Takes a request away, where there is one, and does it. `roll_back` gives the new version's number, or raises
    VersionError or CheckpointError. While Redis is away nobody can ask."""
    try:
        request = lists.take_request()
        if request is None:
            return
        answer: dict[str, Any]
        try:
            to = int(request["rollback"])
            answer = {"version": roll_back(to), "parent": to}
        except (VersionError, CheckpointError) as error:
            answer = {"error": str(error)}
        except (KeyError, TypeError, ValueError):
            answer = {"error": f"this worker does not know what is asked: {request}"}
        lists.answer(str(request.get("id")), answer)
    except ListsError as error:
        log.debug("requests cannot be read or answered: %s", error)
