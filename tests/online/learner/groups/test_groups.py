"""Groups of users: what is counted, what stands out, what the columns say; held to plain Python."""

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from online.learner.added import columns_of, parts_of
from online.learner.facts.gather import SeenRows
from online.learner.facts.store import Gathered
from online.learner.facts.tables import copy_of_rows, neighbours
from online.learner.groups import groups as module
from online.learner.groups.columns import COLUMNS
from online.learner.groups.features import (
    DAYS_FROM,
    GROUPS,
    GROUPS_OF_USER_MAX,
    HOURS_FROM,
    NUMBERS,
    groups_of,
    groups_of_moments,
)
from online.learner.groups.groups import CANDIDATES_MAX, GROUP_USERS_MIN, UserGroups
from online.learner.groups.kernels import SMOOTHING
from online.learner.user_stores import UserKey
from stream.users import User

DAY_S = 86_400.0
ROWS = 40


def user(name, *tags, **attributes):
    return User(user_id=name, tags=tags, attributes=attributes)


def known(*users, held=100, half_life_s=30 * DAY_S, by_hour=False):
    groups = UserGroups(held, half_life_s, by_hour=by_hour)
    groups.grow(ROWS)
    for one in users:
        groups.put(one)
    return groups


def observe(groups, clicks, at=0.0):
    """Clicks (user, row), one after the other, a second apart."""
    users, rows = [user for user, _ in clicks], np.array([row for _, row in clicks], np.int64)
    times = at + np.arange(len(rows), dtype=float)
    groups.observe(users, rows, times, times, np.ones(len(rows), np.bool_))


def of(groups, *users, at=0.0, few=True):
    return groups.groups(users, np.full(len(users), at), np.full(len(users), few))


def test_values_are_the_same_whatever_their_case_and_numbers_share_bins():
    assert groups_of((), {"town": "Berlin"}) == groups_of((), {"town": "BERLIN"})
    assert groups_of((), {"age": 31.0}) == groups_of((), {"age": 32.0}) != groups_of((), {"age": 62.0})
    assert groups_of(("a",), {}) != groups_of((), {"a": True})
    many = groups_of([f"tag {n}" for n in range(40)], {"town": "x"})
    assert len(many) == GROUPS_OF_USER_MAX
    assert many[0] == groups_of((), {"town": "x"})[0]
    assert 0 < many.min() <= many.max() < GROUPS


def test_the_latest_record_counts_and_one_that_says_nothing_erases():
    groups = known(*(user(name, town="x") for name in "abc"))
    (town,) = groups_of((), {"town": "x"})
    assert groups.with_group[town] == 3
    groups.put(user("a", town="y"))
    groups.put(user("b"))
    assert "b" not in groups
    assert groups.with_group[town] == 1
    assert groups.with_group.sum() == 2


def test_the_user_used_least_lately_makes_room():
    groups = known(user("a", town="x"), user("b", town="x"), held=2)
    observe(groups, [("a", 1)])
    groups.put(user("c", town="x"))
    assert groups.user_ids() == ["a", "c"]
    assert groups.users_lost == 1
    assert groups.with_group.sum() == 2


def test_a_group_of_too_few_users_is_counted_and_not_used():
    few = [user(str(n), town="x") for n in range(GROUP_USERS_MIN - 1)]
    groups = known(*few)
    observe(groups, [("0", 1)] * 5)
    assert not of(groups, "0").any()
    groups.put(user("more", town="x"))
    assert of(groups, "0", "more", "unknown", "").any(1).tolist() == [True, True, False, False]
    found = groups.candidates(of(groups, "more"), np.array([True]), np.zeros(ROWS, np.bool_))
    assert found.rows.tolist() == []  # 5 of 5 clicks is what is expected


def test_hours_and_days_are_those_of_the_calendar():
    moments = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=7 * n, minutes=n) for n in range(200)]
    found = groups_of_moments(np.array([moment.timestamp() for moment in moments]))
    assert (found[:, 0] - HOURS_FROM).tolist() == [moment.hour for moment in moments]
    days = [(moment.weekday() - 3) % 7 for moment in moments]  # 1970 began on a Thursday
    assert (found[:, 1] - DAYS_FROM).tolist() == days
    assert found.max() < NUMBERS


def test_the_hour_is_a_group_of_users_with_few_clicks_where_it_is_asked_for():
    groups = known(user("a"), by_hour=True)
    assert groups.active
    assert not known().active
    observe(groups, [("a", 1), ("b", 2)], at=8 * 3_600.0)
    observe(groups, [("a", 3)] * 2, at=DAY_S + 20 * 3_600.0)
    assert not of(groups, "c", few=False).any()
    assert not of(known(), "c").any()
    for day, hour, best in ((0, 8, {1, 2}), (1, 20, {3})):
        mine = of(groups, "c", at=day * DAY_S + hour * 3_600.0)
        assert mine[0, -2:].tolist() == [HOURS_FROM + hour, DAYS_FROM + day]
        found = groups.candidates(mine, np.array([True]), np.zeros(ROWS, np.bool_)).rows
        assert set(found.tolist()) == best


@pytest.fixture
def town():
    """Users of two districts and two languages; those of each district click on other items."""
    users = [user(f"u{n}", "vip" if n % 3 else "new", district=f"d{n % 2}") for n in range(12)]
    random = np.random.default_rng(0)
    clicks = []
    for _ in range(300):
        n = int(random.integers(14))  # of some nothing is known
        clicks.append((f"u{n}", 1 + int(random.integers(15)) + 15 * (n % 2) * (random.random() < 0.8)))
    groups = known(*users)
    observe(groups, clicks)
    return users, clicks, groups


