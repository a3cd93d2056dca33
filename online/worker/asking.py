"""The worker answers questions: it ranks what is asked for between two micro-batches, and at once while it is idle.

One thread waits for questions in Redis, another one sends answers, so that the loop waits for neither. Nothing of a
question changes the model.
"""

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.config.formula import FormulaError
from online.config.settings import Settings
from online.filters.evaluate import CompiledFilter, compiled
from online.filters.tokens import FilterError
from online.learner.asking import FILTER, Answer, Question, RecentClick
from online.learner.common_lists import CommonLists
from online.learner.explaining import explained
from online.learner.known_user import known_user
from online.learner.learner import Learner
from online.learner.similar import similar
from stream.lists import ListsError, RedisUnavailableError
from stream.questions import QuestionQueue, WireAnswer, WireQuestion

WAIT_S = 0.5  # for a question, before the thread looks whether it is to end; below any time limit of Redis
RETRY_S = 0.5  # while Redis does not answer
LATELY_S = 5.0  # after a question the idle loop polls in short steps
POLL_S = 0.003  # such a step: how long a question waits for the loop at most
REPLAY_S = 86_400.0  # the stream lies so far behind the clock: it is replayed, and now is its latest click
CREDIT_S_MAX = 1.0  # of the loop's time: what questions did not take in it they may take later

log = logging.getLogger(__name__)


class Pending(NamedTuple):
    """A question that was taken, or the error that it gets."""

    wire: WireQuestion
    question: Question


