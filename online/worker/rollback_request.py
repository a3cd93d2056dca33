"""The request of `nextclick versions --rollback` to the running worker (online/worker/requests.py)."""

from collections.abc import Callable, Mapping
from typing import Any

from online.worker.ask import RequestError, ask_worker
from stream.lists import Lists

__all__ = ["RollbackError", "ask_rollback", "rollback"]

RollbackError = RequestError


def ask_rollback(lists: Lists, to: int, timeout_s: float, worker: str | None = None) -> dict[str, Any]:
    """Requests a rollback, and waits for it. Returns `version`, the new one, and `parent`. `worker`: the name of the
    worker that does it; None: the only one.

    Raises RollbackError: it cannot be done, or no worker did it within `timeout_s` seconds; ListsError.
    """
    return ask_worker(lists, {"rollback": to}, timeout_s, "nextclick versions", worker)


def rollback(roll_back: Callable[[int], int]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Returns the function that does such a request. `roll_back`: returns the new version's number, or raises
    VersionError or CheckpointError."""

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        to = int(request["rollback"])
        return {"version": roll_back(to), "parent": to}

    return answer
