"""Items like an item, and what is popular, trending and new."""

import math

import numpy as np
import pytest

from online.learner.learner import Learner
from online.learner.similar import latest, overlaps, popular, similar, trending
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
    found = similar(learner, "i7", "followed", 3)
    assert items(found, learner)[0] == "i8"
    table, row = learner.store.tables.first, learner.vocabulary.row_of("i7")
    assert found.scores[0] == pytest.approx(table.counts[row, : table.used[row]].max() / table.totals[row])
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


@pytest.mark.parametrize("by", ["followed", "near", "content"])
def test_of_an_unknown_item_nothing_is_alike(learner, by):
    learn(learner, ring(100))
    assert not len(similar(learner, "never", by).rows)


def test_an_unknown_way_is_refused(learner):
    with pytest.raises(ValueError, match="by must be one of followed, near, content, not 'x'"):
        similar(learner, "i1", "x")


def ways(learner):
    yield from (lambda k, where, by=by: similar(learner, "i7", by, k, where) for by in ("followed", "near", "content"))
    yield lambda k, where: popular(learner, k, where)
    yield lambda k, where: trending(learner, k, where, clicks_min=1)
    yield lambda k, where: latest(learner, k, where)


def test_filters_and_availability_hold_in_all_lists(learner):
    random = np.random.default_rng(1)
    learn(learner, [click(n % 8, random.integers(0, 30), n) for n in range(1, 500)])
    described(learner)
    learner.set_available("i8", available=False)
    blocked = learner.vocabulary.row_of("i8")
    for ranked in ways(learner):
        everything = ranked(100, None)
        assert len(everything.rows)
        assert blocked not in everything.rows
        assert len(set(everything.rows.tolist())) == len(everything.rows)
        assert (everything.scores > 0).all()
        assert (np.diff(everything.scores) <= 0).all()
        even = everything.rows % 2 == 0
        assert ranked(100, lambda rows: rows % 2 == 0).rows.tolist() == everything.rows[even].tolist()
        assert ranked(2, None).rows.tolist() == everything.rows[:2].tolist()
        assert not len(ranked(0, None).rows)
        assert not len(ranked(5, lambda rows: np.zeros(len(rows), bool)).rows)


def test_an_empty_learner_lists_nothing(small):
    for ranked in ways(Learner(small())):
        assert not len(ranked(10, None).rows)


def test_popular_is_the_order_of_recent_clicks(learner):
    clicks = [click("u", item, at) for at, item in enumerate([1] * 5 + [2] * 9 + [3] * 2)]
    learn(learner, clicks)
    assert items(popular(learner), learner)[:3] == ["i2", "i1", "i3"]


def test_what_grows_is_trending_and_what_is_always_popular_is_not(small):
    learner = Learner(small(popularity_half_lives=(20, 200)))
    random = np.random.default_rng(0)
    steady = [click(f"u{n % 9}", random.integers(0, 4), n) for n in range(400)]
    rising = [click(f"u{n % 9}", 20 if n % 2 else random.integers(0, 4), 400 + n) for n in range(40)]
    once = [click("u1", 30, 441)]
    learn(learner, steady + rising + once)
    found = trending(learner)
    assert items(found, learner)[0] == "i20"
    assert "i30" not in items(found, learner)  # one click is no trend
    assert "i30" in items(trending(learner, clicks_min=1), learner)
    assert set(items(popular(learner), learner)[:5]) >= {"i0", "i1", "i2", "i3"}


def test_latest_is_by_the_first_click(learner):
    learn(learner, [click("u", item, at) for at, item in enumerate([5, 6, 5, 7, 5, 5, 6], 1)])
    assert items(latest(learner, 3), learner) == ["i7", "i6", "i5"]
