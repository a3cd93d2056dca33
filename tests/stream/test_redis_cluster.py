"""The map of slots and the watermarks' places in it, without a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ClusterDownError

from stream.redis_cluster import MARKS_PER_NODE, SLOTS, SlotMap, slot_of, tag_of

A, B, C = ("a", 1), ("b", 2), ("c", 3)


@given(st.integers(0, SLOTS - 1))
def test_a_tag_leads_to_its_slot(slot):
    assert slot_of(f"nextclick:mark:w:{{{tag_of(slot)}}}") == slot


@given(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=20), st.data())
def test_each_primary_has_marks_in_slots_of_its_own(owners, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, SLOTS - 1), min_size=len(owners) - 1, max_size=len(owners) - 1)))
    bounds = [0, *cuts, SLOTS]
    slots = SlotMap((bounds[n], bounds[n + 1] - 1, owner) for n, owner in enumerate(owners))
    marks = slots.mark_slots()
    assert set(marks) == set(owners)
    assert all(slots.node(slot) == node for node, mine in marks.items() for slot in mine)
    assert all(1 <= len(mine) <= MARKS_PER_NODE for mine in marks.values())


def test_a_slot_that_no_node_holds_is_an_incomplete_cluster():
    with pytest.raises(ClusterDownError):
        SlotMap([(0, 99, A)]).node(100)
