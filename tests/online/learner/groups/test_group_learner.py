"""Users' attributes in the learner: new users are predicted better by them, users are forgotten, states load."""

import json

import numpy as np
import pytest

from online.config.settings import Settings
from online.evaluation.town import Town
from online.learner.added import columns_of
from online.learner.asking import Answerer, Question
from online.learner.explaining import Explainer
from online.learner.learner import Learner
from stream.events import Click
from stream.user_ids import digest_of
from stream.users import User
from tests.online.conftest import SMALL
from tests.online.learner.conftest import learn, restarted
from tests.online.learner.test_explaining import check_sums

SEGMENTS = 4
DAY_S = 86_400.0


def user(number):
    return User(user_id=str(number), attributes={"segment": f"s{number % SEGMENTS}"})


def new_users(count, seed=0):
    """Each user clicks twice, on items that only users of one segment like."""
    random = np.random.default_rng(seed)
    clicks = []
    for at in range(count):
        number = at // 2
        item = SEGMENTS * int(random.integers(8)) + number % SEGMENTS
        clicks.append(Click(user_id=str(number), item_id=f"i{item}", timestamp=60.0 * at))
    return clicks


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(**{"data_dir": tmp_path_factory.mktemp("users"), **SMALL, "users_topic": "users"})


def learned(settings, clicks):
    """A learner that knows the users -> and its hits at 8, (count,)."""
    learner = Learner(settings)
    if learner.groups is not None:
        for number in range(len(clicks)):
            learner.groups.put(user(number))
    return learner, np.concatenate([one.ranks < 8 for one in learn(learner, clicks)])


@pytest.fixture(scope="module")
def town_learner(settings):
    return learned(settings, new_users(800))


def test_first_clicks_of_users_are_predicted_by_their_groups(settings, town_learner):
    _, hits = town_learner
    _, without = learned(settings.model_copy(update={"users_topic": None}), new_users(800))
    first = slice(400, 800, 2)
    assert without[first].mean() < 0.45  # 8 of 32 items, by chance
    assert hits[first].mean() > without[first].mean() + 0.25


def test_a_user_without_clicks_is_ranked_by_attributes_on_request(town_learner):
    learner, _ = town_learner
    learner.groups.put(user(10_001))
    asked = Answerer(learner, learner.queries)
    answer = asked.answer([Question(user_id="10001", k=6)])[0]
    assert [int(item[1:]) % SEGMENTS for item in answer.items].count(1) >= 5
    asked.explain = Explainer(learner).explain
    question = asked.ask([Question(user_id="10001")])
    explained = asked.explain(question, 0, answer.items)
    check_sums(explained)
    assert "user_attributes" in explained[0]["groups"]
    assert any(
        one["text"] == "clicked more often by users with the same attributes than by others"
        for one in explained[0]["reasons"]
    )


def test_without_records_a_users_topic_changes_nothing(settings, same):
    clicks = new_users(160)
    plain, quiet = Learner(settings.model_copy(update={"users_topic": None})), Learner(settings)
    for one, two in zip(learn(plain, clicks), learn(quiet, clicks), strict=True):
        assert one.ranks.tolist() == two.ranks.tolist()
    arrays, state = plain.to_state()
    others, other_state = quiet.to_state()
    assert same(arrays, {name: array for name, array in others.items() if not name.startswith("groups.")})
    assert state == {name: value for name, value in other_state.items() if name != "groups"}


def test_learning_goes_on_from_a_state_as_if_nothing_had_happened(settings, town_learner, same):
    learner, _ = town_learner
    again = restarted(learner, settings)
    assert same(learner.to_state()[0], again.to_state()[0])
    later = [one.model_copy(update={"timestamp": 1e6 + one.timestamp}) for one in new_users(64, seed=3)]
    for one, two in zip(learn(learner, later), learn(again, later), strict=True):
        assert one.ranks.tolist() == two.ranks.tolist()
        assert one.rankings == two.rankings
    assert same(learner.to_state()[0], again.to_state()[0])


def test_states_load_whether_users_were_known_or_not(settings, town_learner):
    without = settings.model_copy(update={"users_topic": None})
    learner, _ = town_learner
    fewer = restarted(learner, without)
    assert all(one.finite() for one in learn(fewer, new_users(32)))
    more = restarted(fewer, settings)
    assert more.groups.unread
    more.groups.put(user(1))
    assert more.replay.added == [column.name for column in columns_of(settings)]
    assert all(one.finite() for one in learn(more, new_users(64)))
    assert not learner.groups.unread


def test_a_forgotten_user_is_in_no_store(settings):
    learner, _ = learned(settings, new_users(64))
    digest = digest_of("7")
    assert learner.holds(digest)["user_attributes"] == 1
    learner.forget(digest)
    assert not any(learner.holds(digest).values())
    assert "7" not in json.dumps(learner.to_state()[1]["groups"]["users"]).split('"')


def test_the_town_tells_most_users_tastes():
    town = Town(users=400, seed=1)
    records = town.user_records(truth=0.8)
    districts = [one.attributes["district"] for one in records]
    tastes = [f"district {taste}" for taste in town._tastes[:, 0]]
    assert 0.75 < np.mean([one == other for one, other in zip(districts, tastes, strict=True)]) < 0.9
    assert records == town.user_records(truth=0.8)


def test_what_is_clicked_at_an_hour_is_listed_for_new_users_at_that_hour(tmp_path):
    random = np.random.default_rng(0)
    clicks = []
    for at in range(1_400):
        moment = 1_800.0 * at
        part = "night" if moment % DAY_S < DAY_S / 2 else "day"
        clicks.append(Click(user_id=f"u{at // 2}", item_id=f"{part}{random.integers(8)}", timestamp=moment))
    settings = Settings(**{"data_dir": tmp_path, **SMALL, "popularity_by_hour": True})
    learner = Learner(settings)
    learn(learner, clicks)
    asked = Answerer(learner, learner.queries)
    asked.explain = Explainer(learner).explain
    tomorrow = (1 + clicks[-1].timestamp // DAY_S) * DAY_S
    for part, hour in (("night", 3), ("day", 15)):
        question = Question(None, at=tomorrow + 3_600 * hour, k=8, explain=True)
        answer = asked.answer([question])[0]
        assert sum(item.startswith(part) for item in answer.items) >= 7
        check_sums(answer.explanations)
        reasons = [reason["text"] for item in answer.explanations for reason in item["reasons"]]
        assert any("at this hour or on this day of the week" in reason for reason in reasons)
    again = restarted(learner, settings)
    question = Question(None, at=tomorrow + 3_600 * 3, k=8)
    assert Answerer(again, again.queries).answer([question])[0].items == asked.answer([question])[0].items
