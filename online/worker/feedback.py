"""Feedback of users: takes in what they say of items, and has their lists written anew."""

import logging
from collections.abc import Callable

from online.config.settings import Settings
from online.learner.learner import Learner
from online.lifecycle.emit import Emit
from online.lifecycle.unreadable import UnreadableWatch
from online.worker.dead_letters import DeadLetterWriter
from online.worker.forget import Forgetting
from online.worker.items_feed import ItemsFeed
from online.worker.list_writer import ListWriter
from online.worker.poison_pills import INTERNAL_ERROR, last_line
from online.worker.progress import Progress
from stream.dead_letters import UNDECODABLE_BATCH, undecodable, undecodable_notice
from stream.events import BadEvent, Forget
from stream.feedback import Feedback, parse
from stream.source import Partition, Record

DAY_S = 86_400.0

log = logging.getLogger(__name__)


class FeedbackIntake:
    """Applies the records of the feedback topic, in order, to the hidden items of the learner.

    These are in the checkpoint, beside the next offsets of the topic: as with clicks, a worker goes on from there, and
    one without a checkpoint reads the topic from its beginning. Each of many workers reads all of it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        feed: ItemsFeed,
        learner: Learner,
        writer: ListWriter,
        forgetting: Forgetting,
        dead_letters: DeadLetterWriter,
        progress: Progress,
        unreadable: UnreadableWatch,
        emit: Emit,
        clock: Callable[[], float],
        owns: Callable[[Partition], bool],
    ) -> None:
        """`clock`: the computer's, in seconds since 1970; `owns`: whether a partition of clicks is this worker's."""
        self._settings, self._feed = settings, feed
        self._learner, self._writer, self._forgetting = learner, writer, forgetting
        self._dead_letters, self._progress, self._unreadable = dead_letters, progress, unreadable
        self._emit, self._clock, self._owns = emit, clock, owns

    def start(self) -> None:
        """Begins to read where the checkpoint says. Call it once, after the checkpoint is restored."""
        topic = self._settings.feedback_topic
        self._feed.start({p: offset for p, offset in self._progress.next_offsets.items() if p.topic == topic})

    def take_in(self) -> None:
        """Applies the records that have come. Raises SourceError."""
        for record in self._feed.take():
            found = self._read(record)
            self._unreadable.update(found if isinstance(found, BadEvent) else None, record.value)
            if isinstance(found, BadEvent):
                self._put_aside(record, found)
            elif isinstance(found, Forget):
                # The owner of the first clicks does what only one of many workers may do.
                owned = self._owns(Partition(self._settings.clicks_topic, 0))
                self._forgetting.forget_hidden(found, record, owned=owned)
            else:
                self._apply(found)
            self._progress.next_offsets[Partition(record.topic, record.partition)] = record.offset + 1

    def _apply(self, feedback: Feedback) -> None:
        hidden, user, item_id = self._learner.hidden, feedback.user_id, feedback.item_id
        if feedback.kind == "unhide":
            hidden.unhide(user, item_id)
        elif feedback.kind == "hide":
            hidden.hide(user, item_id, feedback.until)
        else:
            days = self._settings.dislike_days
            until = feedback.timestamp + DAY_S * days if feedback.until is None else feedback.until
            hidden.dislike(user, item_id, until)
        self._learner.count_feedback(item_id, feedback.kind)
        self._writer.feedback_changed(user)

    def _put_aside(self, record: Record, bad: BadEvent) -> None:
        self._dead_letters.put(record, bad)
        self._progress.dead_letters[bad.reason] += 1
        if bad.reason == UNDECODABLE_BATCH:
            self._emit("undecodable", *undecodable_notice(record, bad))

    def _read(self, record: Record) -> Feedback | Forget | BadEvent:
        try:
            return undecodable(record) or parse(record.value, now=self._clock(), limits=self._settings.limits)
        except Exception as error:  # a bug of ours is no reason to stop
            log.exception("internal error: %s offset %d cannot be parsed", record.topic, record.offset)
            return BadEvent(INTERNAL_ERROR, last_line(error))
