"""Items like an item."""

import math

import numpy as np
import pytest

from online.learner.facts.tables import neighbours
from online.learner.learner import Learner
from online.learner.similar import overlaps, similar
from stream.items import Item
from tests.online.learner.conftest import click, learn, ring

BRANDS = ("acme", "bolt", "core")


def items(found, learner):
    return found.items(learner)


def described(learner, count=40, seed=0):
    random = np.random.default_rng(seed)
    records = [
        Item(
            item_id=f"i{number}",
            title=f"title {number % 3}",
            tags=tuple(random.choice(list("abcdefgh"), random.integers(0, 4), replace=False)),
            attributes={"brand": BRANDS[number % 3], "price": float(number), "new": bool(number % 2)}
            if number % 5
            else {},
        )
        for number in range(count)
    ]
    learner.put_items(records)
    return records


def overlap_by_definition(records, one, other):
    """Weighted Jaccard in plain Python."""
    things = {record.item_id: {("tag", tag) for tag in record.tags} for record in records}
    for record in records:
        things[record.item_id] |= {(name, value) for name, value in record.attributes.items() if name != "price"}
    known = [record for record in records if record.tags or record.attributes or record.title]
    prices = {record.item_id: record.attributes.get("price") for record in records}
    deviation = np.std([price for price in prices.values() if price is not None])

    def weight(thing):
        return math.log(1 + len(known) / sum(thing in those for those in things.values()))

    a, b = one.item_id, other.item_id
    ours = {name for name, _ in things[a]} | {"tag"}  # attributes that the item has
    theirs = {thing for thing in things[b] if thing[0] in ours}
    common = sum(weight(thing) for thing in things[a] & theirs)
    union = sum(weight(thing) for thing in things[a] | theirs)
    # Two different values of one attribute weigh twice in a union.
    if prices[a] is not None:
        alike = math.exp(-abs(prices[a] - prices[b]) / deviation) if prices[b] is not None else 0.0
        common += alike
        union += 1 + (prices[b] is not None) - alike
    return common / union if union else 0.0


def test_what_follows_an_item_is_found_with_its_share(learner):
    learn(learner, ring(600))
    found = similar(learner, "i7", "follows", 3)
    assert items(found, learner)[0] == "i8"
    table, row = learner.store.tables.first, learner.vocabulary.row_of("i7")
    assert found.scores[0] == pytest.approx(neighbours(table, row)[1].max() / table.totals[row])
    assert (np.diff(found.scores) <= 0).all()


def test_what_occurs_near_an_item_stands_on_both_sides(learner):
    learn(learner, ring(600, users=1))
    found = items(similar(learner, "i7", "near", 4), learner)
    assert {"i6", "i8"} == set(found[:2])
    assert "i7" not in found


def test_overlaps_are_the_weighted_jaccard_of_their_definition(learner):
    records = described(learner)
    attributes = learner.listable.attributes
    for one in records:
        if not attributes.slot_of(one.item_id):
            continue
        got = overlaps(attributes, one.item_id)
        for other in records:
            slot = attributes.slot_of(other.item_id)
            expected = overlap_by_definition(records, one, other)
            assert got[slot] == pytest.approx(expected, abs=1e-9), (one, other)


def test_content_is_known_of_an_item_without_clicks(learner):
    learn(learner, ring(100))
    described(learner)
    learner.put_items([Item(item_id="unclicked", tags=("a", "b"), attributes={"brand": "acme"})])
    found = similar(learner, "unclicked", "content", 5)
    assert len(found.rows) == 5
    best = found.items(learner)[0]
    tags, attributes = learner.listable.attributes.tags(best), learner.listable.attributes.attributes(best)
    assert {"a", "b"} & set(tags) or attributes.get("brand") == "acme"


def test_content_without_attributes_goes_by_vectors(learner):
    learn(learner, ring(100))
    with_vectors = similar(learner, "i3", "content", 40)
    vectors = learner.weights.vectors.vectors.detach().numpy()
    row = learner.vocabulary.row_of("i3")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    expected = sorted(
        (float(unit[other] @ unit[row]) for other in range(1, learner.vocabulary.rows) if other != row), reverse=True
    )
    assert with_vectors.scores == pytest.approx([score for score in expected if score > 0], abs=1e-6)


@pytest.mark.parametrize("by", ["follows", "near", "content", "all"])
def test_of_an_unknown_item_nothing_is_alike(learner, by):
    learn(learner, ring(100))
    assert not len(similar(learner, "never", by).rows)


def test_an_unknown_way_is_refused(learner):
    with pytest.raises(ValueError, match="by must be one of follows, near, content, all, not 'x'"):
        similar(learner, "i1", "x")


def ways(learner):
    for by in ("follows", "near", "content", "all"):
        yield by, lambda k, where, by=by: similar(learner, "i7", by, k, where)


def test_filters_and_availability_hold_in_all_lists(learner):
    random = np.random.default_rng(1)
    learn(learner, [click(n % 8, random.integers(0, 30), n) for n in range(1, 500)])
    described(learner)
    learner.set_available("i8", available=False)
    blocked = learner.vocabulary.row_of("i8")
    for by, ranked in ways(learner):
        everything = ranked(100, None)
        assert len(everything.rows)
        assert blocked not in everything.rows
        assert len(set(everything.rows.tolist())) == len(everything.rows)
        assert (everything.scores > 0).all()
        assert (np.diff(everything.scores) <= 0).all()
        even = everything.rows[everything.rows % 2 == 0]
        found = ranked(100, lambda rows: rows % 2 == 0).rows
        if by == "all":  # ranks are among what passes, so that an item that does not pass takes no place
            assert set(found.tolist()) == set(even.tolist())
        else:
            assert found.tolist() == even.tolist()
        assert ranked(2, None).rows.tolist() == everything.rows[:2].tolist()
        assert not len(ranked(0, None).rows)
        assert not len(ranked(5, lambda rows: np.zeros(len(rows), bool)).rows)


def test_an_empty_learner_lists_nothing(small):
    for _, ranked in ways(Learner(small())):
        assert not len(ranked(10, None).rows)


def test_all_ways_together_list_first_what_several_agree_on(learner):
    learn(learner, ring(600, users=1))
    learner.put_items([Item(item_id=item, tags=("t",)) for item in ("i7", "i8", "i30")])
    found = similar(learner, "i7", "all", 50)
    each = {by: similar(learner, "i7", by, 200).items(learner) for by in ("follows", "near", "content")}
    assert items(found, learner)[0] == "i8"  # follows, is near, and has the tag
    assert set(items(similar(learner, "i7", "all", 1_000), learner)) == set().union(*each.values())
    worth = {
        item: sum(61 / (61 + one.index(item)) for one in each.values() if item in one) / 3 for item in each["near"]
    }
    for item, score in zip(items(found, learner), found.scores, strict=True):
        assert score == pytest.approx(worth.get(item, score))
    assert found.scores[0] <= 1
