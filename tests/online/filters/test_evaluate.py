"""Masks over columns are what the slow evaluator says item by item, whatever the items went through before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.config.settings import Settings
from online.filters.evaluate import COMPILED_HELD, Rows, compiled
from online.filters.itemwise import keeps, truth
from online.filters.tokens import FilterError
from online.learner.item_attributes import ItemAttributes
from stream.items import Item
from tests.online.filters.strategies import filters, items


def known(settings, records):
    """The attributes of some items, and the latest record of each."""
    attributes = ItemAttributes(settings)
    for item in records:
        attributes.put(item, 0)
    return attributes, {item.item_id: item for item in records}


def rows_of(attributes, some):
    available = np.array([item.available for item in some], np.bool_)
    return Rows(attributes, attributes.slots_of([item.item_id for item in some]), available)


@given(st.data())
def test_a_mask_is_what_the_slow_evaluator_says(data):
    attributes, latest = known(Settings(), data.draw(st.lists(items, max_size=20)))
    asked = [*latest.values(), Item(item_id="never seen")]
    for text in data.draw(st.lists(filters, min_size=1, max_size=4)):
        one = compiled(text)
        expected = [truth(one.filter.root, item) for item in asked]
        found = one.evaluate(rows_of(attributes, asked))
        assert [True if yes else False if no else None for yes, no in zip(*found, strict=True)] == expected
        assert one.mask(rows_of(attributes, asked)).tolist() == [keeps(one.filter.root, item) for item in asked]
        assert one.mask(rows_of(attributes, [])).tolist() == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("price <= 20", "b"),
        ("not price <= 20", "c"),  # of a nothing is known, d has a text
        ("not (price <= 20 or price > 20)", ""),
        ("price <= 20 or available", "abc"),
        ("price <= 20 or not price <= 20", "bc"),
        ("missing(price)", "a"),
        ("price != 20", "bc"),
        ("price == '7'", "d"),
        ("price in (7, '7', 30)", "bcd"),
        ("price not in (7, '7')", "c"),
        ("price not in (7)", "c"),
        ("tags none ('tea')", "ad"),
        ("not tags any ('tea')", "ad"),
        ("tags all ('tea', 'hot')", "b"),
        ("missing(tags)", "ad"),
        ("title contains 'KETT'", "b"),
        ("title < 'B'", "b"),
        ("organic", "c"),
        ("not organic", "b"),
        ("organic != true", "b"),
        ("available", "abc"),
        ("price < 1e300 and (organic or missing(organic))", "c"),
    ],
)
def test_missing_values_are_unknown_and_what_is_unknown_is_not_kept(small, text, kept):
    records = [
        Item(item_id="b", title="A kettle", tags=("tea", "hot"), attributes={"price": 7.0, "organic": False}),
        Item(item_id="c", title="Cup", tags=("tea",), attributes={"price": 30.0, "organic": True}),
        Item(item_id="d", available=False, attributes={"price": "7"}),
    ]
    attributes, _ = known(small(), records)
    asked = [Item(item_id="a"), *records]
    mask = compiled(text).mask(rows_of(attributes, asked))
    assert "".join(item.item_id for item, is_kept in zip(asked, mask, strict=True) if is_kept) == kept


def test_a_filter_is_compiled_once_and_the_number_held_is_bounded():
    assert compiled("price < 1") is compiled("price < 1")
    for number in range(2 * COMPILED_HELD):
        compiled(f"price < {number}")
    assert compiled.cache_info().currsize == COMPILED_HELD
    for _ in range(2):
        with pytest.raises(FilterError):
            compiled("price <")
