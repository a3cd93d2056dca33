"""Which items lists may hold: those that are available and that the site's rule (`NEXTCLICK_LIST_FILTER`) keeps.

Letters: `V` rows of the vocabulary, `S` slots of attributes, `N` rows that are asked about.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.filters.evaluate import CompiledFilter, Rows, compiled
from online.filters.tokens import FilterError
from online.learner.arrays import below, joined
from online.learner.content.items import ItemContent
from online.learner.content.texts import TextVectors, text_of
from online.learner.item_attributes import ItemAttributes
from online.learner.item_rows import ItemRows
from stream.items import Item

#: Why an item is left out of a list, by number; 0: it is kept. The first that applies counts.
AVAILABILITY, SITE_RULE, REQUEST_FILTER = 1, 2, 3
REASONS = {AVAILABILITY: "availability", SITE_RULE: "site_rule", REQUEST_FILTER: "request_filter"}


class Applied(NamedTuple):
    """What filters make of rows."""

    mask: NDArray[np.bool_]  # (N,) which are kept
    reasons: NDArray[np.int8]  # (N,) why the others are not, as numbers of REASONS

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows were dropped for each reason."""
        counts = np.bincount(self.reasons, minlength=len(REASONS) + 1)
        return {name: int(counts[number]) for number, name in REASONS.items()}


class ItemChanges(NamedTuple):
    """What records of items have changed."""

    rows: list[int]  # whose items may be listed now and might not before, or the other way round
    excluded: bool  # whether an item is among the changed ones that the rule excludes now
    moved: bool  # whether the rule decides otherwise of an item than before


