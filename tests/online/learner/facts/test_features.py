"""The table of the ranker's inputs says what stands in which column. That what is counted is what its name says is held
by test_gather.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.facts.features import (
    COLUMNS,
    COUNTED,
    LIFT,
    NETWORK,
    OWN_DECAY,
    OWN_HEADS,
    OWN_STARTS,
    PARTS,
    WORLD_HEADS,
    WORLD_STARTS,
    QueryContext,
    RawFeatures,
    counted,
    features,
    fill_columns,
    fill_timed,
)
from online.learner.facts.gather import NEAR_DECAY
from online.learner.facts.items import empty_items
from online.learner.facts.tables import THIRD_FROM, THIRD_TO

HALF_LIVES = (7, 90, 400)
ROWS = 30
TIMED = [feature.timed for feature in COUNTED]


def some_values(seed, size):
    """Values of candidates, of a user and of items, as they may come: many are 0."""
    random = np.random.default_rng(seed)

    def counts(kind=np.float32):
        return (random.integers(0, 40, size) * (random.random(size) < 0.6)).astype(kind)

    newest_at = 1e9 + random.integers(0, 10**6, size).astype(np.float64)
    raw = RawFeatures(
        random.permutation(np.arange(1, ROWS))[:size].astype(np.int32),
        *(counts() * np.float32(random.random()) for _ in range(6)),
        counts(),
        counts(np.int32),
        newest_at,
        newest_at - random.integers(-100, 10**6, size),
    )
    items = empty_items(ROWS, HALF_LIVES)
    items.clicks[:] = random.integers(0, 99, ROWS)
    items.first_at[:], items.last_at[:] = random.integers(0, 10**6, (2, ROWS))
    items.popular[:], items.weights[:] = random.random((ROWS, 3)) * 50, random.random(3) * 9 + 1
    return raw, context(random, raw), items


def context(random, raw):
    last, before = (int(row) for row in random.choice(np.append(raw.rows, [0, 0]), 2))
    log_length, gap, log_first = (float(value) for value in random.random(3) * 9)
    now, active = 1e9 + float(random.integers(0, 10**6)), float(random.integers(0, 10**6))
    first, second, near, taste = (float(value) for value in random.random(4) * 99)
    return QueryContext(last, before, log_length, gap, now, active, first, second, log_first, near, taste)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 20))
def test_each_column_holds_what_its_feature_says(seed, size):
    raw, whom, items = some_values(seed, size)
    found = np.full((size, len(counted(HALF_LIVES))), np.nan, np.float32)
    fill_columns(raw, size, whom, items, found)
    assert not np.isnan(found).any()
    for feature in COUNTED:
        expected = [feature.fill(raw, c, whom, items) for c in range(size)]
        np.testing.assert_allclose(found[:, COLUMNS[feature.name]], np.array(expected, np.float32), rtol=1e-6)
    for number in range(len(HALF_LIVES)):
        popularity = items.popular[raw.rows, number] / items.weights[number]
        np.testing.assert_allclose(found[:, len(COUNTED) + number], np.log1p(popularity), rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_at_another_moment_exactly_the_columns_declared_as_timed_are_others(seed):
    raw, whom, items = some_values(seed, 20)
    found, again = np.zeros((2, 20, len(counted(HALF_LIVES))), np.float32)
    fill_columns(raw, 20, whom, items, found)
    later = whom._replace(now=whom.now + 5_000, active=whom.active + 5_000, gap=whom.gap + 1)
    fill_columns(raw, 20, later, items, again)
    moved = (found != again).any(0)
    assert not (moved & ~np.append(TIMED, [False] * len(HALF_LIVES))).any()
    fill_timed(raw, 20, later, items, found)
    assert np.array_equal(found, again)
    written = np.full_like(found, np.nan)
    fill_timed(raw, 20, later, items, written)
    assert (~np.isnan(written)).all(0).tolist() == TIMED + [False] * len(HALF_LIVES)
    assert np.isnan(written).any(0).tolist() == [not timed for timed in TIMED] + [True] * len(HALF_LIVES)


def test_every_timed_column_moves_with_the_moment():
    raw, whom, items = some_values(5, 20)
    early, late = np.zeros((2, 20, len(counted(HALF_LIVES))), np.float32)
    fill_timed(raw, 20, whom._replace(now=1e9 + 2e6, active=2e6), items, early)
    fill_timed(raw, 20, whom._replace(now=1e9 + 9e6, active=9e6, gap=whom.gap + 1), items, late)
    assert (early != late).any(0).tolist() == TIMED + [False] * len(HALF_LIVES)


def test_columns_are_numbered_in_the_order_of_the_table():
    table = features(HALF_LIVES)
    assert table[: len(COUNTED)] == COUNTED
    assert [COLUMNS[feature.name] for feature in COUNTED] == list(range(len(COUNTED)))
    assert counted(HALF_LIVES) == table[: len(COUNTED) + len(HALF_LIVES)]
    assert all(feature.fill is not None for feature in COUNTED)
    assert all(feature.fill is None for feature in table[len(COUNTED) :])


def test_every_input_has_a_name_of_its_own_and_is_explained():
    table = features(HALF_LIVES)
    assert len({feature.name for feature in table}) == len(table)
    assert all(feature.name.isidentifier() and feature.meaning and feature.transformation for feature in table)
    assert len(table) == len(COUNTED) + len(HALF_LIVES) + len(OWN_HEADS) + len(WORLD_HEADS) + 2
    assert {LIFT, NETWORK} <= set(table)


def test_numbers_that_the_table_names_are_those_of_the_code():
    table = {feature.name: feature for feature in features(HALF_LIVES)}
    assert f"{NEAR_DECAY}^age" in table["near"].meaning
    assert f"{OWN_DECAY}^" in table["own_decayed"].transformation
    assert f"{THIRD_FROM + 1} to {THIRD_TO} clicks" in table["followed_third"].meaning
    for number, half_life in enumerate(HALF_LIVES):
        feature = table[f"popularity_{half_life}"]
        assert feature == features(HALF_LIVES[number:])[len(COUNTED)]
        assert f"every {half_life} later" in feature.meaning


@pytest.mark.parametrize(
    ("whose", "heads", "starts"), [("own", OWN_HEADS, OWN_STARTS), ("world", WORLD_HEADS, WORLD_STARTS)]
)
def test_each_head_is_described_by_its_gains(whose, heads, starts):
    recalled = [feature for feature in features(HALF_LIVES) if feature.meaning.startswith("moments")]
    mine = [feature for feature in recalled if feature.name.startswith(f"{whose}_")]
    assert len(mine) == len(heads)
    for feature, gains in zip(mine, heads, strict=True):
        assert len(gains) == len(PARTS)
        named = dict(part.split() for part in feature.meaning.split(": ")[1].split(", "))
        expected = {part: gain for part, gain in zip(PARTS, gains, strict=True) if gain}
        assert {part: float(gain) for part, gain in named.items()} == expected
    begun = [feature.start for feature in mine]
    assert begun == [*starts, *[0.0] * (len(heads) - len(starts))]
