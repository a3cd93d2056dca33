"""Which errors are answered with which status and line. The cause of a 503, which may name an internal address, is
only logged."""

import logging
import time
from collections.abc import Callable

from starlette.responses import Response

from online.api.problems import problem
from online.api.questions import WrongRequestError
from stream.lists import ListsError
from stream.source import SourceError

TOLD_EVERY_S = 30.0

log = logging.getLogger(__name__)


class NothingLearnedError(Exception):
    """There is no list at all."""


class NothingKnownError(Exception):
    """Nothing is known of what was asked for; one line."""


class NoWorkerError(Exception):
    """No worker answered in time; one line."""


#: What is raised, the status it is answered with, headers, and what is said instead of it; None: the error itself.
ERRORS: tuple[tuple[type[Exception], int, dict[str, str], str | None], ...] = (
    (NothingLearnedError, 503, {"Retry-After": "5"}, None),
    (ListsError, 503, {"Retry-After": "1"}, "Redis cannot be read now: ask again later; the API's log says why"),
    (SourceError, 503, {"Retry-After": "1"}, "the broker takes nothing now: ask again later; the API's log says why"),
    (NothingKnownError, 404, {}, None),
    (NoWorkerError, 503, {"Retry-After": "1"}, None),
    (WrongRequestError, 422, {}, None),
)


class ErrorAnswers:
    """Answers errors of the kinds above, and tells now and then what is behind them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at: dict[str, float] = {}

    def of(self, error: Exception) -> Response | None:
        """Returns the answer; None for an error of another kind."""
        for kind, status, headers, instead in ERRORS:
            if isinstance(error, kind):
                if instead is not None:
                    self._tell(error)
                return problem(status, instead or str(error), headers)
        return None

    def _tell(self, error: Exception) -> None:
        kind, now = type(error).__name__, self._clock()
        if now - self._told_at.get(kind, float("-inf")) >= TOLD_EVERY_S:
            self._told_at[kind] = now
            log.warning("requests are answered with 503: %s", error)
