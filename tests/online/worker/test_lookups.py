"""Questions for which no list is ranked: similar items, users, explanations."""

import fakeredis
import pytest

from online.learner.known_user import SHOWN_MAX, known_user
from online.learner.learner import Learner
from online.learner.similar import similar
from online.worker.asking import Asking
from stream.events import Click
from stream.items import Item
from stream.questions import QuestionQueue, WireQuestion
from tests.online.learner.conftest import learn, ring


@pytest.fixture
def asking(small):
    settings = small(users_held=200)
    learner = Learner(settings)
    learn(learner, ring(300))
    learner.put_items([Item(item_id="i7", title="A kettle", tags=("t",)), Item(item_id="i9", tags=("t",))])
    return Asking(settings, learner, QuestionQueue(fakeredis.FakeRedis()))


def ask(asking, **fields):
    (answer,) = asking.answer([WireQuestion(id=1, asker="me", asked_at=0.0, timeout_ms=100, **fields)])
    return answer


def test_similar_items_come_with_what_is_known(asking):
    answer = ask(asking, kind="similar", item_id="i7", by="follows", k=3)
    expected = similar(asking.learner, "i7", "follows", 3)
    assert answer.items == expected.items(asking.learner)
    assert answer.scores == pytest.approx(expected.scores, rel=1e-5)
    assert (answer.known, answer.error, answer.dropped) == (True, None, {})
    best = answer.items[0]
    assert best not in ask(asking, kind="similar", item_id="i7", by="follows", k=3, exclude=[best]).items
    assert asking.describe()["answered"] == 2


def test_similar_items_obey_filters_and_availability(asking):
    answer = ask(asking, kind="similar", item_id="i7", k=5, where="tags any ('t')")
    assert answer.items == ["i9"]
    assert answer.dropped["filter"] > 3
    asking.learner.set_available("i9", available=False)
    assert ask(asking, kind="similar", item_id="i7", k=5, where="tags any ('t')").items == []
    answer = ask(asking, kind="similar", item_id="i7", where="colour = 'red'")
    assert answer.refused
    assert answer.error.startswith("where: ")


def test_of_an_unknown_item_there_are_none_and_it_is_said(asking):
    for by in ("follows", "near", "content", "all"):
        answer = ask(asking, kind="similar", item_id="nowhere", by=by)
        assert (answer.items, answer.known, answer.error) == ([], False, None)
    asking.learner.put_items([Item(item_id="new", tags=("t",))])
    answer = ask(asking, kind="similar", item_id="new", by="content")
    assert (set(answer.items), answer.known) == ({"i7", "i9"}, True)


def test_a_user_s_clicks_are_told_newest_first_with_their_types(small):
    learner = Learner(small(history_max=100))
    clicks = [
        Click(user_id="ada", item_id=f"i{n}", timestamp=1e9 + n, event_type="buy" if n % 2 else "view")
        for n in range(60)
    ]
    learn(learner, clicks)
    found = known_user(learner, "ada")
    assert (found["known"], found["clicks"], len(found["history"])) == (True, 60, SHOWN_MAX)
    assert found["history"][:2] == [
        {"item_id": "i59", "timestamp": 1e9 + 59, "event_type": "buy"},
        {"item_id": "i58", "timestamp": 1e9 + 58, "event_type": "view"},
    ]
    assert known_user(learner, "eve") == {"known": False, "clicks": 0, "history": [], "hidden": []}
    learner.event_types.clear()
    assert known_user(learner, "ada")["history"][0]["event_type"] == "other"


def test_a_click_on_an_item_that_was_dropped_is_counted_and_not_shown(asking):
    before = known_user(asking.learner, "1")
    row = asking.learner.vocabulary.row_of(before["history"][0]["item_id"])
    asking.learner.histories.forget_rows([row])
    after = ask(asking, kind="user", user_id="1").user
    assert after["clicks"] == before["clicks"]
    assert len(after["history"]) < len(before["history"])


def test_a_list_and_any_item_are_explained(asking):
    answer = ask(asking, kind="explain", user_id="1", k=4)
    assert answer.known
    assert len(answer.explanations) == 4
    assert [one["item_id"] for one in answer.explanations] == answer.items
    answer = ask(asking, kind="explain", user_id="1", item_id="i7", k=4)
    assert [(one["item_id"], one["title"]) for one in answer.explanations] == [("i7", "A kettle")]
    assert answer.explanations[0]["difference"]
    answer = ask(asking, kind="explain", user_id="1", item_id="nowhere")
    assert answer.refused
    assert answer.error.startswith("nothing is known of item nowhere")