def expected_columns(users, clicks, name, row, history):
    """The columns of one candidate, counted anew."""
    of = {one.user_id: set(groups_of(one.tags, one.attributes).tolist()) for one in users}
    popular, lifts, counts, residual = Counter(row for _, row in clicks), [], [], 0.0
    for group in groups_of(*next((one.tags, one.attributes) for one in users if one.user_id == name)).tolist():
        mine = [row for who, row in clicks if group in of.get(who, ())]
        seen, wanted = mine.count(row), len(mine) * popular[row] / len(clicks)
        lifts.append(math.log((seen + SMOOTHING) / (wanted + SMOOTHING)))
        counts.append(seen)
        residual = max(residual, (seen - wanted) / math.sqrt(wanted + SMOOTHING))
    found = [np.mean(lifts), max(lifts), math.log1p(np.mean(counts)) / 4, math.log1p(residual)]
    return np.array(found + [value / (1 + history) for value in found])


def gathered(rows, starts, history):
    features = np.zeros((len(rows), 3), np.float32)
    features[:, 1] = np.log1p(history) / 4
    fields = dict.fromkeys(Gathered._fields)
    fields |= {"rows": np.array(rows, np.int32), "starts": np.array(starts, np.int64), "features": features}
    return Gathered(**fields)


def test_columns_are_those_of_plain_python(town):
    users, clicks, groups = town
    rows, starts = [*range(1, 35), *range(1, 35)], [0, 34, 34, 68]
    history = np.repeat([0, 4], 34)
    found = groups.columns(gathered(rows, starts, history), of(groups, "u0", "unknown", "u5"), 1)
    wanted = [expected_columns(users, clicks, "u0", row, 0) for row in rows[:34]]
    wanted += [expected_columns(users, clicks, "u5", row, 4) for row in rows[34:]]
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)
    assert found.shape[1] == len(COLUMNS)
    of_unknown = groups.columns(gathered([1, 2], [0, 2], np.zeros(2)), of(groups, "unknown"), 1)
    assert not of_unknown.any()


def test_candidates_are_the_items_that_stand_out_in_a_users_groups(town):
    users, clicks, groups = town
    blocked = np.zeros(ROWS, np.bool_)
    wanted = np.array([True, False, True, True])
    found = groups.candidates(of(groups, "u0", "u0", "unknown", "u5"), wanted, blocked)
    parts = np.split(found.rows, found.starts[1:-1])
    assert [len(part) for part in parts[1:3]] == [0, 0]
    for name, part in (("u0", parts[0]), ("u5", parts[3])):
        residuals = {row: math.expm1(expected_columns(users, clicks, name, row, 0)[3]) for row in range(1, ROWS)}
        best = sorted((row for row in residuals if residuals[row] > 1e-6), key=lambda row: -residuals[row])
        assert [round(residuals[row], 3) for row in part.tolist()] == [
            round(residuals[row], 3) for row in best[:CANDIDATES_MAX]
        ]
    blocked[parts[0][0]] = True
    again = groups.candidates(of(groups, "u0"), np.array([True]), blocked)
    assert parts[0][0] not in again.rows
    assert isinstance(again, SeenRows)


def test_older_clicks_count_less_however_long_the_stream_is():
    users = [user(name, town="x") for name in "abc"]
    groups = known(*users, half_life_s=DAY_S)
    (town,) = groups_of((), {"town": "x"}).tolist()
    for day in range(100):  # counts are scaled back several times
        observe(groups, [("a", 1 + day % 2)], at=day * DAY_S)
    table = groups.table
    counts = {int(row): count / groups._unit for row, count in zip(*neighbours(table, town), strict=True)}
    assert counts == pytest.approx({2: 4 / 3, 1: 2 / 3}, rel=1e-5)  # 1 + 1/4 + 1/16 …, the newest is row 2
    assert groups.popular.max() < 2.0 ** (module._DOUBLINGS_MAX + 1)
    assert groups.total == pytest.approx(groups.popular.sum())


def test_items_that_lose_their_rows_are_forgotten(town):
    _, _, groups = town
    groups.forget_rows([3, 17])
    assert groups.popular[[3, 17]].tolist() == [0, 0]
    assert groups.total == pytest.approx(groups.popular.sum())
    assert not np.isin(copy_of_rows(groups.table, slice(None)).others, [3, 17]).any()


def test_a_user_is_forgotten_and_a_state_comes_back(town, same):
    _, _, groups = town
    key = UserKey(frozenset({"u3"}), 7)
    count = groups.count_user(key)
    assert count["user_attributes"] == 2
    assert groups.forget_user(key) == count
    assert groups.count_user(key) == groups.forget_user(key) == {"user_attributes": 0}
    arrays, state = groups.to_state()
    again = known()
    again.load_state(arrays, state)
    assert same(arrays, again.to_state()[0])
    assert again.to_state()[1] == state
    np.testing.assert_array_equal(again.with_group, groups.with_group)
    assert not again.unread
    fewer = known(held=4)
    fewer.load_state(arrays, state)
    assert fewer.user_ids() == groups.user_ids()[-4:]
    more = known(held=1_000)
    more.load_state(*fewer.to_state())
    assert more.unread


def test_without_the_setting_there_are_no_columns(small):
    assert parts_of(small()) == ["content"]
    assert len(columns_of(small(users_topic="users"))) == len(columns_of(small())) + len(COLUMNS)
