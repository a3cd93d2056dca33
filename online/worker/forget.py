"""Forgetting a user: all their data is erased, in an order that a crash at any moment does not undo.

The request stands in order among the clicks, with the digest of the user's id (stream/user_ids.py). The loop handles it
like a click: earlier clicks are learned, then all of the user's data is removed from memory. Outputs come next, as
always: the list in Redis, the dead letters. Then a checkpoint is written at once, and older ones, which still contain
the user, are removed within `forget_checkpoints_s`; of those that versions need for a rollback, weights and vocabulary
stay. Work that cannot be done now (Redis is unavailable, the broker refuses) is pending, also across a restart.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from online.config.settings import Settings
from online.learner.learner import Learner
from online.lifecycle.emit import Emit
from online.lifecycle.supervisor import Supervisor
from online.lifecycle.versions import Versions
from online.worker.checkpoint import CheckpointError, Checkpoints
from online.worker.dead_letters import DeadLetterWriter
from online.worker.list_writer import ListWriter
from online.worker.micro_batches import ForgetRequest
from online.worker.progress import Progress
from online.worker.quoted import quoted_in
from online.worker.shared_checkpoints import SharedCheckpoints
from stream.dead_letters import DeadLetter
from stream.events import Forget
from stream.source import Partition, Record, SourceError
from stream.user_ids import digest_of, hash_of_digest, user_ids_in

WEIGHTS = "weights."  # arrays of a checkpoint that name no user
#: Parts of a checkpoint's state whose texts name items, topics and our own words; no user stands there.
NAMES_OF_OTHERS = {
    *(("learner", "items"), ("learner", "event_types"), ("learner", "hidden", "items")),
    *(("learner", "worth"),),
    *(("progress",), ("forgetting",), ("shape",), ("versions",), ("unreadable",)),
}
QUOTING = (("notices",), ("dead_letters",))  # a line for operators may quote an id; the rest are our own words
KEYED_BY_USERS = ("learner", "states", "built")

log = logging.getLogger(__name__)


class Forgetting:
    """Erases users' data, and keeps track of pending work; part of each checkpoint. For the loop's thread only."""

    def __init__(
        self,
        settings: Settings,
        *,
        learner: Learner,
        progress: Progress,
        writer: ListWriter,
        supervisor: Supervisor,
        dead_letters: DeadLetterWriter,
        checkpoints: Checkpoints,
        versions: Versions,
        emit: Emit,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic`: a monotonic clock, in seconds, so that setting the computer's clock delays nothing."""
        self.settings, self.learner, self.progress, self.writer = settings, learner, progress, writer
        self.supervisor, self.dead_letters = supervisor, dead_letters
        self.checkpoints, self.versions = checkpoints, versions
        self._emit, self._clock = emit, monotonic
        self._letters: set[tuple[str, str, int, int]] = set()  # digest; dead letters of topic, partition, before offset
        self._before: tuple[int, float] | None = None  # checkpoints with lower numbers are to go, and when
        self.unsaved = False  # whether a user was forgotten after the latest checkpoint
        self.shared: SharedCheckpoints | None = None  # in a group whose workers share checkpoints
        self.leads: Callable[[], bool] = lambda: True  # whether this worker copies its checkpoints there

    def forget(self, one: ForgetRequest) -> None:
        """Erases a user's data from memory, and begins to erase it elsewhere."""
        digest, record = one.event.user_sha256, one.record
        counts = self.learner.forget(digest)
        if self.learner.shown is not None:
            self.learner.shown.ignore_before(digest, one.event.timestamp)
        self.writer.forget(digest)
        self.supervisor.forget()
        if one.owned:
            self._letters.add((digest, record.topic, record.partition, record.offset))
        self.unsaved = True
        if any(counts.values()):
            self._emit("forgotten", f"a user was forgotten, with {counts['moments']:,} moments", counts)

    def forget_hidden(self, event: Forget, record: Record, *, owned: bool) -> None:
        """Erases what a user has said of items. The request stands on the feedback topic too, since there is no order
        between that topic and the clicks: what was said before it may be read after the user was forgotten.

        `owned`: whether this worker erases the dead letters of that topic.
        """
        digest = event.user_sha256
        if owned:
            self._letters.add((digest, record.topic, record.partition, record.offset))
        if self.learner.hidden.forget(digest):
            self.writer.forget(digest)
            histories = self.learner.histories  # of a user who has clicked again since
            self.writer.mark_stale(user for user in self.learner.named(digest) if user in histories)
        self.unsaved = True

    def forget_attributes(self, user_id: str, record: Record, *, owned: bool, known: bool) -> None:
        """Follows a tombstone on the users topic, which has erased what was known of a user: also from older
        checkpoints and dead letters.

        Args:
            user_id: of the user.
            record: the tombstone.
            owned: whether this worker erases the dead letters of that topic.
            known: whether anything was known.
        """
        if owned:
            self._letters.add((digest_of(user_id), record.topic, record.partition, record.offset))
        self.unsaved = self.unsaved or known

    @property
    def has_pending(self) -> bool:
        """Whether the next checkpoint has something to do."""
        return self.unsaved or bool(self._letters)

    def saving(self, number: int) -> None:
        """Erases forgotten users' dead letters, just before checkpoint `number` is written. If the broker refuses, it
        is tried again with the next checkpoint."""
        if self._letters:
            try:
                erased = self.dead_letters.erase(self._is_gone)
            except SourceError as error:
                log.warning("dead letters of forgotten users cannot be erased yet: %s", error)
            else:
                log.info("erased %d dead letters of forgotten users", erased)
                self._letters.clear()
        if self.unsaved:
            self._before = (number, self._clock() + self.settings.forget_checkpoints_s)
            self.unsaved = False
            if self.shared is not None:
                self.shared.forget_before(number)

    def _is_gone(self, letter: DeadLetter) -> bool:
        requests = [
            one for one in self._letters if one[1:3] == (letter.topic, letter.partition) and letter.offset < one[3]
        ]
        if not requests:
            return False
        of_clicks = letter.topic == self.settings.clicks_topic
        user_path = self.settings.click_names.paths.get("user_id") if of_clicks else None
        value = None if letter.topic == self.settings.users_topic else letter.record.value  # which holds attributes
        names = user_ids_in(letter.record.key, value, user_path)
        return not {digest_of(name) for name in names}.isdisjoint(digest for digest, *_ in requests)

    def drop_checkpoints(self) -> None:
        """Removes due checkpoints that contain forgotten users, or strips them to what a rollback needs."""
        if self._before is None or self._clock() < self._before[1] or not self._written:
            return
        for number in self._older():
            try:
                if number in self.versions.pinned:
                    self.checkpoints.strip(number, _is_weight, _vocabulary_of)
                else:
                    self.checkpoints.remove(number)
            except CheckpointError as error:  # it cannot be read, so it is of no use
                log.warning("%s; it is removed, because it contains a forgotten user", error)
                self.checkpoints.remove(number)
            return  # the next with the next turn: clicks wait
        self._before = None

    @property
    def needs_full(self) -> bool:
        """Whether the next checkpoint must be a full one: earlier ones contain a user whom it does not."""
        return self.unsaved or (self._before is not None and not self._written)

    @property
    def _written(self) -> bool:
        """Whether there is a checkpoint without the user: the disk may have been full."""
        return self._before is not None and max(self.checkpoints.numbers(), default=0) >= self._before[0]

    def _older(self) -> list[int]:
        assert self._before is not None
        stripped = self.checkpoints.stripped()
        return [number for number in self.checkpoints.numbers() if number < self._before[0] and number not in stripped]

    def waits_for(self) -> list[str]:
        """What is pending, in lines for operators."""
        found = []
        if self.needs_full:
            found.append("a checkpoint without the user is not written yet")
        if self.writer.pending_deletes:
            found.append("Redis is unavailable: the list will be deleted when it is back")
        if self._letters:
            found.append("the dead letters are not taken out yet: the broker did not let the worker, see its log")
        if self._before is not None and (older := self._older()):
            left_s = max(0.0, self._before[1] - self._clock())
            found.append(f"{len(older)} older checkpoints go within {left_s:.0f} s")
        if self.shared is not None and self.shared.waits and self.leads():
            found.append("the copy in the shared folder is not replaced yet, see the worker's log")
        return found

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What `nextclick forget` asks: `forget`, a digest; `after`, [topic, partition, next offset] that the loop has
        to have passed; `search`, whether to search too -> `passed`, `waits_for`, and how often the user is found in
        `memory`, by kind, and in `checkpoints`, by number."""
        digest = str(request["forget"])
        places = [(Partition(str(topic), int(number)), int(offset)) for topic, number, offset in request["after"]]
        passed = all(self.progress.next_offsets.get(partition, 0) >= offset for partition, offset in places)
        waits = self.waits_for() if passed else ["the worker has not come to it yet: clicks wait"]
        found: dict[str, Any] = {"passed": passed, "waits_for": waits}
        if request.get("search"):
            lists = sum(digest_of(user) == digest for user in self.writer.users())
            found["memory"] = self.learner.holds(digest) | {"lists to be written": lists}
            found["memory"]["latest clicks"] = self.writer.latest.count(digest)
            found["checkpoints"] = self._search(digest)
        return found

    def _search(self, digest: str) -> dict[str, int | None]:
        """How often each checkpoint names the user or marks something as theirs; None: it cannot be read."""
        found: dict[str, int | None] = {}
        for number in self.checkpoints.numbers():
            try:
                marks = self._found_in(number, digest, unchanged=False)
                if self.checkpoints.is_increment(number):  # its file of the full one holds bytes that it does not show
                    marks += self._found_in(number, digest, unchanged=True)
                found[str(number)] = marks
            except CheckpointError:
                found[str(number)] = None
        return found

    def _found_in(self, number: int, digest: str, *, unchanged: bool) -> int:
        owner = hash_of_digest(digest)
        with self.checkpoints.opened(number, unchanged=unchanged) as (state, arrays):
            marks = sum(int((array == owner).sum()) for array in arrays if array.dtype == np.int64)
            return marks + sum(digest_of(name) == digest for name in _texts(state))

    def to_state(self) -> dict[str, Any]:
        return {
            "letters": sorted(map(list, self._letters)),
            "before": None if self._before is None else self._before[0],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self._letters = {(digest, topic, number, offset) for digest, topic, number, offset in state["letters"]}
        # A restart has come by with what they are kept for: going on from one of the later ones.
        self._before = None if state["before"] is None else (state["before"], self._clock())
        if self.shared is not None and self._before is not None:
            self.shared.forget_before(self._before[0])


def _is_weight(name: str) -> bool:
    return name.startswith(WEIGHTS)


def _vocabulary_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"learner": {"items": state["learner"]["items"]}}


def _texts(value: Any, path: Sequence[str] = ()) -> Iterable[str]:
    """Every text in a checkpoint's state that may be a user's id."""
    if tuple(path) in NAMES_OF_OTHERS:
        return
    if isinstance(value, str):
        if tuple(path[:1]) in QUOTING:
            yield from quoted_in(value)
        else:
            yield value
    elif isinstance(value, Mapping):
        if tuple(path) == KEYED_BY_USERS:
            yield from value
        for name, one in value.items():
            yield from _texts(one, (*path, name))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, path)
