"""Lists that were shown are joined to clicks, whichever comes first; what is passed over, and what is bounded."""

import json

import numpy as np
import pytest

from online.config.settings import Settings
from online.evaluation.shown_world import ShownWorld
from online.learner.added import columns_of
from online.learner.asking import Question
from online.learner.learner import Learner
from online.learner.shown.columns import COLUMNS
from online.learner.shown.shown import PASSED_MAX, UNSHOWN
from online.learner.user_stores import UserKey
from stream.events import Click
from stream.impressions import Impression, ShownItem
from stream.user_ids import digest_of
from tests.online.conftest import SMALL
from tests.online.learner.conftest import learn, restarted, ring

START = 1_000_000.0
WINDOW_S = 100.0
ON = {"learn_impressions": True, "impressions_window_s": WINDOW_S, "impressions_held": 8, "impressions_users_held": 4}


def click(user, item, at):
    return Click(user_id=user, item_id=f"i{item}", timestamp=START + at)


def shown(user, items, at, **others):
    return Impression(
        request_id="r",
        user_id=user,
        timestamp=START + at,
        policy="p",
        version=1,
        explored=False,
        items=tuple(ShownItem(item_id=f"i{item}", position=n, **others) for n, item in enumerate(items, 1)),
    )


@pytest.fixture
def learner(small):
    """It knows items 0 to 9."""
    learner = Learner(small(**ON))
    learner.learn([click("z", item, -1_000 + item) for item in range(10)])
    return learner


def rows_of(learner, *items):
    return [learner.vocabulary.row_of(f"i{item}") for item in items]


def counts(learner, item):
    """Times an item was shown in lists that are over, and clicks there."""
    row = rows_of(learner, item)[0]
    return learner.shown.model.shown[row].sum(), learner.shown.model.clicks[row]


def passed(learner, user):
    slot = learner.shown._slots.get(user)
    return set() if slot is None else set(learner.shown._passed[slot].tolist()) - {0}


@pytest.mark.parametrize("late", [False, True])
def test_a_list_is_joined_to_its_clicks_whichever_comes_first(learner, late):
    one = shown("ada", (1, 2, 3, 99), 0)
    if not late:
        learner.shown.put(one)
    learner.learn([click("ada", 2, 5)])
    if late:
        learner.shown.put(one)
    assert counts(learner, 2) == (0, 0)  # it waits
    learner.learn([click("z", 5, WINDOW_S + 1)])
    assert learner.shown.waiting == 0
    assert [counts(learner, item) for item in (1, 2, 3, 4)] == [(1, 0), (1, 1), (1, 0), (0, 0)]
    assert passed(learner, "ada") == set(rows_of(learner, 1, 3))
    learner.learn([click("ada", 3, WINDOW_S + 50)])
    assert passed(learner, "ada") == set(rows_of(learner, 1))


def test_clicks_before_a_list_or_long_after_it_are_not_on_it(learner):
    learner.learn([click("ada", 1, -50)])
    learner.shown.put(shown("ada", (1, 2), 0))
    learner.learn([click("bob", 2, 5), click("ada", 2, WINDOW_S + 1)])
    learner.learn([click("z", 5, 3 * WINDOW_S)])
    assert [counts(learner, item) for item in (1, 2)] == [(1, 0), (1, 0)]


def test_lists_of_visitors_are_passed_over(learner):
    learner.shown.put(shown(None, (1, 2), 0))
    assert learner.shown.waiting == 0


def test_the_oldest_list_makes_room_and_is_not_learned_from(learner):
    for n in range(ON["impressions_held"] + 3):
        learner.shown.put(shown(f"u{n}", (1,), n))
    assert learner.shown.waiting == ON["impressions_held"]
    assert learner.shown.lists_lost == 3
    learner.learn([click("z", 5, 3 * WINDOW_S)])
    assert counts(learner, 1) == (ON["impressions_held"], 0)
    assert len(learner.shown._slots) == ON["impressions_users_held"]
    assert not learner.shown._lists_of


