"""A list that is asked for is the one that the learner itself would rank at that moment, and asking changes nothing."""

from functools import partial

import numpy as np
import pytest

from online.filters.evaluate import compiled
from online.learner.asking import EXCLUDED, FILTER, UNAVAILABLE, Question, RecentClick
from online.learner.common_lists import CommonLists
from online.learner.learner import Learner
from online.learner.lookahead import UpcomingBatch
from stream.events import Click
from stream.items import Item

CLICKS = 240


@pytest.fixture
def learner(small, town_clicks):
    learner = Learner(small(users_held=200))
    for start in range(0, CLICKS, 16):
        learner.learn(town_clicks[start : start + 16])
    return learner


def ask(learner, *questions, **fields):
    found = learner.answerer.answer(questions or [Question(**fields)])
    return found if questions else found[0]


def states_differ(before, after):
    """Names of what is not the same, bit for bit."""
    (arrays, state), (arrays_now, state_now) = before, after
    assert arrays.keys() == arrays_now.keys()
    names = [name for name in arrays if arrays[name].tobytes() != arrays_now[name].tobytes()]
    return names + ["state"] * (state != state_now)


def snapshot(learner):
    arrays, state = learner.to_state()
    return {name: array.copy() for name, array in arrays.items()}, repr(state)


def random_questions(clicks, random, count):
    """Of users and visitors, with all that can be asked for; some of it is nonsense."""
    items, users = [click.item_id for click in clicks], [click.user_id for click in clicks]

    def some(most):
        return [*random.choice(items, random.integers(0, most)).tolist(), "nobody knows it"]

    def question():
        coin = random.random(7) < 0.4
        return Question(
            user_id=str(random.choice(users)) if coin[0] else ("stranger" if coin[1] else None),
            recent=[RecentClick(item, None if coin[2] else 5.0) for item in some(20)] if coin[3] else (),
            at=float(random.choice([0.0, 1.0, 1_730_459_000.0, 4e9])) if coin[4] else None,
            k=int(random.integers(1, 300)),
            candidates=some(40) if coin[5] else None,
            exclude=some(30) if coin[6] else (),
            where=(lambda rows: rows % 3 == 0) if coin[1] else None,
            where_items=(lambda items: np.zeros(len(items), bool)) if coin[1] else None,
        )

    return [question() for _ in range(count)]


# What the learner itself ranks


@pytest.mark.parametrize("settings", [{}, {"exclude_seen": True}, {"deep_state": False}])
def test_a_list_just_before_a_click_is_the_one_that_the_click_is_tested_on(small, town_clicks, settings):
    learner = Learner(small(users_held=200, **settings))
    for start in range(0, CLICKS, 16):
        learner.learn(town_clicks[start : start + 16])
    same = total = 0
    for click in town_clicks[CLICKS : CLICKS + 120]:
        answer = ask(learner, user_id=click.user_id, at=click.timestamp, k=500)
        (rank,) = learner.learn([click]).ranks
        asked = answer.items.index(click.item_id) if click.item_id in answer.items else np.inf
        same += asked == rank or abs(asked - rank) == 0.5  # half of the ties count as higher
        total += 1
    assert same / total >= 0.98


def test_answers_do_not_depend_on_what_else_is_asked(learner, town_clicks):
    users = list(dict.fromkeys(click.user_id for click in town_clicks[:CLICKS]))[:10]
    alone = [ask(learner, user_id=user, k=10) for user in users]
    together = ask(learner, *(Question(user, k=300 if at % 2 else 10) for at, user in enumerate(users)))
    for one, other in zip(alone, together, strict=True):
        assert one.items == other.items[:10]
        np.testing.assert_allclose(one.scores, other.scores[:10], rtol=1e-4)


def test_recent_clicks_are_taken_as_clicks_that_were_made(learner, town_clicks):
    click = next(one for one in town_clicks[CLICKS:] if one.item_id in learner.vocabulary)
    at = click.timestamp + 5.0
    recent = [RecentClick(click.item_id, click.timestamp)]
    before = ask(learner, user_id=click.user_id, at=at)
    asked = ask(learner, user_id=click.user_id, recent=recent, at=at)
    learner.learn([click], train=False)
    counted = ask(learner, user_id=click.user_id, recent=recent, at=at)  # the history ends with it now
    plain = ask(learner, user_id=click.user_id, at=at)
    assert counted.items == plain.items
    assert counted.scores == plain.scores
    assert asked.items != before.items
    assert len(set(asked.items) & set(plain.items)) >= 8


