"""Commands ask the running worker, by way of Redis: so it works from any machine that reaches it.

A request is one record; the worker takes it away between two turns, does it, and leaves an answer.
"""

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from online.lifecycle.versions import VersionError
from online.worker.checkpoint import CheckpointError
from stream.lists import Lists, ListsError

_POLL_S = 0.1

log = logging.getLogger(__name__)


class RequestError(Exception):
    """The worker did not do it; one line that says why, and what to do."""


def ask_worker(lists: Lists, request: Mapping[str, Any], timeout_s: float, see: str) -> dict[str, Any]:
    """Asks, and waits for the answer. `see`: the command that shows what came of it, where the worker does not say.

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


def answer_request(lists: Lists, answers: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]) -> None:
    """Takes a request away, where there is one, and does it. `answers`: what does a request that has such a field; it
    may raise VersionError or CheckpointError. While Redis is unavailable no request comes."""
    try:
        request = lists.take_request()
        if request is None:
            return
        answer: Mapping[str, Any]
        try:
            (do,) = (answers[name] for name in answers if name in request)
            answer = do(request)
        except (VersionError, CheckpointError) as error:
            answer = {"error": str(error)}
        except (KeyError, TypeError, ValueError):
            answer = {"error": f"this worker does not know what is asked: {request}"}
        lists.answer(str(request.get("id")), answer)
    except ListsError as error:
        log.debug("requests cannot be read or answered: %s", error)
