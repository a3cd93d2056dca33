"""The loop: clicks in, lists out, and the order of effects that lets it be killed at any moment.

Lists go to Redis first, then the checkpoint with the next offsets is written, then the broker is told. After a crash
everything goes on from the checkpoint: what came after it is learned again by weights that have not seen it, and its
lists are written again. Nothing is lost, and no click is in the surviving weights twice.
"""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from online.catalogue import Catalogue
from online.checkpoint import CheckpointError, Checkpoints, Saved
from online.dead_letter_box import DeadLetterBox
from online.drift import Alarm, DriftWatch
from online.finetune import FineTuning
from online.items_feed import ItemsFeed
from online.learner import Learner, Ranking
from online.ledger import Ledger
from online.metrics import Latencies
from online.refresh import RefreshSchedule, StreamClock
from online.seen import SeenEvents
from online.settings import Settings
from stream.events import BadEvent, Click, Limits, parse
from stream.lists import Lists, ListsError, TopList
from stream.source import Partition, Record, Source

REDIS_RETRY_S = 1.0  # between attempts while Redis does not answer
PERSONAL, POPULAR = "personal", "popular"  # what a list says of its source
# Weights saved with others cannot be loaded.
SHAPED_BY = ("layers", "width", "heads", "rounds", "buckets", "ranker_hidden", "popularity_half_lives")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrived:
    """A click and where it came from."""

    click: Click
    record: Record

    @property
    def offset(self) -> str:
        """`partition:next offset`, as lists carry it."""
        return f"{self.record.partition}:{self.record.offset + 1}"

    @property
    def clicked_at_ms(self) -> int:
        return int(1000 * self.click.timestamp)


