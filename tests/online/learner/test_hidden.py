"""What users have hidden: bounds, order, times, the checkpoint, and lists and answers without it."""

import json

import numpy as np
import pytest

from online.learner.asking import Question
from online.learner.hidden import HiddenItems
from online.learner.learner import Learner
from stream.events import Click
from stream.user_ids import digest_of
from tests.online.conftest import NOW
from tests.online.learner.test_learner_batches import some_clicks


def hidden_items(users=3, per_user=2, now=100.0):
    return HiddenItems(users, per_user, now=lambda: now, vocabulary=lambda: None)


def test_the_latest_word_counts_and_times_pass():
    hidden = hidden_items(per_user=10)
    hidden.hide("u", "a")
    hidden.hide("u", "b", 150.0)
    hidden.hide("u", "c", 99.0)
    assert hidden.of("u") == [("a", None), ("b", 150.0)]
    assert hidden.of("u", 150.0) == [("a", None)]
    hidden.hide("u", "a", 120.0)
    hidden.unhide("u", "b")
    hidden.unhide("u", "not there")
    hidden.unhide("not there", "a")
    assert hidden.of("u") == [("a", 120.0)]
    assert hidden.of("not there") == []


def test_a_dislike_does_not_shorten_what_was_hidden_for_longer():
    hidden = hidden_items(per_user=10)
    hidden.hide("u", "a")
    hidden.dislike("u", "a", 500.0)
    hidden.dislike("u", "b", 500.0)
    hidden.dislike("u", "b", 400.0)
    assert hidden.of("u") == [("a", None), ("b", 500.0)]


def test_the_oldest_item_and_the_user_unused_for_longest_make_room():
    hidden = hidden_items()
    for item in "abc":
        hidden.hide("u1", item)
    assert hidden.of("u1") == [("b", None), ("c", None)]
    for user in ("u2", "u3"):
        hidden.hide(user, "a")
    hidden.touch(["u1", "unknown"])
    hidden.hide("u4", "a")
    assert hidden.user_ids() == ["u3", "u1", "u4"]
    assert (hidden.users_lost, hidden.items_lost) == (1, 2)
    assert hidden.usage() == (3, 3)


def saved(store):
    arrays, state = store.to_state()
    return {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state))


def test_it_comes_back_from_a_checkpoint_within_smaller_bounds_too():
    hidden = hidden_items(users=5, per_user=5)
    for user, items in (("u1", "ab"), ("u2", ""), ("u3", "abc")):
        hidden.hide(user, "gone")
        for item in items:
            hidden.hide(user, item, 150.0 if item == "b" else None)
        hidden.unhide(user, "gone")
    again = hidden_items(users=5, per_user=5)
    again.load_state(*saved(hidden))
    assert again.user_ids() == hidden.user_ids() == ["u1", "u2", "u3"]
    assert [again.of(user) for user in again.user_ids()] == [hidden.of(user) for user in hidden.user_ids()]
    less = hidden_items(users=1, per_user=2)
    less.load_state(*saved(hidden))
    assert less.of("u3") == [("b", 150.0), ("c", None)]
    assert (len(less), less.users_lost, less.items_lost) == (1, 2, 3)


def test_a_user_is_forgotten_by_the_digest():
    hidden = hidden_items()
    hidden.hide("u1", "a")
    hidden.hide("u2", "u1")
    assert hidden.forget(digest_of("u1")) == 1
    assert hidden.user_ids() == ["u2"]


# --- the learner ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["all", "unseen"])
def learner(request, small):
    learner = Learner(small(exclude_seen=request.param))
    learn(learner, some_clicks(320, users=8))
    return learner


def learn(learner, clicks, size=16):
    return [learner.learn(clicks[start : start + size]) for start in range(0, len(clicks), size)]


def busy_user(learner):
    return learner.histories.users()[-1]


def listed(learner, user):
    (ranking,) = learner.rank([user])
    return ranking.items


def test_a_hidden_item_is_in_no_list_of_its_user_alone_until_its_time(learner):
    user, other = busy_user(learner), learner.histories.users()[0]
    item = next(item for item in listed(learner, user) if item in listed(learner, other))
    learner.hidden.hide(user, item, learner.now[0] + 3_600)
    assert item not in listed(learner, user)
    assert item in listed(learner, other)
    clicks = [Click(user_id=user, item_id="new", timestamp=learner.now[0] + 1)]
    assert item not in learner.learn(clicks).rankings[user].items
    learner.learn([Click(user_id="later", item_id="new", timestamp=learner.now[0] + 3_600)])
    assert item in listed(learner, user)


