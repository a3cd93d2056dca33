"""Requests of commands to the running worker, by way of Redis, so that they work from any machine that reaches it.

A request is one record (online/worker/ask.py writes it); the worker takes it between two turns, does it, and writes an
answer.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from online.lifecycle.versions import VersionError
from online.worker.checkpoint import CheckpointError
from stream.lists import Lists, ListsError

log = logging.getLogger(__name__)


def answer_request(lists: Lists, answers: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]) -> None:
    """Takes a request, if there is one, does it, and writes the answer. While Redis is unavailable nothing is done.

    Args:
        lists: the link to Redis.
        answers: by the field that a request has, the function that does it; it may raise VersionError or
            CheckpointError.
    """
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
            answer = {"error": f"this worker does not know this request: {request}"}
        lists.answer(str(request.get("id")), answer)
    except ListsError as error:
        log.debug("requests cannot be read or answered: %s", error)
