"""No list holds an item that the site's rule excludes, whatever the item was before, also after a restart."""

import numpy as np
import pytest

from online.filters.evaluate import compiled
from online.learner.learner import Learner
from stream.items import Item
from tests.online.learner.conftest import click, learn, restarted, ring

RULE = "price <= 20 and tags none ('adult')"


def priced(number, price, **others):
    return Item(item_id=f"i{number}", attributes={"price": float(price)}, **others)


def listed(learner, users=("0", "1", "2")):
    """Every item that any user is shown."""
    rankings = [*learner.rank(users), learner.popular()]
    return {item for ranking in rankings for item in ranking.items}


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("first", ["items", "clicks"])
def test_lists_hold_what_the_rule_keeps_from_the_next_one_on(small, exclude_seen, first):
    settings = small(list_size=20, list_filter=RULE, exclude_seen=exclude_seen)
    learner = Learner(settings)
    items = [priced(number, 10 + number) for number in range(8)]  # 8 to 11 have no price
    clicks = ring(400, items=12)
    for step in (first, "items" if first == "clicks" else "clicks"):
        if step == "items":
            learner.put_items(items)
        else:
            learn(learner, clicks)
    fitting = {f"i{number}" for number in range(8)}
    assert listed(learner) == fitting
    learner.put_items([priced(2, 21), priced(3, 5, tags=("adult",)), priced(9, 20)])
    learner.put_items([Item(item_id="i4", available=False)])  # a tombstone: nothing is known any more
    expected = fitting - {"i2", "i3", "i4"} | {"i9"}
    for one in (learner, restarted(learner, settings), restarted(restarted(learner, settings), settings)):
        assert listed(one) == expected
        rankings = one.learn([click(0, 2, 1_000), click(1, 3, 1_001), click(0, 3, 1_002)]).rankings
        assert all(set(ranking.items) <= expected for ranking in rankings.values())
        one.put_items([priced(2, 1)])
        assert "i2" in listed(one, ("2",))


def test_an_item_that_gets_its_row_later_or_another_one_is_judged_by_what_is_known(small):
    learner = Learner(small(items_held=6, list_filter=RULE))
    learner.put_items([priced(number, 10) for number in range(1, 6)] + [priced(6, 30)])
    learn(learner, [click(0, item, item) for item in range(1, 7)])
    assert listed(learner, ("0",)) == {f"i{number}" for number in range(1, 6)}
    row = learner.vocabulary.row_of("i1")
    learner.learn([click(1, "new", 10)])  # takes the row of i1
    assert learner.vocabulary.row_of("inew") == row
    assert "inew" not in listed(learner, ("0", "1"))
    learner.learn([click(1, 1, 11)])  # which takes another
    assert "i1" in listed(learner, ("0", "1"))
    learner.learn([click(1, 6, 12), click(1, "other", 13), click(1, 1, 14)])
    assert not {"i6", "inew", "iother"} & listed(learner, ("0", "1"))


def test_availability_and_the_rule_are_told_apart_and_both_count(small):
    learner = Learner(small(list_filter=RULE))
    learner.put_items([priced(number, 10) for number in range(12)])
    learn(learner, ring(100, items=12))
    learner.set_available("i3", False)
    learner.put_items([priced(3, 30)])
    learner.set_available("i3", True)
    assert "i3" not in listed(learner)
    learner.put_items([priced(3, 3)])
    assert "i3" in listed(learner)


@pytest.mark.parametrize(("before", "after"), [(None, RULE), (RULE, None), (RULE, "price > 12")])
def test_a_rule_that_is_new_holds_from_the_start(small, before, after):
    learner = Learner(small(list_filter=before))
    learner.put_items([priced(number, 10 + 2 * number) for number in range(12)])
    learn(learner, ring(300, items=12))
    again = restarted(learner, small(list_filter=after))
    fitting = {None: range(12), RULE: range(6), "price > 12": range(2, 12)}[after]
    if before is not None:  # the popular list was ranked by the old rule, and is until the next click
        again.learn([click(0, 0, 1_000)])
    assert listed(again) <= {f"i{number}" for number in fitting}
    assert listed(again, ("0", "1")) == {f"i{number}" for number in fitting}


def test_without_a_rule_and_content_items_change_nothing_that_is_learned(small, same):
    plain, told = Learner(small(content=False)), Learner(small(content=False))
    told.put_items([priced(number, number, title="t", tags=("a",)) for number in range(0, 12, 2)])
    for clicks in (ring(200, items=12), ring(100, seed=1, items=12)):
        learn(plain, clicks)
        learn(told, clicks)
        told.put_items([priced(3, 3), Item(item_id="i0", available=True)])
    (arrays, _), (others, _) = plain.to_state(), told.to_state()
    assert same(arrays, {name: array for name, array in others.items() if not name.startswith("attributes.")})


def test_what_is_dropped_is_counted_by_its_first_reason(small):
    learner = Learner(small(list_filter="price <= 20", items_held=20))
    learner.put_items([priced(number, 15 + number, title=f"item {number}") for number in range(10)])
    learn(learner, ring(100, items=12))
    learner.set_available("i0", False)
    learner.set_available("i9", False)
    rows = np.array([learner.vocabulary.row_of(f"i{number}") for number in range(12)], np.int64)
    wanted = compiled("price >= 17 and title contains 'ITEM'")
    wanted.filter.check(learner.listable.attributes.kinds())
    applied = learner.listable.apply(wanted, rows)
    assert np.flatnonzero(applied.mask).tolist() == [2, 3, 4, 5]
    assert applied.dropped == {"availability": 2, "site_rule": 5, "request_filter": 1}
    assert learner.listable.apply(None, rows).dropped == {"availability": 2, "site_rule": 5, "request_filter": 0}
    names = [f"i{number}" for number in range(12)]
    by_items = learner.listable.apply_to_items(wanted, names)
    assert (by_items.mask == applied.mask).all()
    assert by_items.dropped == applied.dropped
    assert learner.listable.apply_to_items(wanted, ["unknown"]).dropped["site_rule"] == 1
    assert learner.listable.barred(names) == {f"i{number}" for number in (0, 6, 7, 8, 9, 10, 11)}


def test_an_item_that_made_room_for_another_is_looked_for_in_lists(small):
    learner = Learner(small(list_filter="price <= 20", items_held=2))
    learner.put_items([priced(1, 1), priced(2, 2)])
    changes = learner.put_items([priced(3, 3)])
    assert changes.excluded
    assert learner.listable.barred(["i1", "i2", "i3"]) == {"i1"}


def test_items_beyond_the_first_slots_can_be_published_again_without_a_rule(small):
    learner = Learner(small())
    for _ in range(2):
        learner.put_items([priced(number, number) for number in range(150)])
    assert not learner.listable.excludes("i149")