def test_lists_ahead_of_the_clicks_wait_on_their_topic(learner):
    now = learner.now[0]
    for n in range(ON["impressions_held"]):
        assert learner.shown.has_room(now)
        learner.shown.put(shown("ada", (1,), 10_000 + n))
    assert not learner.shown.has_room(now)
    assert learner.shown.has_room(START + 10_000)  # they are what the clicks are at: then the oldest makes room


def test_a_user_passes_over_a_bounded_number_of_items(learner):
    for n in range(20):
        learner.shown.put(shown("ada", range(10), 200 * n))
        learner.learn([click("z", 5, 200 * n + 150)])
    slot = learner.shown._slots["ada"]
    assert learner.shown._passed[slot].shape == (PASSED_MAX,)
    assert passed(learner, "ada") == set(rows_of(learner, *range(10)))


def test_candidates_weigh_what_was_examined_in_the_list_that_was_clicked(learner):
    learner.shown.put(shown("ada", (3, 1, 2), 0))
    given = {}
    with_columns = learner.added.with_columns

    def noted(gathered, query, clicks=None):
        found = with_columns(gathered, query, clicks)
        if clicks is not None:
            given["offsets"], given["rows"] = found.content[:, -1], found.rows
            given["starts"] = found.starts
        return found

    learner.added.with_columns = noted
    learner.learn([click("ada", 2, 5), click("bob", 2, 6)])
    first = slice(*given["starts"][:2])
    offsets = dict(zip(given["rows"][first].tolist(), given["offsets"][first].tolist(), strict=True))
    examination = learner.shown.model.examination
    for place, row in enumerate(rows_of(learner, 3, 1, 2)):
        assert offsets.pop(row) == pytest.approx(np.log(examination[place]), abs=1e-6)
    np.testing.assert_allclose(list(offsets.values()), np.log(UNSHOWN), rtol=1e-6)
    assert not given["offsets"][given["starts"][1] :].any()


def test_learning_goes_on_from_a_state_as_if_nothing_had_happened(small, learner, same):
    for n in range(6):
        learner.shown.put(shown(f"u{n % 3}", range(n, n + 4), 60 * n))
        learner.learn([click(f"u{n % 3}", n + 1, 60 * n + 5)])
    again = restarted(learner, small(**ON))
    assert same(learner.to_state()[0], again.to_state()[0])
    assert learner.to_state()[1] == again.to_state()[1]
    for one in (learner, again):
        one.shown.put(shown("u1", (1, 2), 400))
    clicks = [click("u1", 2, 410), click("u0", 3, 420), click("z", 1, 900)]
    for one, two in zip(learn(learner, clicks, 1), learn(again, clicks, 1), strict=True):
        assert one.ranks.tolist() == two.ranks.tolist()
        assert one.rankings == two.rankings
    assert same(learner.to_state()[0], again.to_state()[0])


def test_without_lists_the_setting_changes_nothing(small, same):
    clicks = ring(96)
    plain, quiet = Learner(small()), Learner(small(**ON))
    for one, two in zip(learn(plain, clicks), learn(quiet, clicks), strict=True):
        assert one.ranks.tolist() == two.ranks.tolist()
    arrays, others = plain.to_state()[0], quiet.to_state()[0]
    assert same(arrays, {name: array for name, array in others.items() if not name.startswith("shown.")})


