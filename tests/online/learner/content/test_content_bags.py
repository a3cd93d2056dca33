"""Bags of features: what is in them, in which order, and vectors and cosines as a slow version has them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.items import unit_vectors
from online.learner.content.bags import (
    BAG_MAX,
    FIELDS_FROM,
    GRAMS_FROM,
    KIND_WEIGHTS,
    ROWS,
    TAGS_FROM,
    WORDS_FROM,
    bag_of,
)
from online.learner.content.items import LATEST, WIDTH, ItemContent
from online.learner.content.kernels import PROFILE_DECAY, cosines, put_sides

NOW = 1_000.0
CATALOGUE = [
    ("Green tea, 100 g", ("tea", "drinks"), {"price": 4.5, "brand": "Lotus"}),
    ("Black tea", ("tea",), {"price": 4.6}),
    ("Kettle", ("kitchen",), {"price": 40.0, "organic": False}),
    (None, ("tea", "kitchen"), {}),
    ("Straße nach Süden", (), {"pages": -3.0}),
]


def kinds(bag):
    return np.searchsorted([WORDS_FROM, TAGS_FROM, FIELDS_FROM], bag, side="right")


def content_of(catalogue, vectors=()):
    content = ItemContent(seed=0, slots=len(catalogue) + 1)
    for slot, one in enumerate(catalogue, 1):
        content.put(slot, one, dict(vectors).get(slot), clicked=False, now=NOW)
    content.compose(range(1, len(catalogue) + 1))
    return content


def test_a_bag_has_each_feature_once_and_parts_of_words_last():
    bag, heads = bag_of("Tea tea TEA", ("Tea", "tea"), {"price": 4.0, "published_at": 12.0})
    assert len(bag) == len(set(bag.tolist()))
    assert heads == 3  # a tag, a price, a word; no time of publication
    assert set(kinds(bag[:heads])) == {1, 2, 3}
    assert (bag[heads:] < WORDS_FROM).all()
    assert (bag[heads:] >= GRAMS_FROM).all()


def test_case_and_form_of_letters_make_no_difference():
    assert bag_of("STRASSE", ("ﬁlm",), {})[0].tolist() == bag_of("straße", ("FILM",), {})[0].tolist()


def test_numbers_that_are_alike_share_a_feature_and_others_do_not():
    features = [bag_of(None, (), {"price": price})[0].tolist() for price in (100.0, 101.0, 500.0, -100.0)]
    assert features[0] == features[1]
    assert features[0] != features[2]
    assert features[0] != features[3]


def test_a_bag_is_bounded_and_whole_features_come_before_parts_of_words():
    long = " ".join(f"word{n}" for n in range(500))
    bag, heads = bag_of(long, tuple(f"tag{n}" for n in range(50)), {})
    assert len(bag) == BAG_MAX
    assert 0 < heads <= BAG_MAX


@pytest.mark.parametrize("title", ["", "\x00", "\ud800", "🫖🫖🫖", "a" * 10_000])
def test_any_text_makes_a_bag(title):
    bag, heads = bag_of(title, (title,), {title: title})
    assert 0 < heads <= len(bag) <= BAG_MAX


# Vectors and cosines


def slow_weights(catalogue):
    """Of each feature: its kind's weight times its idf."""
    bags = [set(bag_of(*one)[0].tolist()) for one in catalogue]
    return np.array(
        [KIND_WEIGHTS[f] * (np.log((len(bags) + 1) / (1 + sum(f in bag for bag in bags))) + 1) for f in range(ROWS)]
    )


def slow_bag(one, weights):
    vector = np.zeros(ROWS)
    for feature in set(bag_of(*one)[0].tolist()):
        vector[feature] = weights[feature]
    return vector


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_vectors_are_projections_of_weighted_bags():
    content, weights = content_of(CATALOGUE), slow_weights(CATALOGUE)
    table = unit_vectors(torch.arange(1, ROWS + 1), WIDTH, seed=0).numpy().astype(float)
    for slot, one in enumerate(CATALOGUE, 1):
        np.testing.assert_allclose(content.arrays.vectors[slot], unit(slow_bag(one, weights) @ table), atol=1e-5)
        assert content.arrays.norms[slot] == pytest.approx(np.linalg.norm(slow_bag(one, weights)), rel=1e-5)


