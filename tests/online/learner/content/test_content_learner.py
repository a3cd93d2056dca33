"""Content in the learner: new items are listed, users are predicted better by it, memory is bounded, states load."""

import json

import numpy as np
import pytest
import torch

from online.config.settings import Settings
from online.learner.asking import Answerer, Question
from online.learner.content.columns import COLUMNS, LEARNED
from online.learner.explaining import Explainer
from online.learner.learner import Learner
from stream.events import Click
from stream.items import Item
from tests.online.conftest import SMALL
from tests.online.learner.conftest import learn
from tests.online.learner.test_explaining import check_sums

TAGS = ("crime", "space", "love", "sport")
USERS, LIVES = 24, 32  # users; items that are there at a time


def item(number, **others):
    return Item(item_id=f"i{number}", title=f"No {number}", tags=(TAGS[number % len(TAGS)],), **others)


def town(count, seed=0):
    """Each user likes one tag and picks among the latest items with it; every click brings a new item now and then."""
    random = np.random.default_rng(seed)
    clicks = []
    for at in range(count):
        user = int(random.integers(USERS))
        newest = LIVES + at // 4
        of_tag = [number for number in range(newest - LIVES, newest) if number % len(TAGS) == user % len(TAGS)]
        clicks.append(Click(user_id=str(user), item_id=f"i{random.choice(of_tag)}", timestamp=60.0 * at))
    return clicks


def learned_town(settings, count=800):
    """A learner that gets to know each item before it can be clicked -> and its hits at 8, (count,)."""
    learner, hits = Learner(settings), []
    clicks, known = town(count), 0
    for start in range(0, count, 16):
        newest = LIVES + (start + 16) // 4
        learner.put_items([item(number) for number in range(known, newest)])
        known = newest
        hits += (learner.learn(clicks[start : start + 16]).ranks < 8).tolist()
    return learner, np.array(hits), known


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(**{"data_dir": tmp_path_factory.mktemp("content"), **SMALL, "items_held": 1_000})


@pytest.fixture(scope="module")
def town_learner(settings):
    return learned_town(settings)


def test_users_who_like_a_tag_are_predicted_better_with_content_than_without(settings, town_learner):
    _, hits, _ = town_learner
    _, without, _ = learned_town(settings.model_copy(update={"content": False}))
    assert hits[400:].mean() > without[400:].mean() + 0.1


def test_a_new_item_that_suits_a_user_is_listed_before_its_first_click(town_learner):
    learner, _, known = town_learner
    new = {tag: f"i{known + (at - known) % len(TAGS)}" for at, tag in enumerate(TAGS)}
    learner.put_items([item(int(item_id[1:])) for item_id in new.values()])
    answerer = Answerer(learner, learner.queries)
    firsts, listed = [], []
    for user in range(USERS):
        own = new[TAGS[user % len(TAGS)]]
        given = Question(user_id=str(user), k=4, candidates=list(new.values()))
        ranked, found = answerer.answer([given, Question(user_id=str(user), k=200)])
        firsts.append(ranked.items[0] == own)
        listed.append(found.items.index(own) / len(found.items) if own in found.items else 1.0)
    assert np.mean(firsts) > 0.6  # by chance 0.25
    assert np.median(listed) < 0.1


def test_explanations_with_content_add_up_and_say_it_in_words(town_learner):
    learner, _, _ = town_learner
    answerer, explainer = Answerer(learner, learner.queries), Explainer(learner)
    questions = [Question(user_id=str(user), k=8) for user in range(8)]
    lists = answerer.answer(questions)
    asked = answerer.ask(questions)
    words = []
    with torch.no_grad():
        for at, answer in enumerate(lists):
            found = explainer.explain(asked, at, answer.items)
            check_sums(found)
            rows = asked.scored.rows()[at].tolist()
            for one in found:
                json.dumps(one)
                slot = rows.index(learner.vocabulary.row_of(one["item_id"]))
                assert one["score"] == pytest.approx(float(asked.scored.scores[at, slot]), abs=1e-3)
                words += [reason["text"] for reason in one["reasons"] if reason["group"] == "content"]
    assert words
    assert all(words)