def test_recent_items_that_are_not_known_are_passed_over(learner, town_clicks):
    item = RecentClick(town_clicks[0].item_id)
    mixed = ask(learner, recent=[RecentClick("nobody knows it"), item, RecentClick("nor this")])
    assert mixed.items == ask(learner, recent=[item]).items
    assert mixed.known
    stranger = ask(learner, recent=[RecentClick("nobody knows it")])
    assert not stranger.known
    assert stranger.items == ask(learner).items != []


# Candidates and rules


def test_given_candidates_are_all_ranked_and_those_that_are_not_known_come_last(learner, town_clicks):
    items = list(dict.fromkeys(click.item_id for click in town_clicks[:CLICKS]))[:20]
    answer = ask(learner, user_id=town_clicks[0].user_id, candidates=["new", *items, items[0], "newer"], k=100)
    assert sorted(answer.items[:20]) == sorted(items)
    assert answer.items[20:] == ["new", "newer"]
    assert answer.scores[20:] == [0.0, 0.0]
    assert answer.scores[:20] == sorted(answer.scores[:20], reverse=True)
    only_new = ask(learner, user_id=town_clicks[0].user_id, candidates=["new", "newer"])
    assert (only_new.items, only_new.considered) == (["new", "newer"], 0)


def test_what_is_left_out_is_told_apart(learner, town_clicks):
    items = list(dict.fromkeys(click.item_id for click in town_clicks[:CLICKS]))[:6]
    learner.set_available(items[1], False)
    where = {
        "where": lambda rows: rows != learner.vocabulary.row_of(items[2]),
        "where_items": lambda names: np.array([name != "new" for name in names]),
    }
    answer = ask(learner, candidates=[*items, "new", "newer"], exclude=[items[0]], k=10, **where)
    assert sorted(answer.items) == sorted([*items[3:], "newer"])
    assert answer.dropped == {EXCLUDED: 1, UNAVAILABLE: 1, FILTER: 1}


def test_a_filter_that_few_items_pass_widens_the_candidates(learner):
    rows = np.arange(1, learner.vocabulary.rows)
    popularity = learner.popularity()[rows]
    rare = rows[np.argsort(popularity, kind="stable")[:5]]
    answer = ask(learner, where=lambda asked: np.isin(asked, rare), k=5)
    assert answer.widened
    assert set(answer.items) == set(learner.vocabulary.items_of(rare.tolist()))


def test_the_few_items_that_pass_a_filter_are_all_ranked_in_one_gather(learner, town_clicks, monkeypatch):
    rows = np.arange(1, learner.vocabulary.rows)
    few = rows[::7]
    items = learner.vocabulary.items_of(few.tolist())
    gathers = []
    gather = learner.store.ask
    monkeypatch.setattr(learner.store, "ask", lambda *args, **more: gathers.append(1) or gather(*args, **more))
    answer = ask(
        learner, user_id=town_clicks[0].user_id, where=lambda asked: np.isin(asked, few), k=1_000, exclude=items[:2]
    )
    assert sorted(answer.items) == sorted(items[2:])
    assert (answer.widened, len(gathers)) == (True, 1)
    assert answer.scores == sorted(answer.scores, reverse=True)


def test_the_rule_of_the_site_and_a_filter_hold_for_what_is_asked_for(small, town_clicks):
    learner = Learner(small(users_held=200, list_filter="price <= 20 or missing(price)"))
    names = list(dict.fromkeys(click.item_id for click in town_clicks[:CLICKS]))
    for start in range(0, CLICKS, 16):
        learner.learn(town_clicks[start : start + 16])
    learner.put_items([Item(item_id=name, attributes={"price": float(at)}) for at, name in enumerate(names[:30])])
    wanted = compiled("price > 10")
    learner.put_items(
        [Item(item_id="no clicks", attributes={"price": 15.0}), Item(item_id="too dear", attributes={"price": 99.0})]
    )
    answer = ask(
        learner,
        candidates=[*names[:30], "no clicks", "too dear"],
        where=lambda rows: learner.listable.apply(wanted, rows).mask,
        where_items=lambda items: learner.listable.apply_to_items(wanted, items).mask,
        k=100,
    )
    assert sorted(answer.items) == sorted([*names[11:21], "no clicks"])
    assert answer.dropped["site_rule"] == 10


