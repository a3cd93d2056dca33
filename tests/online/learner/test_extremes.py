"""Streams that no honest users send: what is held stays within its limits, and every user still has a list."""

from itertools import islice

import pytest

from benchmarks.extremes import new_items, one_item, one_user
from online.evaluation.town import Town
from online.learner.facts.tables import NAMES
from online.learner.learner import Learner

BATCH = 16
#: All of them are reached before the flood, or within some hundred clicks of it.
LIMITS = {"items_held": 64, "moments_held": 200, "recall_users_held": 16, "memory_users_held": 16, "replay_held": 64}
LIMITS |= {"abuse_keys_held": 32, "finetune_reservoir_held": 16}


def flooded(settings, flood):
    """A learner that knows its town, and the flood that comes then."""
    learner, clicks = Learner(settings), Town(users=20, items=40, seed=5, start=1.7e9).clicks(10**9)
    learn(learner, clicks, 640)
    return learner, flood(clicks)


def learn(learner, stream, count):
    for _ in range(count // BATCH):
        learner.learn(list(islice(stream, BATCH)))


def held(learner):
    """Bytes of each array of a checkpoint, and how many items it knows by name."""
    arrays, _ = learner.to_state()
    return {name: array.nbytes for name, array in arrays.items()} | {"items": len(learner.vocabulary)}


@pytest.mark.parametrize(
    ("flood", "abuse_filter"), [(one_user, True), (one_user, False), (one_item, True), (new_items, True)]
)
def test_twice_as_much_of_a_flood_takes_no_more_room(small, flood, abuse_filter):
    settings = small(**LIMITS, abuse_filter=abuse_filter)
    learner, stream = flooded(settings, flood)
    learn(learner, stream, 320)
    half = held(learner)
    learn(learner, stream, 320)
    # These are saved as far as they are in use, and not all of them are yet: 8 bytes of each array a place at most.
    rows = settings.items_held + 1
    places = {
        "abuse_filter.": max(settings.abuse_keys_held, settings.users_held),
        "history.": 21 * (settings.history_max + settings.history_max // 2),
        "items": settings.items_held,
        "store.near.": rows * settings.neighbours_held // 2,  # 4 bytes of each array a place
    } | {f"store.{name}.": rows * settings.successors_held // 2 for name in NAMES if name != "near"}

    def most(name):
        return 8 * next((count for prefix, count in places.items() if name.startswith(prefix)), 0)

    room = {name: max(size, most(name)) for name, size in half.items()}
    assert {name: (room[name], size) for name, size in held(learner).items() if size > room[name]} == {}


def test_the_user_with_most_of_all_clicks_has_a_history_and_a_list_like_others(small):
    settings = small(**LIMITS)
    learner, stream = flooded(settings, one_user)
    learn(learner, stream, 640)
    assert learner.histories.lengths(learner.histories.find(["a bot"])) <= 1.5 * settings.history_max
    rankings = learner.rank(learner.histories.users())
    assert all(len(ranking.items) == settings.list_size for ranking in rankings)


def test_with_new_items_without_end_the_latest_have_rows_and_the_oldest_none(small):
    learner, stream = flooded(small(**LIMITS), new_items)
    learn(learner, stream, 640)
    known = [number for number in range(640) if f"new {number}" in learner.vocabulary]
    assert known == list(range(640 - len(known), 640))
    assert LIMITS["items_held"] // 2 < len(known) <= LIMITS["items_held"]