def test_candidates_that_only_the_linear_score_has_seen_add_up_too(town_learner):
    learner, _, known = town_learner
    answerer = Answerer(learner, learner.queries)
    most = learner.settings.candidates_kept
    asked = answerer.ask([Question(user_id="1", candidates=[f"i{n}" for n in range(max(0, known - 2 * most), known)])])
    rows = asked.scored.gathered.rows.tolist()
    found = Explainer(learner).explain(asked, 0, learner.vocabulary.items_of(rows))
    check_sums(found)


def test_a_learner_without_records_has_no_content_columns(settings):
    learner = Learner(settings)
    learn(learner, town(64))
    asked = Answerer(learner, learner.queries).ask([Question(user_id="1")])
    assert asked.scored.content is None
    assert learner.replay.content is None
    assert not any("content" in name for name in learner.to_state()[0])


# Memory


def test_memory_is_bounded_by_the_items_held(small):
    learner = Learner(small(items_held=40))
    learn(learner, town(32))
    for start in range(0, 2_000, 100):
        learner.put_items([item(number) for number in range(start, start + 100)])
        learner.learn(town(16, seed=start))
    content = learner.listable.content
    assert len(content) <= 40
    assert len(content.arrays.known) <= learner.listable.attributes.capacity <= 64
    assert len(learner.vocabulary) <= 40
    assert len(learner.items._new) + len(learner.items._waiting) <= 2 * learner.items.new_max


def test_content_goes_with_what_is_known_of_its_item(small):
    learner = Learner(small())
    learn(learner, town(32))
    learner.put_items([item(1), item(100)])
    content = learner.listable.content
    assert len(content) == 2
    assert learner.vocabulary.row_of("i100")
    learner.put_items([Item(item_id="i1"), Item(item_id="i100", available=False)])
    assert len(content) == 0
    assert not content.with_feature.any()
    learn(learner, town(16))
    assert not learner.vocabulary.row_of("i100")  # never clicked, and nothing is known of it
    assert learner.vocabulary.row_of("i1")


# Checkpoints


def test_a_learner_loads_what_it_saved_and_goes_on_alike(settings, town_learner, same):
    learner, _, known = town_learner
    learner.put_items([item(known + 20, vector=(0.5, 0.1))])
    arrays, state = learner.to_state()
    arrays, state = {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state))
    other = Learner(settings)
    other.load_state(arrays, state)
    again = other.to_state()
    assert same(arrays, again[0])
    assert json.loads(json.dumps(again[1])) == state
    clicks = [click.model_copy(update={"timestamp": 1e6 + click.timestamp}) for click in town(48, seed=3)]
    one, two = learn(learner, clicks), learn(other, clicks)
    for result, its in zip(one, two, strict=True):
        assert result.ranks.tolist() == its.ranks.tolist()
        assert result.rankings == its.rankings


def test_a_state_from_before_content_loads_and_content_comes_from_the_attributes(settings):
    old = Learner(settings.model_copy(update={"content": False}))
    old.put_items([item(number) for number in range(LIVES)])
    learn(old, town(64))
    arrays, state = old.to_state()
    assert not any(name.startswith("content") or ".content." in name for name in arrays)
    learner = Learner(settings)
    learner.load_state(arrays, state)
    assert len(learner.listable.content) == LIVES
    results = learn(learner, town(64, seed=1))
    assert all(result.finite() for result in results)
    asked = Answerer(learner, learner.queries).ask([Question(user_id="1")])
    assert asked.scored.content.shape[-1] == len(COLUMNS) + len(LEARNED)


def test_a_learner_without_content_loads_a_state_with_it(settings, town_learner):
    learner, _, _ = town_learner
    arrays, state = learner.to_state()
    other = Learner(settings.model_copy(update={"content": False}))
    other.load_state(arrays, json.loads(json.dumps(state)))
    assert all(result.finite() for result in learn(other, town(32, seed=5)))