class Asking:
    """Answers questions. `step`, `poll_timeout_s` and `describe` are for the loop's thread only."""

    def __init__(
        self,
        settings: Settings,
        learner: Learner,
        questions: QuestionQueue,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates it without threads: `start` starts them.

        Args:
            settings: all settings.
            learner: whose facts and weights answer.
            questions: where questions come from and answers go.
            clock: the computer's, in seconds since 1970.
            monotonic: a monotonic clock, in seconds.
        """
        self.settings, self.learner, self.questions = settings, learner, questions
        self.common = CommonLists(learner)
        self.clock, self.monotonic = clock, monotonic
        self.counts: Counter[str] = Counter()
        self.busy_s = 0.0  # spent on questions
        self._waiting: deque[WireQuestion] = deque(maxlen=4 * settings.ask_waiting_max)
        self._answers: queue.SimpleQueue[list[tuple[str, WireAnswer]] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._take, name="questions", daemon=True),
            threading.Thread(target=self._send, name="answers", daemon=True),
        ]
        self._latest_at = float("-inf")  # when a question was taken, by the monotonic clock
        self._credit_s, self._credited_at = 0.0, monotonic()

    # The threads

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads; what waits stays unanswered."""
        self._closing.set()
        self._answers.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(2 * WAIT_S)

    def _take(self) -> None:
        failing = False
        while not self._closing.is_set():
            try:
                taken = self.questions.take(WAIT_S)
                failing = False
            except ListsError as error:
                # The writer of lists tells that Redis is away.
                if not failing and not isinstance(error, RedisUnavailableError):
                    log.warning("questions cannot be taken: %s", error)
                failing = True
                self._closing.wait(RETRY_S)
                continue
            except Exception:
                log.exception("taking questions failed")
                self._closing.wait(RETRY_S)
                continue
            if taken:
                self._latest_at = self.monotonic()
                self.counts["unreadable"] += sum(one is None for one in taken)
                self._waiting.extend(one for one in taken if one is not None)

    def _send(self) -> None:
        while (answers := self._answers.get()) is not None:
            try:
                self.questions.answer(answers)
            except ListsError as error:
                self.counts["unsent"] += len(answers)
                log.debug("answers cannot be sent: %s", error)
            except Exception:
                log.exception("sending answers failed")

    # The loop

    def poll_timeout_s(self, timeout_s: float) -> float:
        """Returns how long the loop may wait for clicks, so that questions need not wait for it."""
        if self._waiting:
            return 0.0
        lately = self.monotonic() - self._latest_at < LATELY_S
        return min(timeout_s, POLL_S) if lately else timeout_s

    def step(self, *, idle: bool) -> int:
        """Answers what waits; while clicks wait, within the share of the time that is set.

        Args:
            idle: whether no clicks wait, as far as it is known.

        Returns:
            How many questions were answered.
        """
        now = self.monotonic()
        self._credit_s += self.settings.ask_share_max * (now - self._credited_at)
        self._credit_s = min(self._credit_s, self.settings.ask_share_max * CREDIT_S_MAX)
        self._credited_at = now
        answered = 0
        while self._waiting and (idle or self._credit_s > 0):
            began = self.monotonic()
            answered += self._answer_some()
            took_s = self.monotonic() - began
            self.busy_s += took_s
            if not idle:
                self._credit_s -= took_s
            else:
                break  # clicks may have come meanwhile
        return answered

    def _answer_some(self) -> int:
        """Answers the oldest questions that are not late yet, all in one gather."""
        some: list[WireQuestion] = []
        now = self.clock()
        while self._waiting and len(some) < self.settings.ask_batch_max:
            wire = self._waiting.popleft()
            if wire.is_late(now):
                self.counts["late"] += 1
            else:
                some.append(wire)
        if some:
            answers = self.answer(some)
            self._answers.put([(wire.asker, answer) for wire, answer in zip(some, answers, strict=True)])
        return len(some)

    def answer(self, wires: Sequence[WireQuestion]) -> list[WireAnswer]:
        """Answers questions. An error in one of them is its answer, and does the others no harm."""
        answers: dict[int, WireAnswer] = {}
        pending: dict[int, Pending] = {}
        for at, wire in enumerate(wires):
            try:
                if wire.kind == "rank":
                    pending[at] = Pending(wire, self._question(wire))
                else:
                    answers[at] = self._looked_up(wire)
                    self.counts["answered"] += 1
            except FormulaError as error:
                answers[at] = self._refused(wire, f"objective: {error}")
            except FilterError as error:
                answers[at] = self._refused(wire, f"where: {error}")
            except LookupError as error:
                answers[at] = self._refused(wire, str(error)) if wire.kind == "explain" else self._failed(wire, error)
            except Exception as error:
                answers[at] = self._failed(wire, error)
        answers |= self._ranked(pending)
        return [answers[at] for at in range(len(wires))]

    def _ranked(self, pending: dict[int, Pending]) -> dict[int, WireAnswer]:
        """Ranks all together; where that fails, one by one, so that only the one that is to blame has no list."""
        if not pending:
            return {}
        try:
            found = self.learner.answerer.answer([one.question for one in pending.values()])
            self.counts["answered"] += len(found)
            pairs = zip(pending.items(), found, strict=True)
            return {at: self._listed(one, answer) for (at, one), answer in pairs}
        except Exception as error:
            if len(pending) == 1:
                ((at, one),) = pending.items()
                return {at: self._failed(one.wire, error)}
        return {name: answer for at, one in pending.items() for name, answer in self._ranked({at: one}).items()}

    def _failed(self, wire: WireQuestion, error: Exception) -> WireAnswer:
        self.counts["failed"] += 1
        log.error("a question failed: %s", error, exc_info=error)
        return WireAnswer(id=wire.id, error=f"internal error: {type(error).__name__}")

    def _refused(self, wire: WireQuestion, line: str) -> WireAnswer:
        self.counts["refused"] += 1
        return WireAnswer(id=wire.id, error=line, refused=True)

    # One question

    def now(self) -> float:
        """Returns the present moment, in seconds since 1970: the clock's; that of the latest click where clicks of long
        ago are replayed."""
        now, latest = self.clock(), self.learner.now[0]
        return latest if latest and abs(now - latest) > REPLAY_S else max(now, latest)

    def _question(self, wire: WireQuestion) -> Question:
        wanted = self._filter(wire.where)
        listable = self.learner.listable

        def rows(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            return listable.apply(wanted, rows).mask

        def items(items: Sequence[str]) -> NDArray[np.bool_]:
            return listable.apply_to_items(wanted, items).mask

        return Question(
            user_id=wire.user_id,
            recent=[RecentClick(item, told) for item, told in wire.recent],
            at=self.now() if wire.at is None else wire.at,
            k=wire.k,
            candidates=wire.candidates,
            exclude=wire.exclude,
            where=None if wanted is None else rows,
            where_items=None if wanted is None else items,
            diversity=wire.diversity,
            max_per_tag=wire.max_per_tag,
            explain=wire.explain,
            objective=None if wire.objective is None else self.learner.weights.objective.formula(wire.objective),
            explore=wire.explore,
            temperature=wire.temperature,
            request_id=wire.request_id or "",
        )

    def _filter(self, where: str | None) -> CompiledFilter | None:
        """Raises FilterError."""
        if where is None:
            return None
        wanted = compiled(where)
        wanted.filter.check(self.learner.listable.attributes.kinds())
        return wanted

    def _listed(self, one: Pending, answer: Answer) -> WireAnswer:
        assert one.question.at is not None
        return WireAnswer(
            id=one.wire.id,
            items=answer.items,
            scores=[float(f"{score:.6g}") for score in answer.scores],
            version=self.learner.version,
            at=one.question.at,
            known=answer.known,
            widened=answer.widened,
            dropped=dict(answer.dropped),
            explanations=answer.explanations,
            propensities=answer.propensities,
            drawn=answer.drawn,
        )

    def _looked_up(self, wire: WireQuestion) -> WireAnswer:
        """Answers a question for which no list is ranked with others. Raises FilterError, LookupError."""
        match wire.kind:
            case "similar":
                return self._similar(wire)
            case "user":
                return WireAnswer(id=wire.id, user=known_user(self.learner, wire.user_id or ""))
            case "explain":
                pending = Pending(wire, self._question(wire))
                return self._listed(pending, explained(self.learner.answerer, pending.question, wire.item_id))
            case kind:
                assert kind != "rank"
                found = self.common.best(kind, wire.k, self._filter(wire.where), wire.exclude)
                return self._unranked(wire, found.items, found.scores, found.filtered)

    def _similar(self, wire: WireQuestion) -> WireAnswer:
        """Items like an item. Of one of which nothing is known there are none, and the answer says so."""
        learner, wanted, item_id = self.learner, self._filter(wire.where), wire.item_id or ""
        row_of = learner.vocabulary.row_of
        excluded = np.array([row_of(item) for item in wire.exclude], np.int64)
        filtered = np.zeros(learner.vocabulary.rows, np.bool_)  # (V,)

        def where(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            allowed, passes = ~np.isin(rows, excluded), learner.listable.apply(wanted, rows).mask
            filtered[rows[allowed & ~passes]] = True
            return allowed & passes

        found = similar(learner, item_id, wire.by, wire.k, where)
        scores = [float(f"{score:.6g}") for score in found.scores.tolist()]
        known = bool(row_of(item_id)) or bool(learner.listable.attributes.slot_of(item_id))
        answer = self._unranked(wire, found.items(learner), scores, int(filtered.sum()))
        return answer.model_copy(update={"known": known})

    def _unranked(self, wire: WireQuestion, items: list[str], scores: list[float], filtered: int) -> WireAnswer:
        return WireAnswer(
            id=wire.id,
            items=items,
            scores=scores,
            version=self.learner.version,
            at=self.now(),
            dropped={FILTER: filtered} if filtered else {},
        )

    def describe(self) -> dict[str, Any]:
        """Returns the part of the status that is about questions."""
        names = ("answered", "late", "refused", "failed", "unreadable", "unsent")
        return {name: self.counts[name] for name in names} | {"seconds": round(self.busy_s, 3)}
