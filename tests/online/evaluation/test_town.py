"""The town keeps its promises: the same for the same seed, in order of time, and with the right answers it states."""

import dataclasses
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.evaluation.town import FOLLOWS_PATH, Town

TOWN = Town(users=40, items=64, seed=3)


@given(users=st.integers(1, 50), items=st.integers(32, 200), seed=st.integers(0, 2**31), change=st.integers(0, 300))
@settings(max_examples=25, deadline=None)
def test_any_town_is_in_order_of_time_and_names_only_what_exists(
    users: int, items: int, seed: int, change: int
) -> None:
    town = Town(users=users, items=items, seed=seed, fashion_change_at=change)
    clicks = list(town.clicks(300))
    assert len(clicks) == 300
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(clicks))
    assert {click.user_id for click in clicks} <= set(town.user_ids)
    assert {click.item_id for click in clicks} <= set(town.item_ids)


def test_names_are_unique() -> None:
    town = Town(users=1_000, items=2_000)
    assert len(set(town.user_ids)) == 1_000
    assert len(set(town.item_ids)) == 2_000
    assert "green tea" in town.item_ids


def test_the_same_seed_gives_the_same_clicks_and_another_seed_gives_others() -> None:
    assert list(TOWN.clicks(500)) == list(dataclasses.replace(TOWN).clicks(500))
    assert list(TOWN.clicks(500)) != list(dataclasses.replace(TOWN, seed=4).clicks(500))


def test_the_first_clicks_do_not_depend_on_their_number_or_on_later_fashion() -> None:
    longer = list(islice(dataclasses.replace(TOWN, fashion_change_at=400).clicks(1_000), 400))
    assert list(TOWN.clicks(400)) == longer


@pytest.mark.parametrize("changed", [False, True])
def test_what_best_next_says_is_what_mostly_follows_within_a_session(changed: bool) -> None:
    town = dataclasses.replace(TOWN, fashion_change_at=0 if changed else None)
    last: dict[str, tuple[str, float]] = {}
    right = followed = 0
    for number, click in enumerate(town.clicks(5_000)):
        item_id, seconds = last.get(click.user_id, ("", 0.0))
        if item_id and click.timestamp - seconds < 120:  # rarely as short between sessions
            followed += 1
            right += click.item_id == town.best_next(item_id, number)
        last[click.user_id] = (click.item_id, click.timestamp)
    assert followed > 1_000
    assert FOLLOWS_PATH - 0.05 < right / followed < FOLLOWS_PATH + 0.1


def test_fashion_changes_what_follows_and_what_users_like() -> None:
    town = dataclasses.replace(TOWN, fashion_change_at=100)
    existing = {click.item_id for click in TOWN.clicks(50)}
    before = {item: town.best_next(item, 99) for item in existing}
    after = {item: town.best_next(item, 100) for item in existing}
    assert sum(before[item] == after[item] for item in existing) < len(existing) / 2
    assert all(not set(town.favourites(user, 99)) & set(town.favourites(user, 100)) for user in town.user_ids)


def test_users_return_to_their_favourites() -> None:
    counts = Counter((click.user_id, click.item_id) for click in TOWN.clicks(4_000))
    favourites = [counts[user, item] for user in TOWN.user_ids for item in TOWN.favourites(user, 0)]
    assert sum(favourites) / len(favourites) > 3 * sum(counts.values()) / (len(TOWN.user_ids) * len(TOWN.item_ids))


def test_new_items_appear_over_time() -> None:
    newest = TOWN.item_ids[-1]
    appears = [number for number, click in enumerate(TOWN.clicks(8_000)) if click.item_id == newest]
    assert appears
    assert min(appears) >= 16 * TOWN.new_item_every
    with pytest.raises(ValueError, match="does not exist by click 0"):
        TOWN.best_next(newest, 0)


def test_sessions_of_several_users_interleave() -> None:
    users = [click.user_id for click in TOWN.clicks(300)]
    assert sum(a != b for a, b in pairwise(users)) > 100


def test_a_town_too_small_to_have_shelves_is_refused() -> None:
    with pytest.raises(ValueError, match="a town needs"):
        Town(items=5)
