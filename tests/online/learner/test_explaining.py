"""Explanations add up, name what was counted, and change nothing."""

import json
from datetime import UTC, timedelta, timezone
from itertools import pairwise

import numpy as np
import pytest
import torch

from online.learner import explaining
from online.learner.asking import Answerer, Question, RecentClick
from online.learner.explaining import FIRST, NOTHING, RANKER, Explainer
from online.learner.facts.feature_groups import GROUPS, group_of
from online.learner.facts.features import features
from online.learner.learner import Learner
from online.learner.reasons import duration, moment_words, times
from stream.items import Item
from tests.online.learner.conftest import click, learn, ring

DAY_S = 86_400.0
MONDAY_9 = 1_730_710_800.0  # 4 November 2024, 9:00 UTC


def explained(learner, question, items=None, zone=UTC):
    answerer = Answerer(learner, learner.queries)
    answer = answerer.answer([question])[0]
    asked = answerer.ask([question])
    with torch.no_grad():
        return asked, Explainer(learner, zone).explain(asked, 0, answer.items if items is None else items)


def check_sums(found):
    for one in found:
        assert sum(one["contributions"].values()) == pytest.approx(one["difference"], abs=1e-9)
        assert sum(one["groups"].values()) == pytest.approx(one["difference"], abs=1e-9)
        assert one["score"] - one["average"] == pytest.approx(one["difference"], abs=1e-9)


def text_of(one, group):
    return next(reason["text"] for reason in one["reasons"] if reason["group"] == group)


def reasons_of_all_groups(learner, question, item, zone=UTC, *, monkeypatch):
    """Words for every group, whatever it adds."""
    monkeypatch.setattr(explaining, "REASONS_MAX", 99)
    monkeypatch.setattr(explaining, "REASON_SHARE_MIN", -np.inf)
    _, (one,) = explained(learner, question, [item], zone)
    return {reason["group"]: reason["text"] for reason in one["reasons"]}


def test_every_feature_has_a_group():
    names = [feature.name for feature in features((10, 100))]
    assert {group_of(name) for name in names} == set(GROUPS.values())


@pytest.mark.parametrize("networks", [1, 2])
def test_contributions_of_learned_lists_add_up_to_the_ranker_s_differences(small, networks):
    learner = Learner(small(ranker_networks=networks))
    learn(learner, ring(500))
    with torch.no_grad():
        learner.weights.ranker.out.normal_()
    answerer, explainer = Answerer(learner, learner.queries), Explainer(learner)
    questions = [Question(user_id=str(user)) for user in range(8)] + [Question(recent=[RecentClick("i3")])]
    lists = answerer.answer(questions)
    asked = answerer.ask(questions)
    for at, answer in enumerate(lists):
        found = explainer.explain(asked, at, answer.items)
        check_sums(found)
        rows = asked.scored.rows()[at]
        for one in found:
            assert one["scored_by"] == RANKER
            slot = np.flatnonzero(rows == learner.vocabulary.row_of(one["item_id"]))[0]
            assert one["score"] == pytest.approx(float(asked.scored.scores[at, slot]), abs=1e-4)
            json.dumps(one)
        differences = [one["difference"] for one in found]
        assert all(before >= after - 1e-4 for before, after in pairwise(differences))


def test_items_beyond_the_ranker_are_explained_by_the_linear_score(small):
    learner = Learner(small(candidates_kept=4, list_size=4))
    learn(learner, ring(400))
    answerer = Answerer(learner, learner.queries)
    question = Question(user_id="1", k=4, candidates=[f"i{n}" for n in range(20)])
    asked = answerer.ask([question])
    start, stop = asked.scored.gathered.starts.tolist()
    rows = asked.scored.gathered.rows[start:stop].tolist()
    found = Explainer(learner).explain(asked, 0, learner.vocabulary.items_of(rows))
    check_sums(found)
    by = [one["scored_by"] for one in found]
    assert by.count(RANKER) == 4
    assert by.count(FIRST) == len(rows) - 4 > 0
    for at, one in enumerate(found):
        if one["scored_by"] == FIRST:
            assert one["score"] == pytest.approx(float(asked.scored.first[start + at]), abs=1e-4)


def test_an_item_that_was_no_candidate_has_no_reasons(learner):
    learn(learner, ring(100))
    _, (one,) = explained(learner, Question(user_id="1"), ["never"])
    assert one["scored_by"] == NOTHING
    assert one["reasons"] == one["moments"] == []
    json.dumps(one)


def test_features_that_all_candidates_share_add_nothing(learner):
    learn(learner, ring(300))
    _, found = explained(learner, Question(user_id="1"))
    for one in found:
        for name in ("history", "gap", "last_clicks"):
            assert one["contributions"].get(name, 0) == pytest.approx(0, abs=1e-6)


