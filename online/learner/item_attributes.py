"""What is known of items beside clicks: title, tags and attributes, in columns that filters go by.

An item has a *slot* of the columns from its first record on, whether it has a row of the vocabulary or not; `slots`
says which slot belongs to each row. So a row that changes hands costs one number, and an item that loses its row keeps
what is known of it, which its topic would not tell again. Memory is bounded: `items_held` items, `item_attributes_max`
attributes, and the limits of stream/items.py and online/learner/attribute_columns.py. Where there is no room, the item
that has had no row for longest makes it.

Letters: `V` rows of the vocabulary, `S` slots.
"""

import heapq
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.vocabulary import grown
from online.config.settings import Settings
from online.filters.expression import BOOLEAN, NUMBER, TEXT, TITLE, kind_of
from online.learner.arrays import below, joined
from online.learner.attribute_columns import (
    MAKERS,
    BooleanColumn,
    NumberColumn,
    TagColumn,
    TextColumn,
    texts_from_arrays,
    texts_to_arrays,
)
from stream.items import Item

TITLE_CHARACTERS_MAX = 200  # of a title that are kept
_SLOTS_FIRST = 64


class ItemAttributes:
    """Title, tags and attributes of items; the columns that filters are evaluated on."""

    def __init__(self, settings: Settings) -> None:
        self.items_max = settings.items_held
        self.attributes_max = settings.item_attributes_max
        self.slots = np.zeros(1, np.int32)  # (V,) of each row, 0 where nothing is known of its item
        self.unread = False  # whether items were read by a worker that kept nothing, or less, of them
        self.no_room = 0  # items of which nothing is known any more, for lack of room
        self._lost = False  # whether that happened since `take_lost`
        self.left_out: set[str] = set()  # attributes beyond `attributes_max`, the first few of them
        self._clear()

    def _clear(self) -> None:
        self._slot_of: dict[str, int] = {}
        self._items: list[str] = [""]  # by slot; "": free
        self._free: list[int] = []  # a heap
        self._rowless: OrderedDict[str, None] = OrderedDict()  # items without a row, longest first
        self._columns: dict[tuple[str, str], NumberColumn | BooleanColumn | TextColumn] = {}  # by name and kind
        self._tags = TagColumn(_SLOTS_FIRST)
        self._saved: tuple[dict[str, NDArray[Any]], dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Items of which something is known."""
        return len(self._slot_of)

    # What is known

    def slot_of(self, item_id: str) -> int:
        """The item's slot, 0 where nothing is known of it."""
        return self._slot_of.get(item_id, 0)

    def slots_of(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        return np.fromiter((self._slot_of.get(item_id, 0) for item_id in item_ids), np.int64, len(item_ids))

    def item_at(self, slot: int) -> str:
        """Empty: the slot is free."""
        return self._items[slot]

    def items(self) -> list[str]:
        """Items of which something is known, in no certain order."""
        return list(self._slot_of)

    def title(self, item_id: str) -> str | None:
        """None: not known."""
        column, slot = self.texts(TITLE), self.slot_of(item_id)
        return column.text_of(int(column.codes[slot])) if column is not None and column.codes[slot] else None

    def tags(self, item_id: str) -> list[str]:
        """In the order of the record."""
        return self._tags.tags_of(self.slot_of(item_id))

    def attributes(self, item_id: str) -> dict[str, float | str | bool]:
        """By name, in no certain order."""
        found: dict[str, float | str | bool] = {}
        slot = self.slot_of(item_id)
        for (name, _), column in self._columns.items():
            if isinstance(column, TextColumn):
                if column.codes[slot] and name != TITLE:
                    found[name] = column.text_of(int(column.codes[slot]))
            elif isinstance(column, BooleanColumn):
                if column.values[slot] >= 0:
                    found[name] = bool(column.values[slot])
            elif not np.isnan(column.values[slot]):
                found[name] = float(column.values[slot])
        return found

    def kinds(self) -> dict[str, set[str]]:
        """Of each attribute, the kinds of values that items have of it; what `Filter.check` takes."""
        found: dict[str, set[str]] = {}
        for name, kind in self._columns:
            found.setdefault(name, set()).add(kind)
        return found

    # Columns, as filters need them (online.filters.evaluate.Columns)

    def numbers(self, name: str) -> NDArray[np.float64] | None:
        column = self._columns.get((name, NUMBER))
        return column.values if isinstance(column, NumberColumn) else None

    def booleans(self, name: str) -> NDArray[np.int8] | None:
        column = self._columns.get((name, BOOLEAN))
        return column.values if isinstance(column, BooleanColumn) else None

    def texts(self, name: str) -> TextColumn | None:
        column = self._columns.get((name, TEXT))
        return column if isinstance(column, TextColumn) else None

    def tagged(self, tag: str) -> NDArray[np.uint32]:
        return self._tags.tagged(tag)

    def tag_codes(self) -> NDArray[np.int32]:
        """Numbers of the tags of each slot, (S, ·); 0 beyond."""
        return self._tags.codes

    def tag_counts(self) -> NDArray[np.uint8]:
        return self._tags.counts

    @property
    def capacity(self) -> int:
        """S: the slots that there is room for."""
        return len(self._tags.counts)

    # Records

    def put(self, item: Item, row: int) -> list[int]:
        """Takes in the latest record of an item, which says all there is -> slots whose content has changed.

        Args:
            item: as it was read. Where it has neither title, tags, attributes nor vector, its slot is freed.
            row: of the item, 0 where it has none.
        """
        self._saved = None
        slot = self.slot_of(item.item_id)
        if item.title is None and not item.tags and not item.attributes and item.vector is None:
            if not slot:
                return []
            self._free_slot(slot)
            self.slots[row] = 0
            return [slot]
        changed = []
        if not slot:
            while len(self) >= self.items_max:
                self.no_room += 1
                self._lost = True
                if not self._rowless:  # each has a row
                    return []
                changed.append(self._slot_of[next(iter(self._rowless))])
                self._free_slot(changed[-1])
            slot = self._take_slot(item.item_id)
            if row:
                self.slots[row] = slot
        if not row:
            self._rowless[item.item_id] = None
            self._rowless.move_to_end(item.item_id)
        self._write(slot, item)
        return [*changed, slot]

    def _write(self, slot: int, item: Item) -> None:
        values: dict[tuple[str, str], float | str | bool] = {
            (name, kind_of(value)): value for name, value in item.attributes.items()
        }
        if item.title:
            values[TITLE, TEXT] = item.title[:TITLE_CHARACTERS_MAX]
        for key in [key for key in self._columns if key not in values]:
            self._put(key, slot, None)
        for key, value in values.items():
            self._put(key, slot, value)
        self._tags.put(slot, item.tags)

    def _put(self, key: tuple[str, str], slot: int, value: float | str | bool | None) -> None:
        """A value, or none, of one column, which is there as long as it has values."""
        column = self._columns.get(key)
        if column is None:
            names = {name for name, _ in self._columns} - {TITLE}
            if key[0] not in {*names, TITLE} and len(names) >= self.attributes_max:
                if len(self.left_out) < self.attributes_max + 1:
                    self.left_out.add(key[0])
                return
            column = self._columns[key] = MAKERS[key[1]](self.capacity)
        column.put(slot, value)
        if not column.held:
            del self._columns[key]

    def _take_slot(self, item_id: str) -> int:
        if self._free:
            slot = heapq.heappop(self._free)
            self._items[slot] = item_id
        else:
            slot = len(self._items)
            self._items.append(item_id)
            self._grow(len(self._items))
        self._slot_of[item_id] = slot
        return slot

    def _grow(self, slots: int) -> None:
        if slots > self.capacity:
            room = grown(slots, self.capacity)
            for column in (*self._columns.values(), self._tags):
                column.grow(room)

    def _free_slot(self, slot: int) -> None:
        self._write(slot, Item(item_id="-"))
        item_id, self._items[slot] = self._items[slot], ""
        del self._slot_of[item_id]
        self._rowless.pop(item_id, None)
        heapq.heappush(self._free, slot)

    def take_lost(self) -> bool:
        """Whether something that was known of an item was given up since the last call, for lack of room."""
        lost, self._lost = self._lost, False
        return lost

    # Rows

    def grow_rows(self, rows: int) -> None:
        """Makes room for this many rows."""
        if rows > len(self.slots):
            self.slots = np.concatenate([self.slots, np.zeros(rows - len(self.slots), np.int32)])

    def free_rows(self, rows: Sequence[int]) -> None:
        """Rows that their items have lost."""
        for row in rows:
            slot = int(self.slots[row])
            if slot:
                self.slots[row] = 0
                self._rowless[self._items[slot]] = None
                self._saved = None

    def take_rows(self, rows: Sequence[int], items: Sequence[str | None]) -> None:
        """Rows that belong to these items now; None: to none."""
        for row, item_id in zip(rows, items, strict=True):
            slot = 0 if item_id is None else self.slot_of(item_id)
            self.slots[row] = slot
            if slot and self._rowless.pop(str(item_id), "") is None:
                self._saved = None

    # A checkpoint

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, none where nothing is known, and a JSON object."""
        limits = {"items": self.items_max, "attributes": self.attributes_max}
        if not self._slot_of:
            return {}, {"columns": [], **limits}
        if self._saved is None:
            slots = len(self._items)
            rowless = np.fromiter((self._slot_of[item] for item in self._rowless), np.int32, len(self._rowless))
            parts = {str(at): column.to_arrays(slots) for at, column in enumerate(self._columns.values())}
            parts |= {"tags": self._tags.to_arrays(slots), "items": texts_to_arrays(self._items)}
            self._saved = joined(parts) | {"rowless": rowless}, {"columns": [*map(list, self._columns)], **limits}
        arrays, state = self._saved
        return dict(arrays), state

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any] | None) -> None:
        """Takes back what `to_state` gave; None: of a checkpoint that holds nothing of items. `take_rows` follows."""
        self._clear()
        self.slots[:] = 0
        limits = {"items": self.items_max, "attributes": self.attributes_max}
        self.unread = state is None or any(state[name] != value for name, value in limits.items())
        if state is None or not arrays:
            return
        self._items = texts_from_arrays(below(arrays, "items"))
        self._slot_of = {item_id: slot for slot, item_id in enumerate(self._items) if item_id}
        self._free = [slot for slot, item_id in enumerate(self._items) if not item_id and slot]
        self._rowless = OrderedDict.fromkeys(self._items[slot] for slot in arrays["rowless"].tolist())
        self._tags.load(below(arrays, "tags"))
        for at, (name, kind) in enumerate(state["columns"]):
            column = self._columns[name, kind] = MAKERS[kind](0)
            column.load(below(arrays, str(at)))
        room = grown(len(self._items), _SLOTS_FIRST)
        for each in (*self._columns.values(), self._tags):
            each.grow(room)