class Loop:
    """One worker's loop. `restore` first, then `start`, then `turn` again and again, then `finish`."""

    def __init__(
        self,
        settings: Settings,
        *,
        source: Source,
        items: ItemsFeed,
        dead_letters: DeadLetterBox,
        lists: Lists,
        checkpoints: Checkpoints,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.source = source
        self.dead_letters = dead_letters
        self.lists = lists
        self.checkpoints = checkpoints
        self.clock = clock
        self.limits = Limits(message_bytes_max=settings.message_bytes_max, future_s_max=settings.future_s_max)
        self.learner = Learner(settings)
        self.drift = DriftWatch(settings.drift_delta, settings.drift_clicks_each, settings.drift_values_held)
        self.seen = SeenEvents(settings.event_ids_held)
        self.ledger = Ledger()
        self.catalogue = Catalogue(
            settings, feed=items, learner=self.learner, lists=lists, dead_letters=dead_letters, ledger=self.ledger
        )
        self.stale: dict[str, None] = {}  # users whose list in Redis is behind, longest first
        self.popular_stale = False  # whether the popular list is
        self.finetuning: FineTuning | None = None
        self.last_finetuned_at: float | None = None
        self.last_saved: Saved | None = None
        self.latencies = Latencies()
        self.stream_clock = StreamClock(clock)
        self.aging = RefreshSchedule(settings.refresh_ages_s, self.stream_clock)
        self.redis_waits_since: float | None = None
        self._asked = threading.Event()
        self._redis_tried_at = 0.0
        self._saved_at = time.monotonic()
        self._saved_ledger = self.ledger.to_state()

    def restore(self) -> int | None:
        """Takes back the latest checkpoint -> its number, None where there is none. Raises CheckpointError."""
        found = self.checkpoints.load()
        if found is None:
            self.dead_letters.load_state({}, {})
            return None
        number, arrays, state = found
        self._check_shape(number, state["shape"])
        self.seen.load_state(arrays.pop("seen"))
        self.learner.load_state(arrays, state["learner"])
        self.ledger.load_state(state["ledger"])
        self.drift.load_state(state["drift"])
        self.dead_letters.load_state(state["dead_letters"], self.ledger.next_offsets)
        self.stale = dict.fromkeys(state["stale"])
        self.popular_stale = state["popular_stale"]
        self.stream_clock.saw(self.learner.histories.clicked_at().max(initial=-np.inf))
        self.aging.load_state(state["aging"])
        if state["finetuning_asked"]:
            self.ask_finetuning("before the restart")
        self._saved_ledger = self.ledger.to_state()
        self.last_saved = Saved(number, self.checkpoints.size_bytes(number), None)
        offsets = ", ".join(f"{p.topic}:{p.partition} from {at}" for p, at in sorted(self.ledger.next_offsets.items()))
        log.info("checkpoint %d restored: %d clicks learned; goes on at %s", number, self.ledger.learned, offsets)
        return number

    def start(self) -> None:
        """Join the stream; partitions begin where the checkpoint says, new ones at their earliest record."""
        self._refill_an_empty_redis()
        self.catalogue.start()
        self.source.start(on_assigned=self.ledger.starts, on_revoked=self._revoked)

    def ask_finetuning(self, why: str) -> None:
        """Fine-tune when there is time. May be called from any thread; asked twice before it begins counts once."""
        if not self._asked.is_set():
            log.info("fine-tuning asked for: %s", why)
        self._asked.set()

    def turn(self) -> int:
        """One turn -> messages taken. The numbers are the order of effects; it is what the promise rests on."""
        # 1. Poll a bounded batch. While fine-tuning or lists wait, do not wait for clicks.
        lists_wait = (bool(self.stale) or self.catalogue.sweeping) and self.redis_waits_since is None
        busy = self.finetuning is not None or self._asked.is_set() or lists_wait
        records = self.source.poll(
            max_records=self.settings.poll_records_max, timeout_s=0.0 if busy else self.settings.poll_timeout_s
        )
        # 2. Tell clicks from what cannot be read, and leave out what was learned before.
        arrived = list(self._readable(records))
        for batch in micro_batches(arrived, self.settings.micro_batch_max, self.settings.history_max // 2):
            # 3. Score the lists that stand, learn, rank anew.
            learned = self.learner.learn([one.click for one in batch])
            self.ledger.learned += len(batch)
            self.stream_clock.saw(max(one.click.timestamp for one in batch))
            # 4. The new lists, in one pipeline.
            self._publish(batch, learned.rankings)
            # 5. Drift: an alarm asks for fine-tuning.
            for alarm in self.drift.update(learned.losses):
                self._alarm(alarm)
            self._mind_items()  # here too: a full turn may take a second
        if not arrived:
            self._mind_items()
        if records:  # not while idle: a checkpoint follows clicks, and what it does not hold must not change
            self.learner.states.rebuild()
        for record in records:
            self.ledger.next_offsets[Partition(record.topic, record.partition)] = record.offset + 1
        self._refresh()
        # 6. A slice of fine-tuning; whether it ended, and gave a new version.
        published = self._finetune()
        # 7. Weights and offsets become the checkpoint, and then the commit. A version is saved before lists name it.
        if published or time.monotonic() - self._saved_at >= self.settings.checkpoint_interval_s:
            self.checkpoint()
        return len(records)

    @property
    def finetuning_state(self) -> str:
        """`running`, `asked` or `idle`."""
        return "running" if self.finetuning is not None else "asked" if self._asked.is_set() else "idle"

    def checkpoint(self) -> None:
        """Everything so far, as one version on disk, then the commit; only the commit where nothing was taken in since
        (an earlier one may have failed, or died with the worker).

        Raises CheckpointError, SourceError (dead letters that cannot be written: the offsets must not pass them).
        """
        self._saved_at = time.monotonic()
        if self.ledger.to_state() != self._saved_ledger:
            self._save()
        mine = self.source.positions()
        if offsets := {p: offset for p, offset in self.ledger.next_offsets.items() if p in mine}:
            self.source.commit(offsets)

    def _save(self) -> None:
        self.dead_letters.flush(self.ledger.next_offsets)
        arrays, learner = self.learner.to_state()
        arrays["seen"] = self.seen.to_state()
        state: dict[str, Any] = {
            "learner": learner,
            "ledger": self.ledger.to_state(),
            "drift": self.drift.to_state(),
            "dead_letters": self.dead_letters.to_state(),
            "stale": list(self.stale),
            "popular_stale": self.popular_stale,
            "aging": self.aging.to_state(),
            "finetuning_asked": self.finetuning_state != "idle",
            "shape": self._shape(),
        }
        self.last_saved = self.checkpoints.save(arrays, state)
        self._saved_ledger = self.ledger.to_state()

    def finish(self) -> None:
        """Graceful end: a last checkpoint, and the commit."""
        self.checkpoint()

    def _readable(self, records: Sequence[Record]) -> Iterator[Arrived]:
        now = self.clock()
        for record in records:
            click = parse(record.value, now=now, limits=self.limits)
            if isinstance(click, BadEvent):
                self.dead_letters.put(record, click)
                self.ledger.dead_letters[click.reason] += 1
            elif click.event_id is not None and not self.seen.add(click.event_id):
                self.ledger.duplicates += 1
            else:
                yield Arrived(click, record)

    def _publish(self, batch: Sequence[Arrived], rankings: dict[str, Ranking]) -> None:
        lasts = {one.click.user_id: one for one in batch}  # each user's last click
        histories = self.learner.histories
        origins = [(one.record.partition, one.record.offset + 1) for one in lasts.values()]
        histories.origins[histories.find(list(lasts))] = origins
        self.ledger.latest_offset, self.ledger.latest_clicked_at_ms = batch[-1].offset, batch[-1].clicked_at_ms
        lists = {
            user: self._top_list(rankings[user], one.offset, one.clicked_at_ms, PERSONAL) for user, one in lasts.items()
        }
        self.aging.renewed(lists)
        if self._write(lists, self._popular()):
            written_ms = 1000 * self.clock()
            self.latencies.add(written_ms - one.record.timestamp_ms for one in lasts.values())
            self.popular_stale = False
            for user in lists:
                self.stale.pop(user, None)
        else:
            self.popular_stale = True
            self.stale |= dict.fromkeys(lasts)
            while len(self.stale) > self.settings.users_held:
                del self.stale[next(iter(self.stale))]

    def _refresh(self) -> None:
        """Brings some of the lists up to date that are behind or have aged, if Redis answers."""
        if self.redis_waits_since is None:
            self.aging.ages_s = self.learner.returns.marks()
            self.stale |= dict.fromkeys(self.aging.take(self.learner.histories, self.settings.refresh_lists_max))
        if not (self.stale or self.popular_stale) or not self._redis_may_answer():
            return
        users = list(itertools.islice(self.stale, self.settings.refresh_lists_max))
        histories = self.learner.histories
        held = [user for user in users if user in histories]  # the others made room since
        slots = histories.find(held)
        clicked_at = histories.newest(slots, 1).timestamps[:, 0]
        moments = np.maximum(self.stream_clock.now(), clicked_at).tolist()
        clicked_at_ms = (1000 * clicked_at).astype(np.int64).tolist()
        lists = {
            user: self._top_list(ranking, f"{partition}:{offset}", at_ms, PERSONAL)
            for user, ranking, (partition, offset), at_ms in zip(
                held, self.learner.rank(held, moments), histories.origins[slots].tolist(), clicked_at_ms, strict=True
            )
        }
        if self._write(lists, self._popular() if self.popular_stale else None):
            self.popular_stale = False
            self.ledger.refreshes += len(lists)
            for user in users:
                del self.stale[user]

    def _mind_items(self) -> None:
        """Takes in what came and went, and takes what went out of some of the lists that stand."""
        if self.catalogue.take_in() and self.ledger.learned:
            self.popular_stale = True
        if self.catalogue.sweeping:
            self._redis_takes(self._sweep)

    def _sweep(self) -> None:
        # What is left of a list is in the right order; only a short one is worth ranking anew.
        self.stale |= dict.fromkeys(user for user in self.catalogue.sweep() if user in self.learner.histories)

    def _refill_an_empty_redis(self) -> None:
        """A Redis that has lost its data (the embedded one always has, at a start) gets everybody's list again."""
        if self.ledger.learned and self.lists.popular() is None:
            self.stale |= dict.fromkeys(self.learner.histories.users())
            self.popular_stale = True
            log.info("Redis holds no lists: %d will be written anew", len(self.stale))

    def _popular(self) -> TopList:
        return self._top_list(
            self.learner.popular(), self.ledger.latest_offset, self.ledger.latest_clicked_at_ms, POPULAR
        )

    def _top_list(self, ranking: Ranking, offset: str, clicked_at_ms: int, source: str) -> TopList:
        return TopList(
            items=ranking.items,
            scores=ranking.scores,
            version=self.learner.version,
            offset=offset,
            clicked_at=clicked_at_ms,
            written_at=int(1000 * self.clock()),
            source=source,
        )

    def _redis_may_answer(self) -> bool:
        """Not to be asked with every micro-batch while it is away: each question may take seconds to fail."""
        return self.redis_waits_since is None or time.monotonic() - self._redis_tried_at >= REDIS_RETRY_S

    def _write(self, lists: dict[str, TopList], popular: TopList | None) -> bool:
        """Writes lists -> whether Redis took them."""
        return self._redis_takes(lambda: self.lists.write(lists, popular))

    def _redis_takes(self, work: Callable[[], None]) -> bool:
        """Does what needs Redis -> whether it is done. Learning goes on without Redis."""
        if not self._redis_may_answer():
            return False
        try:
            if self.redis_waits_since is not None:
                self._refill_an_empty_redis()
                self.catalogue.look_again()
            work()
        except ListsError as error:
            self._redis_tried_at = time.monotonic()
            if self.redis_waits_since is None:
                self.redis_waits_since = self.clock()
                log.warning("%s; learning goes on, lists will be brought up to date", error)
            return False
        if self.redis_waits_since is not None:
            self.redis_waits_since = None
            log.info("Redis answers again; %d lists are behind", len(self.stale))
        return True

    def _alarm(self, alarm: Alarm) -> None:
        log.warning("drift: the loss rose from %.3f to %.3f after %d clicks", alarm.before, alarm.after, alarm.at)
        self.ask_finetuning("drift")

    def _finetune(self) -> bool:
        """A slice of fine-tuning, where one is running or asked for -> whether it ended with a new version."""
        if self.finetuning is None:
            if not self._asked.is_set():
                return False
            self._asked.clear()
            self.finetuning = self._begin_finetuning()
            if self.finetuning is None:
                log.info("fine-tuning left out: no history has two clicks on known items yet")
                return False
        self.finetuning.run_for(self.settings.finetune_slice_ms / 1000)
        if not self.finetuning.done:
            return False
        self.finetuning.publish()
        self.learner.states.weights_replaced()
        self.learner.version += 1
        self.ledger.finetunings += 1
        self.last_finetuned_at = self.clock()
        losses = self.finetuning.losses
        half = max(1, len(losses) // 2)
        first, second = sum(losses[:half]) / half, sum(losses[half:]) / max(1, len(losses) - half)
        log.info(
            "fine-tuned: version %d; %d steps, loss %.3f in their first half, %.3f in their second",
            self.learner.version, len(losses), first, second,
        )  # fmt: skip
        self.finetuning = None
        return True

    def _begin_finetuning(self) -> FineTuning | None:
        slots = self.learner.histories.recently_seen(self.settings.finetune_histories)
        if not len(slots) or self.learner.vocabulary.rows <= 2:
            return None
        recent = self.learner.histories.latest(slots, self.settings.history_max)
        seed = self.settings.seed + self.ledger.finetunings + 1
        return FineTuning(self.learner.trainer, recent, self.learner.popularity(), seed=seed)

    def _shape(self) -> dict[str, Any]:
        shape = {name: getattr(self.settings, name) for name in SHAPED_BY}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in shape.items()}

    def _check_shape(self, number: int, saved: dict[str, Any]) -> None:
        others = [
            f"NEXTCLICK_{name.upper()}={saved[name]}" for name, here in self._shape().items() if saved[name] != here
        ]
        if others:
            raise CheckpointError(
                f"checkpoint {number} in {self.checkpoints.folder} was made with {', '.join(others)}: "
                "set it back, or set NEXTCLICK_DATA_DIR to another folder to start anew"
            )

    def _revoked(self, partitions: Sequence[Partition]) -> None:
        """Another worker takes over: it must not be told less than was learned here."""
        if any(partition in self.ledger.next_offsets for partition in partitions):
            self.checkpoint()


def micro_batches(arrived: Sequence[Arrived], size_max: int, per_user_max: int) -> Iterator[list[Arrived]]:
    """Cuts clicks into runs, in order, of at most `size_max` clicks and `per_user_max` of one user (a history has to
    remember more than one run brings)."""
    batch: list[Arrived] = []
    of_user: Counter[str] = Counter()
    for one in arrived:
        if len(batch) == size_max or of_user[one.click.user_id] == per_user_max:
            yield batch
            batch, of_user = [], Counter()
        batch.append(one)
        of_user[one.click.user_id] += 1
    if batch:
        yield batch
