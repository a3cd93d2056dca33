"""Items that are not available are in no list, also after a restart and when they lose their row."""

from online.learner.learner import Learner
from tests.online.learner.conftest import click, learn, restarted, ring


def listed(learner, users=("0", "1", "2")):
    """Every item that any user is shown."""
    rankings = [*learner.rank(users), learner.popular()]
    return {item for ranking in rankings for item in ranking.items}


def test_what_is_not_available_is_in_no_list_until_it_is_again_also_after_a_restart(small):
    settings = small(list_size=20)
    learner = Learner(settings)
    learn(learner, ring(400, items=12))
    assert {"i3", "i4"} <= listed(learner)
    for item in ("i3", "i4"):
        learner.set_available(item, False)
        assert item not in learner.popular().items
    for one in (learner, restarted(learner, settings), restarted(restarted(learner, settings), settings)):
        assert {"i2", "i5"} <= listed(one)
        assert not {"i3", "i4"} & listed(one)
        rankings = one.learn([click(0, 2, 1_000), click(1, 3, 1_001), click(0, 3, 1_002)]).rankings
        assert all(not {"i3", "i4"} & set(ranking.items) for ranking in rankings.values())
        one.set_available("i3", True)
        assert "i3" in one.popular().items
        assert "i3" in listed(one)
        assert "i4" not in listed(one)


def test_an_item_withdrawn_before_its_first_click_is_not_listed_afterwards(small):
    learner = Learner(small(item_min_count=2))
    learner.set_available("i7", False)
    learn(learner, [click(user, item, at) for at, (user, item) in enumerate([(0, 7), (1, 8), (0, 7), (1, 8), (2, 9)])])
    assert learner.vocabulary.row_of("i7")
    assert listed(learner) == {"i8"}
    learner.set_available("i7", True)
    assert listed(learner) == {"i7", "i8"}


def test_an_item_that_lost_its_row_and_comes_back_is_as_unavailable_as_before(small):
    """Into its own row again, or into another."""
    learner = Learner(small(items_held=6))
    learn(learner, [click(0, item, item) for item in range(1, 7)])
    learner.set_available("i1", False)
    row = learner.vocabulary.row_of("i1")
    learner.learn([click(1, "new", 10), click(1, 1, 11)])  # one row is freed, that of i1; then it needs one itself
    assert learner.vocabulary.row_of("i1")
    assert not {"i1"} & listed(learner, ("0", "1"))
    assert learner.vocabulary.row_of("inew") == row
    assert "inew" in listed(learner, ("0", "1"))
    learner.vocabulary.expire(float("inf"))
    learner.learn([click(1, 1, 12)])
    assert learner.vocabulary.row_of("i1")
    assert not listed(learner, ("0", "1"))


def test_an_item_that_gets_its_own_row_back_within_a_micro_batch_stays_unavailable(small):
    learner = Learner(small(items_held=6))
    learn(learner, [click(0, item, item) for item in range(1, 7)])
    learner.set_available("i1", False)
    row = learner.vocabulary.row_of("i1")
    learner.learn([click(1, 1, 10), click(1, "new", 11)])
    assert learner.vocabulary.row_of("i1") == row
    assert "i1" not in listed(learner, ("0", "1"))


def test_there_is_room_for_as_many_unavailable_items_as_there_are_rows(small):
    settings = small(items_held=4)
    learner = Learner(settings)
    learn(learner, [click(0, item, item) for item in range(1, 4)])
    for item in ("x", "y", "z", "i1", "i2"):
        learner.set_available(item, False)
    assert learner.unavailable == {"x", "y", "z", "i1"}
    for one in (learner, restarted(learner, settings)):
        assert listed(one, ("0",)) == {"i2", "i3"}
    learner.set_available("x", True)
    learner.set_available("i2", False)
    assert listed(learner, ("0",)) == {"i3"}
