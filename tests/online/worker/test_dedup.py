"""Event ids against an ordered set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from online.worker.dedup import SeenEvents

ids = st.lists(st.sampled_from([f"e{number}" for number in range(9)]), max_size=60)


@given(ids, ids, st.integers(1, 8))
def test_an_id_is_new_once_until_it_is_one_of_the_oldest_and_restarts_change_nothing(first, second, held):
    seen, model = SeenEvents(held), []

    def add(event_id):
        new = event_id not in model
        assert seen.add(event_id) == new
        if new:
            model.append(event_id)
            del model[:-held]

    for event_id in first:
        add(event_id)
    state = seen.to_state()
    assert state.dtype == np.uint64
    seen = SeenEvents(held)
    seen.load_state(state.copy())
    for event_id in second:
        add(event_id)


def test_with_a_smaller_limit_the_latest_are_kept():
    seen, smaller = SeenEvents(10), SeenEvents(2)
    for number in range(5):
        seen.add(f"e{number}")
    smaller.load_state(seen.to_state())
    assert [smaller.add(f"e{number}") for number in (4, 3, 2)] == [False, False, True]


def test_nothing_seen_is_restored_as_nothing():
    seen = SeenEvents(3)
    seen.load_state(SeenEvents(3).to_state())
    assert seen.add("Ä \N{SNOWMAN}")
    assert not seen.add("Ä \N{SNOWMAN}")