def test_cosines_are_those_of_weighted_bags():
    content, weights = content_of(CATALOGUE), slow_weights(CATALOGUE)
    bags = [unit(slow_bag(one, weights)) for one in CATALOGUE]
    latest, slots_of = np.array([1, 3, 4, 0]), np.arange(len(CATALOGUE) + 1, dtype=np.int32)
    profile = unit(sum(PROFILE_DECAY**age * bags[row - 1] for age, row in enumerate(latest[:3])))
    sides = np.zeros((ROWS, 2), np.float32)
    scale = put_sides.py_func(content.arrays, slots_of, content.weights, latest, sides)
    for slot, bag in enumerate(bags, 1):
        found = cosines.py_func(content.arrays, slot, sides, scale)
        np.testing.assert_allclose(found, (bag @ bags[0], bag @ profile), atol=1e-5)


def test_a_given_vector_takes_part():
    vectors = {1: (1.0, 0.0, 0.0), 2: (0.9, 0.1, 0.0), 3: (-1.0, 0.0, 0.0)}
    content = content_of([(None, (), {})] * 3, vectors.items())
    alike = content.arrays.vectors[1:] @ content.arrays.vectors[1]
    assert alike[1] > 0.9
    assert alike[2] < -0.9


def test_an_item_with_a_vector_is_compared_by_the_mean_of_both_cosines():
    given = {1: (1.0, 0.0, 0.0), 2: (0.9, 0.5, 0.0), 3: (-1.0, 0.0, 0.0)}
    content, weights = content_of(CATALOGUE, given.items()), slow_weights(CATALOGUE)
    bags = [unit(slow_bag(one, weights)) for one in CATALOGUE]
    latest, slots_of = np.zeros((1, LATEST), np.int64), np.arange(len(CATALOGUE) + 1, dtype=np.int32)
    latest[0, 0] = 1
    rows = np.arange(1, len(CATALOGUE) + 1)
    gathered = SimpleNamespace(
        rows=rows, starts=np.array([0, len(rows)]), features=np.zeros((len(rows), 2), np.float32)
    )
    columns = content.columns(gathered, latest, slots_of, np.array([NOW]), (0, 1))
    for slot, bag in enumerate(bags, 1):
        by_bag, by_vector = bag @ bags[0], content.arrays.vectors[slot] @ content.arrays.vectors[1]
        expected = (by_bag + by_vector) / 2 if slot in given else by_bag
        np.testing.assert_allclose(columns[slot - 1, 1:3], expected, atol=1e-5)  # of the last item, and of the profile


def test_counts_by_feature_follow_items_that_come_change_and_go():
    content = content_of(CATALOGUE)
    content.observe(np.array([1, 1, 3]))
    content.put(2, ("Coffee", ("drinks",), {}), None, clicked=False, now=NOW)
    content.free(4)
    left = [CATALOGUE[0], ("Coffee", ("drinks",), {}), CATALOGUE[2], CATALOGUE[4]]
    expected, unclicked = np.zeros(ROWS), np.zeros(ROWS)
    for number, one in enumerate(left):
        expected[bag_of(*one)[0]] += 1
        if number in {1, 3}:
            unclicked[bag_of(*one)[0]] += 1
    assert (content.with_feature == expected).all()
    assert (content.unclicked == unclicked).all()
    assert len(content) == 4
    for slot in range(1, 6):
        content.free(slot)
    assert not content.with_feature.any()
    assert not content.unclicked.any()
    assert len(content) == content.totals[2] == 0
    assert not any(part.any() for part in content.arrays)
