"""One call's attempts, as decisions without input or output: `Client` and `AsyncClient` send, wait and ask this."""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from online.client.answers import RequestError
from online.client.calls import Call
from online.client.limits import Limits
from online.client.retries import CircuitBreaker, RetryBudget, backoff_s

_NO_ANSWER = frozenset({502, 504})  # of a proxy: the API itself said nothing
_RETRIED = frozenset({408, 429, 502, 503, 504})
# Not a fault of this call's arguments, so no reason for a page to fail: a key, an older API, an address that is wrong.
_UNAVAILABLE = frozenset({401, 403, 404, 405, 407, *_RETRIED})
_UNKNOWN = "nothing is known of"  # begins what a 404 says; that of a wrong path or an older API says something else
_NO_PATH = "there is nothing at this path"  # begins what a 404 of an API says that has no such route
_SHOWN_MAX = 300  # characters of what an answer says

log = logging.getLogger("online.client")


class Api:
    """What the calls of one client share: the API's address, the budget of retries, a circuit breaker for each kind."""

    def __init__(
        self,
        url: str,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.url = url
        self.version = "/v1"  # begins every path; empty for an API of before there were versions
        self.limits = limits
        self.clock = clock
        self.draw = draw
        self.budget = RetryBudget(ratio=limits.budget_ratio, reserve=limits.budget_reserve)
        # Apart: lists may fail for a reason (Redis) that keeps no click from being taken.
        self.breakers = {
            kind: CircuitBreaker(failures_max=limits.failures_max, open_s=limits.open_s, clock=clock)
            for kind in ("list", "click")
        }


class Exchange:
    """The attempts of one call: `pause_s` before each, then `answered` or `failed`, until `pause_s` is None.

    Then `answer` is the body of the answer, or None, and `problem` says why there is none. `unknown`: the API answered
    that it knows nothing of what was asked for.
    """

    def __init__(self, call: Call, api: Api) -> None:
        limits, is_click = api.limits, call.kind != "list"  # the broker confirms feedback as it does clicks
        self.answer: Mapping[str, Any] | None = None
        self.problem = ""
        self.unknown = False
        self.version = api.version  # of the attempt
        self._api = api
        self._breaker = api.breakers["click" if is_click else "list"]
        self._attempt_s = limits.click_attempt_s if is_click else limits.attempt_s
        self._deadline = api.clock() + (limits.click_deadline_s if is_click else limits.deadline_s)
        self._attempts = 0
        self._done = False
        self._retry_after_s = 0.0
        self._attempt_ends = self._deadline
        api.budget.deposit()

    def pause_s(self) -> float | None:
        """Returns the seconds to wait before the next attempt; None: there is none."""
        limits = self._api.limits
        if self._done or self._attempts > limits.retries_max:
            return None
        pause = 0.0
        if self._attempts:
            drawn = backoff_s(
                self._attempts, first_s=limits.backoff_s, longest_s=limits.backoff_s_max, draw=self._api.draw
            )
            pause = max(drawn, self._retry_after_s)
        starts = self._api.clock() + pause
        if starts >= self._deadline:
            return None
        if self._attempts:
            if self._breaker.is_open or not self._api.budget.withdraw():
                return None
        elif not self._breaker.admit():
            self.problem = f"the API at {self._api.url} has not answered for a while: it is left alone"
            return None
        self._attempts += 1
        self.version = self._api.version
        self._attempt_ends = min(self._deadline, starts + self._attempt_s)
        return pause

    def left_s(self) -> float:
        """Returns the seconds that are left for this attempt; 0 or less: none."""
        return self._attempt_ends - self._api.clock()

    def failed(self, what: str) -> None:
        """Notes that an attempt brought no answer."""
        self.problem = f"the API at {self._api.url} {what}"
        self._retry_after_s = 0.0
        if self._breaker.failed():
            log.warning("%s; it is left alone for %g s at a time", self.problem, self._api.limits.open_s)

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Takes an answer. Raises RequestError where it says that the call is wrong."""
        said = _object(body)
        text = f"answers {status}: {_line(said, body)}"
        if status in _NO_ANSWER:
            self.failed(text)
            return
        if self._breaker.succeeded():
            log.info("the API at %s answers again", self._api.url)
        if status < 300 and said is not None:
            self.answer, self._done = said, True
            return
        if status == 404 and self.version and _line(said, body).startswith(_NO_PATH):
            self._api.version = ""  # the same path is there without a version, and this attempt was none
            self._attempts -= 1
            return
        self.problem = f"the API at {self._api.url} {text}"
        if 400 <= status < 500 and status not in _UNAVAILABLE:
            raise RequestError(_line(said, body), status)
        self.unknown = status == 404 and _line(said, body).startswith(_UNKNOWN)
        self._done = status not in _RETRIED
        self._retry_after_s = _seconds(headers.get("retry-after", ""))

    def unreadable(self, what: str) -> None:
        """Notes that the answer was not what it should be: another attempt would bring the same."""
        self.answer, self._done = None, True
        self.problem = f"the API at {self._api.url} {what}"


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _line(said: Mapping[str, Any] | None, body: bytes) -> str:
    """What an answer says, in one line."""
    text = said.get("detail", said.get("error")) if said is not None else None  # `error`: an API of before problems
    if not isinstance(text, str):
        text = body[: 4 * _SHOWN_MAX].decode(errors="replace")
    return " ".join(text.split())[:_SHOWN_MAX] or "nothing else"


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After header; 0 where it is missing or a date."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() and len(retry_after) < 10 else 0.0
