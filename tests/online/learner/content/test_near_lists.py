"""Lists of near items: as a slow version finds them, while items come, change, are clicked, and go."""

import json

import numpy as np
import pytest

from online.learner.content.items import LATEST, ItemContent
from online.learner.content.kernels import PROFILE_DECAY
from online.learner.content.near import CLICKED, HELD, NEAREST, NEW, OF_PROFILE
from online.learner.content.near_lists import CANDIDATES_MAX
from online.learner.learner import Learner
from stream.items import Item
from tests.online.learner.conftest import learn
from tests.online.learner.content.test_content_learner import item, town

NOW = 1_000.0
COUNT = 60
WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("aker", "olin", "umbra")]


def titles(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 3, replace=False)) for _ in range(count)]


def content_of(named, *, clicked=lambda slot: slot % 2 == 0):
    content = ItemContent(seed=0, slots=len(named) + 8)
    for slot, title in enumerate(named, 1):
        content.put(slot, (title, (), {}), None, clicked=clicked(slot), now=NOW)
    content.compose(range(1, len(named) + 1))
    return content


def slow_cosines(content, count):
    """Of weighted bags, (count + 1, count + 1)."""
    bags = np.zeros((count + 1, len(content.weights)))
    for slot in range(1, count + 1):
        bag = content.arrays.bags[slot, : content.arrays.sizes[slot]]
        bags[slot, bag] = content.weights[bag]
    bags /= np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-9)
    return bags @ bags.T


def held(content, slot, kind):
    """Slots and cosines of a list, without entries of items that are gone."""
    near = content.near.arrays
    others = near.others[slot, kind]
    there = (others > 0) & (near.as_of[slot, kind] == near.versions[others])
    return dict(zip(others[there].tolist(), near.alike[slot, kind][there].tolist(), strict=True))


def test_lists_hold_the_items_nearest_by_exact_cosines():
    content = content_of(titles(COUNT))
    cosines = slow_cosines(content, COUNT)
    recalls = []
    for slot in range(1, COUNT + 1):
        for kind in (CLICKED, NEW):
            others = [one for one in range(1, COUNT + 1) if one != slot and content.arrays.clicked[one] == (kind == 0)]
            least = np.sort(cosines[slot, others])[-HELD]
            found = held(content, slot, kind)
            assert set(found) <= set(others)
            for other, alike in found.items():
                assert alike == pytest.approx(cosines[slot, other], abs=1e-5)
            recalls.append(sum(cosines[slot, other] >= least - 1e-6 for other in found) / HELD)
    assert np.mean(recalls) > 0.95


def test_an_item_that_comes_later_is_in_the_lists_of_those_that_were_there():
    content = content_of(titles(20))
    title = titles(20)[3]
    content.put(21, (title, (), {}), None, clicked=False, now=NOW)
    content.compose([21])
    assert held(content, 4, NEW)[21] == pytest.approx(1, abs=1e-5)


def test_an_item_that_disappears_is_in_no_list_and_its_slot_can_be_used_anew():
    content = content_of(titles(20), clicked=lambda _: False)
    near = [slot for slot in range(1, 21) if 4 in held(content, slot, NEW)]
    assert near
    content.free(4)
    assert not any(4 in held(content, slot, NEW) for slot in range(1, 21))
    content.put(4, ("zzz", (), {}), None, clicked=False, now=NOW)
    content.compose([4])
    assert not any(4 in held(content, slot, NEW) for slot in near)


def test_an_item_joins_the_clicked_ones_at_its_first_click():
    content = content_of(titles(20), clicked=lambda _: False)
    near = [slot for slot in range(1, 21) if 4 in held(content, slot, NEW)]
    content.compare(np.array([4]), clicked=True)
    content.observe(np.array([4]))
    assert near
    assert all(4 in held(content, slot, CLICKED) for slot in near)


