"""The API's side of questions: many requests wait at once, and two threads talk to Redis for all of them.

One thread puts what was asked on the workers' queues, all that waits in one round trip; the other one waits for answers
on this process's own key and hands each to its request. So a thousand requests at once need two connections.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from online.config.settings import Settings
from online.worker.overview import read_overview
from stream.lists import Lists, ListsError
from stream.questions import QuestionQueue, Routes, WireAnswer, WireQuestion

WAIT_S = 0.5  # for answers, before the thread looks whether it is to end; below any time limit of Redis
RETRY_S = 0.2  # while Redis does not answer
ROUTES_S = 1.0  # so often it is looked up which workers there are, while there are questions; RETRY_S if there are none
QUIET_S = 10.0  # without questions the thread does not wait for answers any more
TOLD_EVERY_S = 60.0  # of the same error in the log

log = logging.getLogger(__name__)


class NotAnsweredError(Exception):
    """No worker has answered in time. `reason`: away, full, late, failed or redis; a label of a metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Waiting:
    """A request that waits for its answer."""

    __slots__ = ("future", "loop", "wire")

    def __init__(self, wire: WireQuestion, loop: asyncio.AbstractEventLoop) -> None:
        self.wire, self.loop = wire, loop
        self.future: asyncio.Future[WireAnswer] = loop.create_future()

    def resolve(self, answer: WireAnswer | None, reason: str = "") -> None:
        """From any thread. `reason`: why there is no answer."""

        def do() -> None:
            if self.future.done():
                return
            if answer is None:
                self.future.set_exception(NotAnsweredError(reason))
            else:
                self.future.set_result(answer)

        try:
            self.loop.call_soon_threadsafe(do)
        except RuntimeError:  # the API has ended
            return


class Asker:
    """Asks the workers. `ask` is for coroutines of one process, on any number of event loops."""

    def __init__(self, settings: Settings, lists: Lists, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Creates it; its threads start with the first question."""
        self.settings, self._lists, self._monotonic = settings, lists, monotonic
        self.name = uuid.uuid4().hex
        self._queue = QuestionQueue(lists.client)
        self._lock = threading.Lock()
        self._number = 0
        self._unsent: list[_Waiting] = []
        self._waiting: dict[int, _Waiting] = {}
        self._something = threading.Event()  # is unsent, or it is closing
        self._expected = threading.Event()  # answers may come, or it is closing
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._asked_at = float("-inf")
        self._routes: Routes | None = None  # None: no worker reports
        self._routed_at = float("-inf")
        self._told: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    async def ask(self, **fields: Any) -> WireAnswer:
        """Asks, and waits as long as the settings say.

        Args:
            fields: of `WireQuestion`, but those that say who asks and when.

        Raises:
            NotAnsweredError: there is no answer, and the stored list has to do.
        """
        timeout_ms = self.settings.ask_timeout_ms
        with self._lock:
            self._number += 1
            number = self._number
        asked_at = time.time()
        wire = WireQuestion(id=number, asker=self.name, asked_at=asked_at, timeout_ms=timeout_ms, **fields)
        waiting = _Waiting(wire, asyncio.get_running_loop())
        with self._lock:
            self._waiting[number] = waiting
            self._unsent.append(waiting)
            self._asked_at = self._monotonic()
            self._start()
        self._something.set()
        self._expected.set()
        try:
            answer = await asyncio.wait_for(waiting.future, timeout_ms / 1_000)
        except TimeoutError:
            raise self._not_answered("late") from None
        except NotAnsweredError as error:
            raise self._not_answered(error.reason) from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer.error is not None and not answer.refused:
            raise self._not_answered("failed")
        self.counts["answered"] += 1
        return answer

    def _not_answered(self, reason: str) -> NotAnsweredError:
        self.counts[reason] += 1
        return NotAnsweredError(reason)

    def close(self) -> None:
        """Ends the threads."""
        self._closing = True
        self._something.set()
        self._expected.set()
        for thread in self._threads:
            thread.join(2 * WAIT_S)

    def _start(self) -> None:
        if not self._threads and not self._closing:
            self._threads = [
                threading.Thread(target=self._run, args=(self._send, self._something), name="ask", daemon=True),
                threading.Thread(target=self._run, args=(self._receive, self._expected), name="answers", daemon=True),
            ]
            for thread in self._threads:
                thread.start()

    def _run(self, do: Callable[[], None], event: threading.Event) -> None:
        while True:
            event.wait()
            if self._closing:
                return
            try:
                do()
            except ListsError as error:
                self._tell(str(error))
                time.sleep(RETRY_S)
            except Exception:
                log.exception("asking the worker failed")
                time.sleep(RETRY_S)

    def _tell(self, line: str) -> None:
        now = self._monotonic()
        if now - self._told.get(line, float("-inf")) > TOLD_EVERY_S:
            self._told = {line: now}
            log.warning("the worker cannot be asked, and stored lists are returned: %s", line)

    # The thread that asks

    def _send(self) -> None:
        self._something.clear()
        with self._lock:
            unsent, self._unsent = self._unsent, []
        now = time.time()
        unsent = [one for one in unsent if not one.wire.is_late(now)]
        if not unsent:
            return
        try:
            routed = self._route(unsent)
            waits = self._queue.put([(name, one.wire) for name, one in routed], self.settings.ask_waiting_max)
        except ListsError:
            for one in unsent:
                one.resolve(None, "redis")
            raise
        for (_, one), taken in zip(routed, waits, strict=True):
            if not taken:
                one.resolve(None, "full")

    def _route(self, unsent: list[_Waiting]) -> list[tuple[str | None, _Waiting]]:
        """Returns questions with the workers that they go to; those that no worker answers are resolved."""
        now = self._monotonic()
        if now - self._routed_at > (ROUTES_S if self._routes is not None else RETRY_S):
            overview = read_overview(self._lists)
            reports = overview.many or (overview.alone or {}).get("state") == "running"
            self._routes, self._routed_at = Routes(overview.owners()) if reports else None, now
        routed: list[tuple[str | None, _Waiting]] = []
        for one in unsent:
            try:
                if self._routes is None:
                    raise LookupError("no worker reports")
                routed.append((self._routes.worker_for(one.wire.user_id), one))
            except LookupError:
                one.resolve(None, "away")
        return routed

    # The thread that waits for answers

    def _receive(self) -> None:
        for answer in self._queue.answers(self.name, WAIT_S):
            with self._lock:
                waiting = self._waiting.get(answer.id)
            if waiting is not None:
                waiting.resolve(answer)
        with self._lock:
            if self._monotonic() - self._asked_at > QUIET_S:
                self._expected.clear()
