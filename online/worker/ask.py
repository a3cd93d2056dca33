"""A command's side of a request to the running worker (online/worker/requests.py has the worker's)."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from stream.lists import Lists

_POLL_S = 0.1


class RequestError(Exception):
    """The worker did not do the request; one line that says why, and what to do."""


def ask_worker(lists: Lists, request: Mapping[str, Any], timeout_s: float, see: str) -> dict[str, Any]:
    """Sends a request, and waits for the answer. `see`: the command that shows its effect if no answer arrives.

    Raises RequestError: it cannot be done, or no worker did it within `timeout_s` seconds; ListsError.
    """
    request_id = uuid.uuid4().hex
    # It must outlive the wait, so that who gives up knows whether the worker has taken it.
    if not lists.ask({"id": request_id, **request}, ttl_s=int(timeout_s) + 5):
        raise RequestError("the worker has another request to answer first: try again in a moment")
    deadline = time.monotonic() + timeout_s
    while (answer := lists.answer_to(request_id)) is None:
        if time.monotonic() > deadline:
            if lists.withdraw_request():
                raise RequestError(
                    f"no worker took the request within {timeout_s:g} s, and it is withdrawn: "
                    "see `nextclick status` whether one runs"
                )
            raise RequestError(f"the worker took the request but has not answered within {timeout_s:g} s: see `{see}`")
        time.sleep(_POLL_S)
    if "error" in answer:
        raise RequestError(str(answer["error"]))
    return answer
