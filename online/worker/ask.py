"""A command's side of requests to the running workers (online/worker/requests.py has the worker's), and of questions
(online/worker/asking.py)."""

import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from online.worker.overview import read_overview
from stream.lists import Lists
from stream.questions import QuestionQueue, Routes, WireAnswer, WireQuestion

_POLL_S = 0.1
_WAITING_MAX = 10_000  # questions before this one: a person asks, and has the time
_WAIT_S = 0.5  # for an answer, below any time limit of Redis


class RequestError(Exception):
    """A worker did not do the request; one line that says why, and what to do."""


@dataclass
class WorkerAnswers:
    """What several workers answered to one request, by their names."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)  # of those that did not do it: one line that says why


def ask_worker(
    lists: Lists, request: Mapping[str, Any], timeout_s: float, see: str, worker: str | None = None
) -> dict[str, Any]:
    """Sends a request to one worker, and waits for the answer.

    Args:
        lists: the link to Redis.
        request: what is asked for.
        timeout_s: longest wait, in seconds.
        see: the command that shows its effect if no answer arrives.
        worker: the name of the worker; None: the only one.

    Raises:
        RequestError: it cannot be done, or the worker did not do it within `timeout_s` seconds.
        ListsError: Redis does not answer.
    """
    found = _ask(lists, request, timeout_s, see, [worker])
    for line in found.errors.values():
        raise RequestError(line)
    (answer,) = found.answers.values()
    return answer


def ask_workers(
    lists: Lists, request: Mapping[str, Any], timeout_s: float, see: str, workers: Collection[str]
) -> WorkerAnswers:
    """Sends a request to several workers at once, and waits for the answers. Arguments as above.

    Raises:
        ListsError: Redis does not answer.
    """
    return _ask(lists, request, timeout_s, see, workers)


def _ask(
    lists: Lists, request: Mapping[str, Any], timeout_s: float, see: str, workers: Collection[str | None]
) -> WorkerAnswers:
    request_id = uuid.uuid4().hex
    found = WorkerAnswers()
    waiting: list[str | None] = []
    for worker in workers:
        # It must outlive the wait, so that who gives up knows whether the worker has taken it.
        if lists.ask({"id": request_id, **request}, int(timeout_s) + 5, worker):
            waiting.append(worker)
        else:
            line = f"{_name(worker)} has another request to answer first: try again in a moment"
            found.errors[worker or ""] = line
    deadline = time.monotonic() + timeout_s
    while waiting:
        for worker in tuple(waiting):
            if (answer := lists.answer_to(request_id, worker)) is not None:
                waiting.remove(worker)
                if "error" in answer:
                    found.errors[worker or ""] = str(answer["error"])
                else:
                    found.answers[worker or ""] = answer
        if waiting and time.monotonic() > deadline:
            found.errors |= {worker or "": _gives_up(lists, worker, timeout_s, see) for worker in waiting}
            break
        if waiting:
            time.sleep(_POLL_S)
    return found


def _gives_up(lists: Lists, worker: str | None, timeout_s: float, see: str) -> str:
    """Withdraws a request. Returns the line that says what became of it."""
    if not lists.withdraw_request(worker):
        return f"{_name(worker)} took the request but has not answered within {timeout_s:g} s: see `{see}`"
    line = f"within {timeout_s:g} s, and it is withdrawn: see `nextclick status` whether"
    if worker is None:
        return f"no worker took the request {line} one runs"
    return f"{_name(worker)} did not take the request {line} it runs"


def _name(worker: str | None) -> str:
    return "the worker" if worker is None else f"worker {worker}"


def ask_question(lists: Lists, timeout_s: float, **fields: Any) -> WireAnswer | None:
    """Asks the worker that answers for a user, and waits for the answer.

    Args:
        lists: the link to Redis.
        timeout_s: longest wait, in seconds.
        fields: of `WireQuestion`, but those that say who asks and when.

    Returns:
        The answer, which may be an error; None: no worker reports, or none answered in time.

    Raises:
        ListsError: Redis does not answer.
    """
    overview = read_overview(lists)
    if not overview.many and (overview.alone or {}).get("state") != "running":
        return None
    asker, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    wire = WireQuestion(id=1, asker=asker, asked_at=time.time(), timeout_ms=int(1_000 * timeout_s), **fields)
    try:
        worker = Routes(overview.owners()).worker_for(wire.user_id)
    except LookupError:
        return None
    queue = QuestionQueue(lists.client)
    if not all(queue.put([(worker, wire)], _WAITING_MAX)):
        return None
    while time.monotonic() < deadline:
        for answer in queue.answers(asker, _WAIT_S):
            return answer
    return None