class Listable:
    """Availability, attributes and the site's rule, by row and by item."""

    def __init__(self, settings: Settings, items: ItemRows) -> None:
        self.items = items
        self.attributes = ItemAttributes(settings)
        self.content = ItemContent(settings.seed, self.attributes.capacity) if settings.content else None
        self.texts: TextVectors | None = None  # of items' vectors, where an encoder makes them
        if settings.content and settings.text_encoder is not None:
            self.texts = TextVectors(settings.text_encoder, settings.text_vectors_held)
        self._encoded_by = ""  # the identity of the encoder of a checkpoint's items; "": of none
        self.rule: CompiledFilter | None = None if settings.list_filter is None else compiled(settings.list_filter)
        self._unavailable = np.zeros(1, np.bool_)  # (V,)
        self._excluded = self._excluded_by_rule(np.arange(self.attributes.capacity))  # (S,)

    # The rule

    def _excluded_by_rule(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Availability is looked at by itself, so here each item counts as available."""
        if self.rule is None:
            return np.zeros(len(slots), np.bool_)
        return ~self.rule.mask(Rows(self.attributes, slots, np.ones(len(slots), np.bool_)))

    def put(self, items: Sequence[Item], now: float = 0.0) -> ItemChanges:
        """Takes in the latest records of items, in order. `now`: seconds since 1970, by the stream."""
        vectors = {} if self.texts is None else self.texts.of(items)
        slots: set[int] = set()
        before = dict.fromkeys([item.item_id for item in items], False)
        for item_id in before:
            before[item_id] = self.excludes(item_id)
        for item in items:
            changed = self.attributes.put(item, self.items.vocabulary.row_of(item.item_id))
            slots.update(changed)
            if self.content is not None:
                vector = vectors.get(text_of(item)) if item.vector is None else item.vector
                self._put_content(self.content, item, vector, changed, now)
        if self.content is not None:
            self.content.compose([slot for slot in sorted(slots) if self.content.arrays.known[slot]])
        if self.attributes.capacity > len(self._excluded):
            more = np.full(self.attributes.capacity - len(self._excluded), self._excluded[0])
            self._excluded = np.concatenate([self._excluded, more])
        if self.rule is None or not slots:
            return ItemChanges([], excluded=False, moved=False)
        at = np.array(sorted(slots), np.int64)
        self._excluded[at] = self._excluded_by_rule(at)
        moved = [item_id for item_id, was in before.items() if self.excludes(item_id) != was]
        rows = [row for row in map(self.items.vocabulary.row_of, moved) if row]
        # An item that made room for another may stand in lists, and nothing is known of it any more.
        lost = bool(self._excluded[0]) and self.attributes.take_lost()
        return ItemChanges(rows, excluded=lost or any(map(self.excludes, moved)), moved=bool(moved))

    def _put_content(
        self,
        content: ItemContent,
        item: Item,
        vector: Sequence[float] | NDArray[np.float16] | None,
        changed: Sequence[int],
        now: float,
    ) -> None:
        """Takes in what an item says; `changed`: the slots that its record has changed."""
        content.grow(self.attributes.capacity)
        slot = self.attributes.slot_of(item.item_id)
        for other in changed:
            if other != slot:
                content.free(other)
        if not slot:
            self.items.withdraw(item.item_id)
            return
        content.put(
            slot,
            (item.title, item.tags, item.attributes),
            vector,
            clicked=self.items.was_clicked(item.item_id),
            now=now,
        )
        (self.items.publish if content.arrays.known[slot] and item.available else self.items.withdraw)(item.item_id)

    def open_encoder(self) -> bool:
        """Loads the encoder of texts -> whether all items have to be read again, because a checkpoint has vectors of
        another encoder, or none. Raises SettingsError."""
        identity = "" if self.texts is None else self.texts.encoder.identity
        return identity != self._encoded_by

    def excludes(self, item_id: str) -> bool:
        """Whether the rule excludes an item, whether it is available or not."""
        return bool(self._excluded[self.attributes.slot_of(item_id)])

    def barred(self, item_ids: Sequence[str]) -> set[str]:
        """Which of these items no list may hold."""
        gone = self.items.unavailable.intersection(item_ids)
        if self.rule is not None:
            excluded = self._excluded[self.attributes.slots_of(item_ids)].tolist()
            gone |= {item_id for item_id, is_out in zip(item_ids, excluded, strict=True) if is_out}
        return gone

    def warning(self) -> str:
        """What is wrong with the rule, as far as the items show that are known; empty where nothing is."""
        if self.rule is None or not len(self.attributes):
            return ""
        try:
            self.rule.filter.check(self.attributes.kinds())
        except FilterError as error:
            return str(error)
        return ""

    # Rows

    def grow(self, rows: int) -> None:
        """Makes room for this many rows."""
        self.attributes.grow_rows(rows)
        if rows > len(self._unavailable):
            self._unavailable = np.concatenate([self._unavailable, np.zeros(rows - len(self._unavailable), np.bool_)])

    def free_rows(self, rows: Sequence[int]) -> None:
        """Rows that their items have lost."""
        self.attributes.free_rows(rows)
        self._unavailable[list(rows)] = False

    def blocked(self, rows: Sequence[int]) -> list[bool]:
        """Notes whose these rows are now -> whether each must not be listed."""
        items = self.items.vocabulary.items_of(rows)
        self.attributes.take_rows(rows, items)
        gone = [item in self.items.unavailable for item in items]
        self._unavailable[list(rows)] = gone
        if self.rule is None:
            return gone
        excluded = self._excluded[self.attributes.slots[list(rows)]].tolist()
        return [
            item is not None and (is_gone or is_out)
            for item, is_gone, is_out in zip(items, gone, excluded, strict=True)
        ]

    # Requests

    def apply(self, wanted: CompiledFilter | None, rows: NDArray[np.int64]) -> Applied:
        """Which rows a list may hold.

        Args:
            wanted: a request's filter, after `wanted.filter.check(attributes.kinds())`; None: no filter.
            rows: (N,) of items.
        """
        return self._apply(wanted, self.attributes.slots[rows].astype(np.int64), ~self._unavailable[rows])

    def apply_to_items(self, wanted: CompiledFilter | None, item_ids: Sequence[str]) -> Applied:
        """The same for items (N,) that may have no row."""
        available = np.array([item_id not in self.items.unavailable for item_id in item_ids], np.bool_)
        return self._apply(wanted, self.attributes.slots_of(item_ids), available)

    def _apply(self, wanted: CompiledFilter | None, slots: NDArray[np.int64], available: NDArray[np.bool_]) -> Applied:
        reasons = np.zeros(len(slots), np.int8)
        if wanted is not None:
            reasons[~wanted.mask(Rows(self.attributes, slots, available))] = REQUEST_FILTER
        if self.rule is not None:
            reasons[self._excluded[slots]] = SITE_RULE
        reasons[~available] = AVAILABILITY
        return Applied(reasons == 0, reasons)

    # A checkpoint

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays, state = self.attributes.to_state()
        parts = {"content": {} if self.content is None else self.content.to_state()}
        if self.texts is not None:
            parts["texts"], state["text_encoder"] = self.texts.to_state(), self.texts.identity
        return arrays | joined(parts), state

    def _load_content(self, content: ItemContent, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Loads what items say; from the attributes, where a checkpoint holds nothing else."""
        content.load_state(arrays, self.attributes.capacity)
        if arrays:
            return
        for item_id in self.attributes.items():
            title, tags = self.attributes.title(item_id), self.attributes.tags(item_id)
            content.put(
                self.attributes.slot_of(item_id),
                (title, tags, self.attributes.attributes(item_id)),
                None,
                clicked=self.items.was_clicked(item_id),
                now=0.0,
            )
        content.compose([])

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any] | None) -> list[int]:
        """Takes back what `to_state` gave, after the vocabulary has; the rule may be another one now -> the rows that
        may have to be blocked."""
        self.attributes.load_state(arrays, state)
        vocabulary = self.items.vocabulary
        if self.content is not None:
            self._load_content(self.content, below(arrays, "content"))
        self._encoded_by = "" if state is None else state.get("text_encoder", "")
        if self.texts is not None:
            self.texts.load_state(below(arrays, "texts"), self._encoded_by)
        self.grow(vocabulary.rows)
        rows = list(range(vocabulary.rows))
        self.attributes.take_rows(rows, vocabulary.items_of(rows))
        self._excluded = self._excluded_by_rule(np.arange(self.attributes.capacity))
        return [*map(vocabulary.row_of, self.items.unavailable)] if self.rule is None else rows
