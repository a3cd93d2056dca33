"""The catalogue: which items may be recommended, as the items topic says, and lists without those that may not: items
that are not available, and those that the site's rule (`NEXTCLICK_LIST_FILTER`) excludes."""

import logging
import time
from collections.abc import Sequence

from online.config.settings import Settings
from online.learner.learner import Learner
from online.worker.topic_intake import NOT_ALL_KEPT, TopicIntake
from stream.items import Item
from stream.lists import PAGE, Lists, ListsError, TopList
from stream.source import Record

log = logging.getLogger(__name__)


class Catalogue:
    """Takes items in, and takes those that must not be listed any more out of the lists that stand.

    Which items those are is the learner's to know, and so it is in the checkpoint, beside the next offsets of the
    items topic: as with clicks, a worker goes on from there, and one without a checkpoint reads the topic from its
    beginning. Lists are gone through page by page, some of them after each micro-batch, whichever items they lack:
    withdrawals that come together share one sweep. What a crash, or a Redis that was away, has left in lists is found
    because a sweep follows each start and each return, where any item is not available.
    """

    def __init__(
        self,
        settings: Settings,
        intake: TopicIntake[Item],
        *,
        learner: Learner,
        lists: Lists,
    ) -> None:
        self._settings, self._intake, self._learner, self._lists = settings, intake, learner, lists
        self._asked = False  # for a sweep that begins with the first page
        self._popular_asked = False  # for the popular list to be written anew
        self._cursor: int | None = None  # of the next page, while sweeping
        self._amended = 0
        self.emptied = 0  # lists that the latest sweep has left without items, and so taken away
        self._began_at = 0.0
        self._full = False  # whether it was said that there is no room for more
        self._rule_unchecked = False  # whether items came since the site's rule was held to what they have
        self._warned: set[str] = set()
        self._changed: list[str] = []  # items that were taken in since `take_changed`

    def start(self) -> None:
        """Begin to read items where the checkpoint says. Call it once, after the checkpoint is restored.

        Raises SettingsError where the encoder of texts cannot be loaded.
        """
        listable = self._learner.listable
        anew = NOT_ALL_KEPT if listable.attributes.unread else ""
        if listable.open_encoder():
            anew = anew or "their texts were encoded by another encoder, or by none"
        self._intake.start(anew=anew, prepare=None if listable.texts is None else self._prepare)
        self.check_again()

    def _prepare(self, records: Sequence[Record]) -> None:
        """Encodes the texts of items; in the feed's thread, so that no click waits for it."""
        assert self._learner.listable.texts is not None
        self._learner.listable.texts.of([item for item in map(self._intake.read, records) if isinstance(item, Item)])

    def check_again(self) -> None:
        """Lists may have come from elsewhere: those with items that are not available are looked for, and empty ones,
        which earlier versions left for users who had clicked everything."""
        has_rule = self._learner.listable.rule is not None  # perhaps another one than when the lists were written
        self._popular_asked = has_rule
        self._asked = self._asked or bool(self._learner.unavailable) or has_rule or self._settings.exclude_seen

    @property
    def sweeping(self) -> bool:
        """Whether lists remain to be looked at."""
        return self._asked or self._cursor is not None

    def take_in(self) -> bool:
        """Takes in the items that have come -> whether the popular list has to be written anew. Raises SourceError."""
        moved, items = False, []
        for _, item in self._intake.take():
            items.append(item)
            if item.available == (item.item_id in self._learner.unavailable):
                moved = self._move(item) or moved
        self._changed += [item.item_id for item in items]
        popular_asked, self._popular_asked = self._popular_asked, False
        return self._keep(items) or moved or popular_asked

    def take_changed(self) -> list[str]:
        """Returns the items that were taken in since the last call."""
        changed, self._changed = self._changed, []
        return changed

    def _keep(self, items: Sequence[Item]) -> bool:
        """Notes what items are, beside whether they are available -> whether the site's rule now decides otherwise."""
        if not items:
            if self._rule_unchecked and (wrong := self._learner.listable.warning()):
                self._warn_once(f"NEXTCLICK_LIST_FILTER, by the items that were read so far: {wrong}")
            self._rule_unchecked = False
            return False
        changes = self._learner.put_items(items)
        self._asked = self._asked or changes.excluded
        attributes = self._learner.listable.attributes
        if attributes.no_room:
            self._warn_once("not everything is known of all items: raise NEXTCLICK_ITEMS_HELD")
        if attributes.left_out:
            self._warn_once(
                f"no room for attributes of items ({', '.join(sorted(map(ascii, attributes.left_out)))}): "
                "raise NEXTCLICK_ITEM_ATTRIBUTES_MAX, or publish fewer"
            )
        self._rule_unchecked = True
        return changes.moved

    def _warn_once(self, text: str) -> None:
        kind = text[:20]
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s", text)

    def _move(self, item: Item) -> bool:
        """Notes that an item came or went -> whether there was room for that."""
        self._learner.set_available(item.item_id, item.available)
        if not item.available and item.item_id not in self._learner.unavailable:
            if not self._full:
                log.warning(
                    "%d items are not available, and there is no room for more: raise NEXTCLICK_ITEMS_HELD",
                    len(self._learner.unavailable),
                )
            self._full = True
            return False
        self._asked = self._asked or not item.available
        return True

    def sweep(self) -> list[str]:
        """Amends the next lists -> users whose list has become short. Raises ListsError; then all begins anew."""
        if self._cursor is None:
            self._asked, self._cursor, self._amended, self._began_at = False, 0, 0, time.monotonic()
            self.emptied = 0
        short: list[str] = []
        try:
            for _ in range(max(1, self._settings.sweep_lists_max // PAGE)):
                cursor, page = self._lists.page(self._cursor)
                amended = {user: less for user, top in page.items() if (less := self._without(top)) is not top}
                self._lists.amend(amended)
                self._amended += len(amended)
                self.emptied += sum(not less.items for less in amended.values())
                short += [user for user, less in amended.items() if 2 * len(less.items) < self._settings.list_size]
                self._cursor = cursor or None
                if self._cursor is None:
                    self._log_sweep()
                    break
        except ListsError:
            self._asked, self._cursor = True, None  # another server knows nothing of this cursor
            raise
        return short

    def _without(self, top: TopList) -> TopList:
        """The list without what must not be listed; the same one where it holds items, and none of these."""
        barred = self._learner.listable.barred(top.items)
        return top if top.items and not barred else top.without(barred)

    def _log_sweep(self) -> None:
        log.info(
            "%d items are not available; they were removed from %d lists within %.1f s",
            len(self._learner.unavailable), self._amended, time.monotonic() - self._began_at,
        )  # fmt: skip
