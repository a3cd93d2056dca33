"""The next micro-batch is prepared on another thread while the weights learn from the one before."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.batches import Impression
from online.learner.facts.store import Gathered
from online.learner.preparing import BatchPreparer, PreparedBatch
from stream.events import Click


class UpcomingBatch(NamedTuple):
    """A micro-batch that is going to be learned next."""

    clicks: Sequence[Click]
    impressions: Sequence[Impression] | None = None
    owned: NDArray[np.bool_] | None = None


class UnexpectedBatchError(RuntimeError):
    """A micro-batch was announced, and another one came."""


class Lookahead:
    """At most one micro-batch that is announced, and how far it is prepared."""

    def __init__(self, preparer: BatchPreparer) -> None:
        self.preparer = preparer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="facts")
        self._upcoming: UpcomingBatch | None = None
        self._begun: PreparedBatch | None = None  # None: it has to wait, since users or items make room for it
        self._facts: Future[tuple[Gathered, Gathered]] | None = None
        self._error: Exception | None = None  # what went wrong when it was begun

    def start(self, upcoming: UpcomingBatch) -> None:
        """Begins with what comes next. Whatever goes wrong with it is raised when its turn comes."""
        self._upcoming, self._begun, self._facts, self._error = upcoming, None, None, None
        try:
            if not self.preparer.evicts(upcoming.clicks):
                self._begun = self.preparer.begin(*upcoming)
                self._facts = self._thread.submit(self.preparer.gather, self._begun)
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        """Until its facts are gathered, since nothing else may be asked meanwhile. Raises nothing."""
        if self._facts is not None:
            wait([self._facts])

    def users(self) -> frozenset[str]:
        """Returns the users of what comes next, whose clicks may be counted already."""
        return frozenset() if self._upcoming is None else frozenset(one.user_id for one in self._upcoming.clicks)

    def take(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None,
        owned: NDArray[np.bool_] | None = None,
    ) -> PreparedBatch:
        """The prepared micro-batch: what was begun before, if one was announced.

        Raises:
            UnexpectedBatchError: another one was announced.
        """
        upcoming, begun, facts, error = self._upcoming, self._begun, self._facts, self._error
        self._upcoming = self._begun = self._facts = self._error = None
        if upcoming is None:
            return self.preparer.prepare(clicks, impressions, owned)
        if upcoming.clicks is not clicks:
            raise UnexpectedBatchError("other clicks were announced to follow than these that are to be learned")
        if error is not None:
            raise error
        if begun is None or facts is None:
            return self.preparer.prepare(*upcoming)
        return self.preparer.complete(begun, facts.result())
