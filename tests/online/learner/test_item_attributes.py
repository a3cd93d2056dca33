"""What is known of items follows their latest records, whatever rows do, within its limits, and across a restart."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import settings as how
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from online.config.settings import Settings
from online.learner.attribute_columns import TAGS_MAX
from online.learner.item_attributes import TITLE_CHARACTERS_MAX, ItemAttributes
from stream.items import Item
from tests.online.filters import strategies

NOTHING = Item(item_id="x")
ROWS = 6


def attributes_of(**changed):
    return ItemAttributes(Settings(**{"items_held": 8, "item_attributes_max": 4, **changed}))


def again(attributes, **changed):
    """As a worker has it that begins from a checkpoint; rows are the caller's."""
    arrays, state = attributes.to_state()
    loaded = attributes_of(**changed)
    loaded.grow_rows(len(attributes.slots))
    loaded.load_state(arrays, state)
    return loaded


class Items(RuleBasedStateMachine):
    """Held to a dictionary of records, and an order of those without a row."""

    def __init__(self):
        super().__init__()
        self.attributes = attributes_of(item_attributes_max=100)
        self.attributes.grow_rows(ROWS)
        self.records: dict[str, Item] = {}
        self.rowless: OrderedDict[str, None] = OrderedDict()
        self.row_of: dict[str, int] = {}

    @rule(item=strategies.items)
    def record(self, item):
        empty = item.title is None and not item.tags and not item.attributes
        self.attributes.put(item, self.row_of.get(item.item_id, 0))
        if empty:
            self.records.pop(item.item_id, None)
            self.rowless.pop(item.item_id, None)
            return
        if item.item_id not in self.records and len(self.records) >= 8:
            oldest, _ = self.rowless.popitem(last=False)
            del self.records[oldest]
        self.records[item.item_id] = item
        if item.item_id not in self.row_of:
            self.rowless[item.item_id] = None
            self.rowless.move_to_end(item.item_id)

    @rule(number=st.integers(0, 11), row=st.integers(1, ROWS - 1))
    def row_changes_hands(self, number, row):
        item_id = f"i{number}"
        owners = {row: item_id for item_id, row in self.row_of.items()}
        if item_id in self.row_of:
            return
        if row in owners:
            del self.row_of[owners[row]]
            self.attributes.free_rows([row])
            if owners[row] in self.records:
                self.rowless[owners[row]] = None
        self.row_of[item_id] = row
        self.attributes.take_rows([row], [item_id])
        self.rowless.pop(item_id, None)

    @rule()
    def restart(self):
        self.attributes = again(self.attributes, item_attributes_max=100)
        self.attributes.take_rows(list(self.row_of.values()), list(self.row_of))

    @invariant()
    def all_is_known_that_the_records_say(self):
        assert len(self.attributes) == len(self.records)
        for number in range(12):
            record = self.records.get(f"i{number}", NOTHING)
            assert self.attributes.attributes(f"i{number}") == record.attributes
            assert self.attributes.title(f"i{number}") == (record.title or None)
            assert self.attributes.tags(f"i{number}") == list(dict.fromkeys(record.tags))
        for row in range(1, ROWS):
            owner = next((item_id for item_id, held in self.row_of.items() if held == row), "")
            assert self.attributes.slots[row] == self.attributes.slot_of(owner)

    @invariant()
    def tags_are_found_and_nothing_of_a_freed_slot_is_left(self):
        for tag in strategies.TAGS:
            found = {item_id for item_id in self.records if tag in self.records[item_id].tags}
            assert set(self.attributes.tagged(tag).tolist()) == set(map(self.attributes.slot_of, found))
        names = {name for record in self.records.values() for name in record.attributes}
        assert set(self.attributes.kinds()) - {"title"} == names
        arrays, _ = self.attributes.to_state()
        if not self.records:
            assert arrays == {}


