"""From records to clicks: messages that are no clicks become dead letters, and duplicates are left out."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from online.config.settings import Settings
from online.lifecycle.emit import Emit
from online.lifecycle.unreadable import UnreadableWatch
from online.worker.dead_letters import DeadLetterWriter
from online.worker.dedup import SeenEvents
from online.worker.event_time import not_ahead
from online.worker.first_messages import FirstMessages
from online.worker.micro_batches import ForgetRequest, ReceivedClick
from online.worker.poison_pills import INTERNAL_ERROR, InternalError, Quarantine, last_line, place
from online.worker.progress import Progress
from stream.dead_letters import UNDECODABLE_BATCH, undecodable, undecodable_notice
from stream.events import BadEvent, Click, Forget, parse
from stream.source import Partition, Record

log = logging.getLogger(__name__)


class Intake:
    """Parses records for the learner. The event ids it has seen are part of a checkpoint."""

    def __init__(
        self,
        settings: Settings,
        *,
        dead_letters: DeadLetterWriter,
        quarantine: Quarantine,
        progress: Progress,
        unreadable: UnreadableWatch,
        emit: Emit,
        clock: Callable[[], float],
        owns: Callable[[Partition], bool] = lambda _: True,
        trains: Callable[[Record], bool] = lambda _: True,
    ) -> None:
        """Creates an intake.

        Args:
            settings: all settings.
            clock: seconds since 1970.
            owns: whether this worker answers for a partition; else another one takes care of its bad messages.
            trains: whether this worker learns from a click, or only counts it.
            The rest: the loop's parts.
        """
        self.settings = settings
        self.dead_letters = dead_letters
        self.quarantine = quarantine
        self.progress = progress
        self.unreadable = unreadable
        self.emit = emit
        self.clock = clock
        self._owns, self._trains = owns, trains
        self.before_letter: Callable[[], None] = lambda: None  # called before one is written
        self.seen = SeenEvents(settings.event_ids_held)
        self._limits, self._names = settings.limits, settings.click_names
        self._first = FirstMessages(self._names, emit)

    def readable(self, records: Sequence[Record]) -> Iterator[ReceivedClick | ForgetRequest]:
        """Yields the clicks, and requests to forget a user, of these records in order. Raises InternalError."""
        now = self.clock()
        if not records:
            self._first.nothing_more(learned=self.progress.learned)
        for record in records:
            event = self._read(record, now)
            owned = self._owns(Partition(record.topic, record.partition))
            if isinstance(event, BadEvent) and not owned:
                continue
            if owned and not isinstance(event, Forget):
                self.unreadable.update(event if isinstance(event, BadEvent) else None, record.value)
                if not self._first.done:
                    self._first.update(record.value, event)
            if isinstance(event, BadEvent):
                if event.reason == INTERNAL_ERROR:
                    self._put_aside(record, event)
                elif event.reason == UNDECODABLE_BATCH:
                    self.emit("undecodable", *undecodable_notice(record, event))
                self.before_letter()
                self.dead_letters.put(record, event)
                self.progress.dead_letters[event.reason] += 1
            elif isinstance(event, Forget):
                yield ForgetRequest(event, record, owned)
            elif event.event_id is not None and not self.seen.add(event.event_id):
                self.progress.duplicates += 1
            else:
                self.progress.put_aside = 0
                yield ReceivedClick(self._not_ahead(event, record), record, owned, self._trains(record))

    def take_over(self, records: Iterable[Record], since: int) -> Iterator[ReceivedClick]:
        """Makes dead letters of the bad messages among records that another worker was to answer for, and yields the
        clicks. Raises SourceError.

        Args:
            records: of one partition.
            since: the bad ones before this offset are dead letters already.
        """
        now = self.clock()
        for record in records:
            event = self._read(record, now)
            if isinstance(event, Click):
                yield ReceivedClick(self._not_ahead(event, record), record)
            elif isinstance(event, BadEvent) and record.offset >= since and self.dead_letters.put(record, event):
                self.progress.dead_letters[event.reason] += 1

    def _read(self, record: Record, now: float) -> Click | Forget | BadEvent:
        detail = self.quarantine.aside(record)
        if detail is not None:
            return BadEvent(INTERNAL_ERROR, detail)
        known = self.dead_letters.found(record) or undecodable(record)
        if known is not None and known.reason in (INTERNAL_ERROR, UNDECODABLE_BATCH):
            return known
        try:
            event = parse(record.value, now=now, limits=self._limits, names=self._names)
        except Exception as error:
            log.exception("internal error: %s partition %d offset %d cannot be parsed", *place(record))
            event = BadEvent(INTERNAL_ERROR, last_line(error))
        if known is None or (isinstance(event, BadEvent) and event.reason == known.reason):
            return event
        return known  # a message that is a dead letter already must not be learned too, even if it can be parsed now

    def _not_ahead(self, click: Click, record: Record) -> Click:
        seconds = not_ahead(click.timestamp, record, self.settings.future_s_max)
        return click if seconds == click.timestamp else click.model_copy(update={"timestamp": seconds})

    def _put_aside(self, record: Record, why: BadEvent) -> None:
        """Emits a notice of an event on which our own code fails. Raises InternalError if there are too many."""
        where = "{} partition {} offset {}".format(*place(record))
        figures = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        self.progress.put_aside += 1
        if self.progress.put_aside < self.settings.internal_errors_in_a_row_max:
            self.emit("internal_error", f"{where} is put aside: {why.detail}", figures)
            return
        text = f"{self.progress.put_aside} events in a row caused internal errors, up to {where}: {why.detail}"
        self.emit("internal_error", f"{text}; the worker stops", figures)
        raise InternalError(
            f"{text}. The worker stops, so as not to move the whole stream to {self.settings.dead_letters_topic}: "
            "report it, or raise NEXTCLICK_INTERNAL_ERRORS_IN_A_ROW_MAX to skip them"
        )