def test_an_item_that_is_hidden_while_clicks_are_prepared_is_not_listed(learner):
    from online.learner.lookahead import UpcomingBatch  # noqa: PLC0415

    user = busy_user(learner)
    item = listed(learner, user)[0]
    first = [Click(user_id="w", item_id="new", timestamp=learner.now[0] + 1)]
    second = [Click(user_id=user, item_id="new", timestamp=learner.now[0] + 2)]
    learner.learn(first, following=lambda: UpcomingBatch(second))
    learner.hidden.hide(user, item)
    items = learner.learn(second).rankings[user].items
    assert items
    assert item not in items


def test_a_user_who_has_hidden_all_candidates_gets_what_is_popular_and_not_hidden(learner):
    user = busy_user(learner)
    items = [learner.vocabulary.item_of(row) for row in range(1, learner.vocabulary.rows)]
    learner.hidden.per_user_max = len(items)
    for item in items[:-1]:
        learner.hidden.hide(user, item)
    clicked = learner.histories.newest_first(learner.histories.find([user]), 256).rows[0]
    seen = learner.seen is not None and learner.vocabulary.row_of(items[-1]) in clicked
    assert listed(learner, user) == ([] if seen else [items[-1]])


def test_questions_leave_it_out_and_say_so(learner):
    user = busy_user(learner)
    items = listed(learner, user)
    learner.hidden.hide(user, items[0], learner.now[0] + 60)
    learner.hidden.hide(user, "no such item")
    all_items = Question(user_id=user, k=50)
    given = Question(user_id=user, k=50, candidates=[*items, "no such item", "another"], exclude=[items[1]])
    later = Question(user_id=user, k=50, candidates=items, at=learner.now[0] + 61)
    visitor = Question(k=50, candidates=items)
    answers = learner.answerer.answer([all_items, given, later, visitor])
    assert items[0] not in answers[0].items
    assert answers[0].dropped["hidden"] == 1
    assert set(answers[1].items) == {*items[2:], "another"}
    assert {name: answers[1].dropped[name] for name in ("hidden", "excluded")} == {"hidden": 2, "excluded": 1}
    assert items[0] in answers[2].items
    assert "hidden" not in answers[2].dropped
    assert set(answers[3].items) == set(items)


def test_feedback_of_others_changes_nothing_of_a_user(small, same):
    clicks = some_clicks(320, users=8)
    plain, told = Learner(small()), Learner(small())
    told.hidden.hide("unknown", clicks[0].item_id)
    results = [learn(learner, clicks) for learner in (plain, told)]
    assert [one.rankings for one in results[0]] == [one.rankings for one in results[1]]
    arrays = [{n: a for n, a in one.to_state()[0].items() if not n.startswith("hidden.")} for one in (plain, told)]
    assert same(*arrays)


def test_a_checkpoint_brings_it_back_and_one_without_it_loads(learner):
    user = busy_user(learner)
    item = listed(learner, user)[0]
    learner.hidden.hide(user, item)
    arrays, state = saved(learner)
    again = Learner(learner.settings)
    again.load_state(arrays, state)
    assert again.hidden.of(user) == [(item, None)]
    assert listed(again, user) == listed(learner, user)
    arrays, state = saved(learner)
    del state["hidden"]
    before = Learner(learner.settings)
    before.load_state({name: array for name, array in arrays.items() if not name.startswith("hidden.")}, state)
    assert len(before.hidden) == 0
    assert item in listed(before, user)


def test_rows_of_items_follow_the_vocabulary(learner):
    user = busy_user(learner)
    learner.hidden.hide(user, "not yet")
    (rows,) = learner.hidden.rows([user])
    assert len(rows) == 0
    learner.learn([Click(user_id="w", item_id="not yet", timestamp=NOW + 1e6)])
    (rows,) = learner.hidden.rows([user])
    assert rows.tolist() == [learner.vocabulary.row_of("not yet")]
    assert learner.hidden.rows(["w"]) is None
    assert isinstance(rows, np.ndarray)