def test_a_forgotten_user_is_in_no_store_and_older_lists_are_passed_over(small, learner):
    learner.shown.put(shown("ada", (1, 2), 0))
    learner.learn([click("ada", 2, 5), click("z", 5, 2 * WINDOW_S)])
    learner.shown.put(shown("ada", (3, 4), 2 * WINDOW_S))
    digest = digest_of("ada")
    held = learner.holds(digest)
    assert (held["lists_shown"], held["passed_items"]) == (1, 1)
    learner.forget(digest)
    learner.shown.ignore_before(digest, START + 3 * WINDOW_S)
    assert not any(learner.holds(digest).values())
    learner.shown.put(shown("ada", (3, 4), 2 * WINDOW_S))
    assert learner.shown.count_user(UserKey(frozenset({"ada"}), 0)) == {"lists_shown": 0, "passed_items": 0}
    again = restarted(learner, small(**ON))
    again.shown.put(shown("ada", (3, 4), 2 * WINDOW_S))
    assert "ada" not in again.shown.user_ids()
    again.shown.put(shown("ada", (3, 4), 4 * WINDOW_S))  # after the request
    assert "ada" in again.shown.user_ids()
    assert "ada" not in json.dumps(learner.to_state()[1]["shown"])
    learner.learn([click("z", 5, 10 * WINDOW_S)])  # the emptied list is over, too
    assert learner.shown.waiting == 0


def test_rows_that_change_hands_are_forgotten(learner):
    learner.shown.put(shown("ada", (1, 2), 0))
    learner.learn([click("z", 5, 2 * WINDOW_S)])
    learner.shown.put(shown("ada", (1, 2), 2 * WINDOW_S))
    row = rows_of(learner, 1)
    learner.shown.forget_rows(row)
    assert passed(learner, "ada") == set(rows_of(learner, 2))
    assert not learner.shown.model.shown[row].any()
    assert not (learner.shown._rows == row[0]).any()


def test_states_load_whether_lists_were_learned_or_not(small, learner):
    assert len(columns_of(small(**ON))) == len(columns_of(small())) + len(COLUMNS) + 1
    learner.shown.put(shown("ada", (1, 2), 0))
    learner.learn([click("ada", 2, 5), click("z", 5, 2 * WINDOW_S)])
    plain = restarted(learner, small())
    learn(plain, ring(32))
    again = restarted(plain, small(**ON))
    assert all(one.finite() for one in learn(again, ring(32)))


@pytest.fixture(scope="module")
def promoted(tmp_path_factory):
    """Two learners of a site that promotes items whatever they attract: without impressions, and with them."""
    world, found = ShownWorld(users=40, items=60, seed=5), []
    for learned in (False, True):
        small = {**SMALL, "replay_candidates": 16, "data_dir": tmp_path_factory.mktemp("shown")}
        learner = Learner(Settings(**small, learn_impressions=learned), lists=False)
        clicks = []
        for visit in world.visits(4_000):
            if learner.shown is not None:
                learner.shown.put(visit.shown)
            clicks += visit.clicks
            if len(clicks) >= 16:
                learner.learn(clicks)
                clicks = []
        found.append(learner)
    return world, found


def test_lists_are_better_where_what_was_shown_is_known(promoted):
    world, learners = promoted
    clicks = []
    for learner in learners:
        answers = learner.answerer.answer([Question(user_id=f"u{user}", k=10) for user in range(world.users)])
        clicks.append(np.mean([world.expected_clicks(user, one.items) for user, one in enumerate(answers)]))
    assert clicks[1] > 1.03 * clicks[0]


def test_what_is_shown_much_and_clicked_rarely_falls_and_what_stands_low_does_not(promoted):
    world, (_, learner) = promoted
    model = learner.shown.model
    rows = np.array([learner.vocabulary.row_of(f"i{item}") for item in range(world.items)])
    known = (rows > 0) & (model.shown[rows].sum(1) > 100)
    lifts = np.log((model.clicks[rows] + 3) / (model.rate * (model.shown[rows] @ model.examination) + 3))
    attraction = world.attraction.mean(0)
    assert np.corrcoef(lifts[known], np.log(attraction[known]))[0, 1] > 0.8
    promoted_and_poor = known & (world.promotion > 0.5) & (attraction < np.median(attraction) / 2)
    assert promoted_and_poor.any()
    assert lifts[promoted_and_poor].max() < 0
    height = (model.shown[rows] @ np.arange(12)) / np.maximum(model.shown[rows].sum(1), 1)  # mean band of each item
    off = lifts[known] - np.log(attraction[known] / attraction[known].mean())
    assert abs(np.corrcoef(height[known], off)[0, 1]) < 0.5