# Nothing changes


def test_no_question_changes_anything(learner, town_clicks):
    random = np.random.default_rng(3)
    before = snapshot(learner)
    for _ in range(40):
        learner.answerer.answer(random_questions(town_clicks[:CLICKS], random, int(random.integers(1, 60))))
        for kind in ("popular", "trending", "latest"):
            CommonLists(learner).best(kind, int(random.integers(1, 50)), None, [town_clicks[0].item_id])
    assert states_differ(before, snapshot(learner)) == []


def test_questions_between_announced_batches_change_nothing(small, town_clicks):
    """The facts of the next batch are gathered already, and must be there when it is learned."""
    random = np.random.default_rng(4)
    batches = [town_clicks[start : start + 16] for start in range(0, CLICKS, 16)]

    def learned(asks):
        learner = Learner(small(users_held=200))
        results = []
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            announced = None if following is None else partial(UpcomingBatch, following)
            results.append(learner.learn(batch, following=announced).losses)
            if asks:
                learner.answerer.answer(random_questions(town_clicks[:CLICKS], random, 30))
        return snapshot(learner), results

    (before, losses), (after, losses_asked) = learned(False), learned(True)
    assert states_differ(before, after) == []
    assert losses == losses_asked


# Lists for everybody


def test_popular_trending_and_latest(learner, town_clicks):
    common = CommonLists(learner)
    popular = common.best("popular", 5)
    counts = learner.popularity()
    assert learner.vocabulary.row_of(popular.items[0]) == counts.argmax()
    assert popular.scores == sorted(popular.scores, reverse=True)
    first_seen = list(dict.fromkeys(click.item_id for click in town_clicks[:CLICKS]))
    latest = common.best("latest", 3)
    assert latest.items == first_seen[::-1][:3]
    assert latest.scores[0] == pytest.approx(
        next(click.timestamp for click in town_clicks if click.item_id == latest.items[0]), abs=1e-2
    )
    assert common.best("popular", 5, None, popular.items[:2]).items[:3] == popular.items[2:5]
    learner.set_available(popular.items[0], False)
    assert popular.items[0] not in common.best("popular", 5).items


def test_what_was_clicked_much_lately_rises(small):
    learner = Learner(small())
    old = [Click(user_id=f"u{n}", item_id=f"i{n % 5}", timestamp=1e9 + n) for n in range(200)]
    new = [Click(user_id=f"u{n}", item_id="hit" if n % 2 else "i0", timestamp=1e9 + n) for n in range(200, 212)]
    for start in range(0, 200, 16):
        learner.learn(old[start : start + 16])
    learner.learn(new)
    assert CommonLists(learner).best("trending", 1).items == ["hit"]


def test_a_learner_that_knows_nothing_answers_all_the_same(small):
    learner = Learner(small())
    assert ask(learner, user_id="ada", recent=[RecentClick("a")]).items == []
    assert ask(learner, candidates=["a", "b"]).items == ["a", "b"]
    assert CommonLists(learner).best("trending", 3).items == []


def test_a_list_may_be_varied_capped_and_explained(small, town_clicks):
    learner = Learner(small(users_held=200))
    for start in range(0, CLICKS, 16):
        learner.learn(town_clicks[start : start + 16])
    user = town_clicks[CLICKS - 1].user_id
    plain, same, varied = ask(
        learner,
        Question(user_id=user, k=8),
        Question(user_id=user, k=8, diversity=0.0, explain=True),
        Question(user_id=user, k=8, diversity=1.0),
    )
    assert same.items == plain.items
    assert varied.items != plain.items
    assert varied.items[0] == plain.items[0]
    assert plain.explanations is None
    assert [one["item_id"] for one in same.explanations] == same.items
    for one in same.explanations:
        assert sum(one["contributions"].values()) == pytest.approx(one["difference"], abs=1e-5)
    for item in plain.items:
        learner.put_items([Item(item_id=item, tags=("the same",))])
    assert len([item for item in ask(learner, user_id=user, k=8, max_per_tag=1).items if item in plain.items]) == 1
