"""Rows against a dict of owners: what a micro-batch of clicks frees, takes and may be scored on."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from online.config.settings import Settings
from online.learner.item_rows import ItemRows
from stream.events import Click


def rows_of(**changed):
    return ItemRows(Settings(**{"items_held": 6, "item_idle_s_max": 1e6, **changed}))


def clicks_of(items, at=0.0):
    return [Click(user_id="a", item_id=f"i{item}", timestamp=at + number) for number, item in enumerate(items)]


def observe(items, clicks):
    """In a stream without gaps, whose active time is that of its clicks."""
    return items.observe(clicks, np.maximum.accumulate([click.timestamp for click in clicks]))


batches = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), max_size=8)


@given(batches, st.integers(1, 2), st.sampled_from([3.0, 1e6]))
def test_rows_are_of_their_items_and_changes_are_reported(batches, item_min_count, item_idle_s_max):
    items = rows_of(item_min_count=item_min_count, item_idle_s_max=item_idle_s_max)
    user_hashes = {}  # of rows, before each batch
    for number, batch in enumerate(batches):
        clicks = clicks_of(batch, 10.0 * number)
        clicked = observe(items, clicks)
        now = {row: items.vocabulary.item_of(row) for row in range(1, items.vocabulary.rows)}
        now = {row: item for row, item in now.items() if item is not None}
        assert len(now) <= 6
        lost = {row for row, item in user_hashes.items() if now.get(row) != item}
        assert lost <= set(clicked.freed)  # the others were taken and lost within the batch, or came back
        for at, (click, row, target) in enumerate(zip(clicks, clicked.rows, clicked.targets, strict=True)):
            again = click.item_id in [one.item_id for one in clicks[at + 1 :]]
            assert row == items.vocabulary.row_of(click.item_id) or (row == 0 and again)  # it waited, or lost another
            had = user_hashes.get(row) == click.item_id
            assert target == (row if had or row in clicked.rows[:at] else 0)
        mine = {row: item for row, item in now.items() if row in clicked.rows}
        changed = {row for row, item in mine.items() if user_hashes.get(row) != item}
        assert changed <= set(clicked.taken) == changed | (set(clicked.freed) & set(mine))
        user_hashes = now
    assert items.vocabulary.take_reset() == []


def test_an_item_may_get_back_the_row_that_it_has_just_lost():
    items = rows_of()
    observe(items, clicks_of(range(6)))
    row = items.vocabulary.row_of("i0")
    clicked = observe(items, clicks_of([0, 9], 10.0))
    assert row in clicked.freed
    assert row in clicked.taken
    assert clicked.rows[0] == row == items.vocabulary.row_of("i0")


def test_items_without_clicks_for_long_lose_their_rows():
    items = rows_of(item_idle_s_max=100.0)
    observe(items, clicks_of([1, 2]))
    assert observe(items, clicks_of([3], 90.0)).freed == []
    assert sorted(observe(items, clicks_of([3], 150.0)).freed) == [1, 2]
    assert len(items.vocabulary) == 1


def test_no_more_items_are_known_as_unavailable_than_may_have_rows():
    items = rows_of(items_held=2)
    for item in ("a", "b", "c", "a"):
        items.set_available(item, False)
    assert items.unavailable == {"a", "b"}
    items.set_available("a", True)
    items.set_available("never heard of", True)
    items.set_available("c", False)
    assert items.unavailable == {"b", "c"}


@given(batches, batches)
def test_restored_they_go_on_as_if_nothing_had_happened(before, after):
    items, again = rows_of(), rows_of()
    items.set_available("i3", False)
    for number, batch in enumerate(before):
        observe(items, clicks_of(batch, 10.0 * number))
    again.load_state(json.loads(json.dumps(items.to_state())))
    for number, batch in enumerate(after, len(before)):
        mine, its = (observe(one, clicks_of(batch, 10.0 * number)) for one in (items, again))
        assert [np.asarray(part).tolist() for part in mine] == [np.asarray(part).tolist() for part in its]
    assert again.to_state() == items.to_state()