Items.TestCase.settings = how(max_examples=60, stateful_step_count=30, deadline=None)
test_records_and_rows = Items.TestCase


def test_attributes_beyond_the_limit_are_left_out_until_there_is_room():
    attributes = attributes_of(item_attributes_max=2)
    attributes.put(Item(item_id="a", title="t", attributes={"one": 1.0, "two": "x", "three": True}), 0)
    attributes.put(Item(item_id="b", attributes={"one": "text", "three": 3.0}), 0)
    assert attributes.attributes("a") == {"one": 1.0, "two": "x"}
    assert attributes.attributes("b") == {"one": "text"}
    assert attributes.left_out == {"three"}
    attributes.put(Item(item_id="a", attributes={"one": 2.0}), 0)
    attributes.put(Item(item_id="b", attributes={"three": 3.0}), 0)
    assert attributes.attributes("b") == {"three": 3.0}
    assert attributes_of(item_attributes_max=0).put(Item(item_id="a", attributes={"one": 1.0}, title="t"), 0)


def test_titles_are_cut_and_tags_beyond_the_limit_left_out():
    attributes = attributes_of()
    tags = [f"t{number}" for number in range(3 * TAGS_MAX)]
    attributes.put(Item(item_id="a", title="é" * 1_000, tags=("x" * 1_000, "t0", *tags)), 0)
    assert attributes.title("a") == "é" * TITLE_CHARACTERS_MAX
    assert attributes.tags("a") == tags[:TAGS_MAX]


def test_an_item_without_a_row_makes_room_and_one_with_a_row_does_not():
    attributes = attributes_of(items_held=3)
    attributes.grow_rows(4)
    for item_id, row in (("a", 1), ("b", 0), ("c", 0)):
        attributes.put(Item(item_id=item_id, title=item_id), row)
    attributes.put(Item(item_id="b", title="B"), 0)  # now c has waited longest
    attributes.put(Item(item_id="d", title="d"), 0)
    assert [attributes.title(item_id) for item_id in "abcd"] == ["a", "B", None, "d"]
    assert (attributes.no_room, attributes.take_lost(), attributes.take_lost()) == (1, True, False)
    attributes.take_rows([2, 3], ["b", "d"])
    assert attributes.put(Item(item_id="e", title="e"), 0) == []
    assert [attributes.title(item_id) for item_id in "abde"] == ["a", "B", "d", None]


def test_a_checkpoint_is_the_same_whether_the_items_came_before_or_after_a_restart(same):
    one = attributes_of(items_held=100, item_attributes_max=100)
    other = attributes_of(items_held=100, item_attributes_max=100)
    random = np.random.default_rng(3)
    for step in range(300):
        number = int(random.integers(30))
        item = Item(item_id=f"i{number}")
        if random.random() < 0.7:
            values = {"price": float(number), "brand": f"b{random.integers(9)}", f"n{random.integers(4)}": True}
            item = Item(item_id=f"i{number}", title=f"t{step}", tags=(f"g{random.integers(9)}",), attributes=values)
        one.put(item, 0)
        other.put(item, 0)
        if step % 37 == 0:
            other = again(other, items_held=100, item_attributes_max=100)
    assert same(one.to_state()[0], other.to_state()[0])
    assert one.to_state()[1] == other.to_state()[1]


@pytest.mark.parametrize(
    ("state", "changed", "unread"),
    [(False, {}, True), (True, {}, False), (True, {"items_held": 9}, True), (True, {"item_attributes_max": 5}, True)],
)
def test_items_are_to_be_read_again_where_less_was_kept_of_them(state, changed, unread):
    attributes = attributes_of()
    attributes.put(Item(item_id="a", title="t"), 0)
    arrays, saved = attributes.to_state()
    loaded = attributes_of(**changed)
    loaded.load_state(arrays if state else {}, saved if state else None)
    assert loaded.unread is unread
    assert loaded.title("a") == ("t" if state else None)