def slow_candidates(content, latest, slots):
    """The sums of cosines to the latest items, of listed slots that their lists hold, by kind."""
    sums = {}
    for age, slot in enumerate(latest):
        share = OF_PROFILE * PROFILE_DECAY**age + (age == 0)
        for kind in (CLICKED, NEW):
            for other, alike in held(content, slot, kind).items():
                sums[other] = sums.get(other, 0) + share * alike
    sums = {slot: value for slot, value in sums.items() if slot in slots and slot not in latest}
    return [{slot: value for slot, value in sums.items() if content.arrays.clicked[slot] == of} for of in (True, False)]


def test_candidates_are_the_best_of_the_joined_lists_and_none_that_may_not_be_listed():
    content = content_of(titles(COUNT))
    latest = np.zeros((2, LATEST), np.int64)
    latest[0, :3], latest[1, :1] = (1, 8, 13), 2
    listed = np.array([slot for slot in range(1, COUNT + 1) if slot % 5])
    found = content.nearest(latest, np.arange(COUNT + 8, dtype=np.int32), listed)
    assert found.shape == (2, CANDIDATES_MAX)
    for q, of_query in enumerate((latest[0, :3], latest[1, :1])):
        old, new = slow_candidates(content, of_query.tolist(), set(listed.tolist()))
        by_sum = sorted(old.values(), reverse=True)[:NEAREST]
        mine = found[q, :NEAREST][found[q, :NEAREST] > 0].tolist()
        assert [old[slot] for slot in mine] == pytest.approx(by_sum, abs=1e-5)
        suiting = found[q, NEAREST:-4]
        assert set(suiting[suiting > 0].tolist()) <= set(new)
        assert (suiting > 0).sum() == min(len(new), len(suiting))
        assert len(set(mine)) == len(mine)


def test_items_with_vectors_alone_are_near_by_their_cosines():
    content = ItemContent(seed=0, slots=40)
    angles = np.linspace(0, np.pi, 30)
    for slot, angle in enumerate(angles, 1):
        vector = (float(np.cos(angle)), float(np.sin(angle)))
        content.put(slot, (None, (), {}), vector, clicked=True, now=NOW)
    content.compose(range(1, 31))
    assert set(held(content, 1, CLICKED)) >= {2, 3, 4}
    assert 30 not in held(content, 1, CLICKED)


@pytest.mark.parametrize("shorter", [False, True])
def test_lists_of_a_checkpoint_without_them_or_of_other_lengths_are_made_anew(small, shorter):
    learner = Learner(small(items_held=1_000))
    learner.put_items([item(number) for number in range(100)])
    learn(learner, town(32))
    arrays, state = learner.to_state()
    old = {name: array for name, array in arrays.items() if "near_" not in name}
    assert len(old) < len(arrays)
    if shorter:
        old = arrays | {name: array[..., :2] for name, array in arrays.items() if name.endswith("near_rings")}
    other = Learner(small(items_held=1_000))
    other.load_state(old, json.loads(json.dumps(state)))
    near = other.listable.content.near.arrays
    assert not near.others.any()
    learn(other, town(16, seed=1))
    known = other.listable.content.arrays.known
    assert near.compared[known].all()
    assert (near.others[known] > 0).any((1, 2)).all()


def test_lists_are_compared_anew_where_there_are_twice_as_many_items_as_before(small):
    learner = Learner(small(items_held=1_000))
    learner.put_items([item(number) for number in range(10)])
    learner.put_items([item(number) for number in range(10, 40)])
    near = learner.listable.content.near.arrays
    assert not near.compared[1:11].any()
    learn(learner, town(16))
    assert near.compared[learner.listable.content.arrays.known].all()


def test_versions_begin_anew_after_the_largest():
    content = content_of(titles(4))
    content.near.arrays.versions[2] = 2**16 - 1
    content.free(2)
    assert content.near.arrays.versions[2] == 0


def test_a_record_that_frees_a_slot_leaves_no_list(small):
    learner = Learner(small(items_held=1_000))
    learner.put_items([item(number) for number in range(8)])
    slot = learner.listable.attributes.slot_of("i3")
    learner.put_items([Item(item_id="i3")])
    near = learner.listable.content.near.arrays
    assert not near.others[slot].any()
    assert not near.compared[slot]