def test_moments_are_those_that_point_at_the_item_and_share_out_what_the_heads_add(learner):
    learn(learner, ring(500))
    asked, found = explained(learner, Question(user_id="1"))
    log, gathered = learner.store.log, asked.scored.gathered
    seen = 0
    for one in found:
        row = learner.vocabulary.row_of(one["item_id"])
        place = gathered.rows.tolist().index(row)
        for whose, hits in (("own", gathered.own), ("world", gathered.world)):
            mine = hits.moments[hits.candidates == place]
            assert one["moments_found"][whose] == len(mine)
            assert (log.items[mine] == row).all()
            named = [moment for moment in one["moments"] if moment["whose"] == whose]
            assert {moment["at"] for moment in named} <= set(log.times[mine].tolist())
            if len(mine) == len(named) > 0:
                names = {feature.name for feature in features((1,)) if group_of(feature.name) == f"{whose}_moments"}
                heads = [value for name, value in one["contributions"].items() if name in names]
                counted = asked.scored.recalled[("own", "world").index(whose)][place] > 0
                if counted.all():
                    assert sum(moment["contribution"] for moment in named) == pytest.approx(sum(heads), abs=1e-5)
                    seen += 1
            assert all(moment["weight"] >= 0 for moment in named)
    assert seen


def test_explaining_changes_nothing(learner, same):
    learn(learner, ring(300))
    before = learner.to_state()[0]
    before = {name: array.copy() for name, array in before.items()}
    explained(learner, Question(user_id="1"))
    assert same(before, learner.to_state()[0])


# Words


def shop(small):
    """User a: tea, kettle over and over, and a cup long ago; others see the same. Mondays at 9."""
    learner = Learner(small(history_max=40, recall_latest=30))
    clicks, at = [], MONDAY_9 - 8 * 7 * DAY_S
    for week in range(8):
        for user in "abc":
            clicks += [click(user, "tea", at), click(user, "kettle", at + 60)]
            at += 1
        clicks.append(click("d", f"other{week}", at + 100))
        at += 7 * DAY_S - 3
    learn(learner, [one.model_copy(update={"item_id": one.item_id[1:]}) for one in clicks])
    learner.put_items([Item(item_id="kettle", title="Kettle, 2 l"), Item(item_id="tea", title="Green tea")])
    return learner


def test_reasons_name_counts_titles_and_times(small, monkeypatch):
    learner = shop(small)
    question = Question(user_id="a", recent=[RecentClick("tea", MONDAY_9)], at=MONDAY_9 + 30)
    texts = reasons_of_all_groups(learner, question, "kettle", monkeypatch=monkeypatch)
    assert texts["followed"] == "followed “Green tea” 24 times"
    assert texts["clicked"] == "you opened it 8 times, last 7 days ago"
    assert texts["own_moments"].startswith("you chose it in ")
    assert texts["own_moments"].endswith(" moments of yours like this one: Monday morning, after “Green tea”") or (
        "Monday morning, after “Green tea”, and before that “Kettle, 2 l”" in texts["own_moments"]
    )
    assert "after “Green tea”" in texts["world_moments"]
    assert "“Green tea”" in texts["near"]
    assert "opened 24 times" in texts["popular"]


def test_days_and_hours_are_named_in_the_zone_asked_for(small, monkeypatch):
    learner = shop(small)
    question = Question(user_id="a", recent=[RecentClick("tea", MONDAY_9)], at=MONDAY_9 + 30)
    tokyo = timezone(timedelta(hours=9))
    texts = reasons_of_all_groups(learner, question, "kettle", tokyo, monkeypatch=monkeypatch)
    assert "Monday evening" in texts["own_moments"]


def test_strongest_reasons_come_first_and_are_at_most_three(learner):
    learn(learner, ring(400))
    _, found = explained(learner, Question(user_id="1"))
    for one in found:
        added = [reason["contribution"] for reason in one["reasons"]]
        assert len(added) <= 3
        assert added == sorted(added, reverse=True)
        best = sorted((value for value in one["groups"].values() if value > 0), reverse=True)[: len(added)]
        assert added == best
        assert all(reason["text"] for reason in one["reasons"])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "1 minute"),
        (7_200, "2 hours"),
        (86_400, "1 day"),
        (2.4 * 86_400, "2 days"),
        (800 * 86_400, "2 years"),
    ],
)
def test_durations_are_in_their_largest_unit(seconds, words):
    assert duration(seconds) == words


def test_counts_and_moments_in_words():
    assert [times(count) for count in (0.4, 1, 2, 30.7, 1_234)] == ["once", "once", "twice", "31 times", "1,234 times"]
    assert moment_words(MONDAY_9, UTC) == ("Monday", "morning")
    assert moment_words(MONDAY_9 + 15 * 3_600, UTC) == ("Tuesday", "night")
