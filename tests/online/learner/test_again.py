"""Clicks that were only counted are trained on later, as if they had been when they were made."""

from typing import Any

import numpy as np
import pytest

from online.config.settings import Settings
from online.learner.again import retraced
from online.learner.facts.features import counted
from online.learner.learner import Learner
from stream.events import Click
from tests.online.conftest import NOW, SMALL

ROOMY = {"successors_held": 64, "neighbours_held": 64, "moments_held": 2_000}  # no table makes room for a newcomer


def some_clicks(count: int, seed: int = 0, users: int = 8, items: int = 30) -> list[Click]:
    random = np.random.default_rng(seed)
    who, what = random.integers(0, users, count), random.integers(0, items, count) ** 2 // items
    return [Click(user_id=f"u{who[n]}", item_id=f"i{what[n]}", timestamp=NOW - 9_000.0 + 7 * n) for n in range(count)]


def learner_of(tmp_path: Any, **overrides: Any) -> Learner:
    return Learner(
        Settings(data_dir=tmp_path, **{**SMALL, "abuse_filter": False, "history_max": 64, **ROOMY, **overrides})
    )


def count_only(learner: Learner, clicks: list[Click]) -> None:
    for start in range(0, len(clicks), 32):
        part = clicks[start : start + 32]
        learner.learn(part, owned=np.zeros(len(part), np.bool_))


def facts(learner: Learner) -> dict[str, np.ndarray]:
    arrays, _ = learner.to_state()
    others = ("weights.", "lift.", "replay.", "store.log_states", "popular.")
    return {name: array.copy() for name, array in arrays.items() if not name.startswith(others)}


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_facts_are_the_same_before_and_after(tmp_path, exclude_seen: bool) -> None:
    learner, clicks = learner_of(tmp_path, exclude_seen=exclude_seen), some_clicks(300)
    count_only(learner, clicks)
    before = facts(learner)
    assert learner.train_again(clicks[200:264]) == 64
    after = facts(learner)
    assert after.keys() == before.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert learner.weights.optimizer.steps > 0


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_features_are_those_of_a_first_pass(tmp_path, exclude_seen: bool) -> None:
    honest = learner_of(tmp_path, exclude_seen=exclude_seen)
    clicks = some_clicks(240)
    count_only(honest, clicks[:200])
    begun = honest.preparer.begin(clicks[200:232], None)
    first, _ = honest.preparer.gather(begun)
    late = learner_of(tmp_path, exclude_seen=exclude_seen)
    count_only(late, clicks[:232])
    again = retraced(late, clicks[200:232])
    assert again is not None
    np.testing.assert_array_equal(again.batch.rows, begun.batch.rows)
    np.testing.assert_array_equal(again.batch.targets, begun.batch.targets)
    np.testing.assert_allclose(again.batch.active, begun.batch.active)
    names = [feature.name for feature in counted(late.settings.popularity_half_lives)]
    compared = [at for at, name in enumerate(names) if not name.startswith("popularity")]
    alike = 0
    for n in range(32):
        mine, theirs = slice(*again.gathered.starts[n : n + 2]), slice(*first.starts[n : n + 2])
        a = {row: at for at, row in enumerate(again.gathered.rows[mine].tolist())}
        b = {row: at for at, row in enumerate(first.rows[theirs].tolist())}
        alike += len(a.keys() & b.keys()) / len(a.keys() | b.keys()) > 0.9
        both = sorted(a.keys() & b.keys())
        x = again.gathered.features[mine][[a[row] for row in both]][:, compared]
        y = first.features[theirs][[b[row] for row in both]][:, compared]
        np.testing.assert_allclose(x, y, atol=2e-5, err_msg=str([names[at] for at in compared]))
    assert alike >= 30


def test_a_click_does_not_see_itself_where_others_came_later(tmp_path) -> None:
    """A user clicks on an item that follows the one before for the first time: no feature may tell."""
    learner = learner_of(tmp_path)
    clicks = some_clicks(200)
    new = [
        Click(user_id="new", item_id=item, timestamp=NOW - 5_000.0 + n)
        for n, item in enumerate(["i0", "i1", "i2", "i29", "i3"])
    ]
    count_only(learner, [*clicks, *new, *some_clicks(40, seed=1)])
    again = retraced(learner, new)
    assert again is not None
    names = [feature.name for feature in counted(learner.settings.popularity_half_lives)]
    positions = [
        np.flatnonzero(again.gathered.rows[slice(*again.gathered.starts[n : n + 2])] == again.batch.rows[n])
        for n in range(len(new))
    ]
    for n, at in enumerate(positions):
        for one in at.tolist():
            values = dict(zip(names, again.gathered.features[again.gathered.starts[n] + one].tolist(), strict=True))
            assert values["own_times"] == 0
            assert values["elapsed"] > 0
    counts = learner.store.items.clicks.copy()
    learner.train_again(new)
    np.testing.assert_array_equal(learner.store.items.clicks, counts)


def test_clicks_beyond_the_history_are_skipped(tmp_path) -> None:
    learner = learner_of(tmp_path, history_max=12)
    clicks = some_clicks(300, users=2)
    count_only(learner, clicks)
    assert learner.train_again(clicks[:60]) == 0
    trained = learner.train_again(clicks[270:])
    assert 20 <= trained <= 24


def test_flagged_clicks_and_unknown_users_train_nothing(tmp_path) -> None:
    learner = learner_of(tmp_path)
    count_only(learner, some_clicks(200))
    robot = [Click(user_id="robot", item_id="i1", timestamp=NOW - 4_000.0 + n) for n in range(30)]
    count_only(learner, robot)
    before = learner.weights.optimizer.steps
    learner.abuse_filter.flagged[np.arange(211, 231) % len(learner.abuse_filter.flagged)] = True
    assert learner.train_again(robot) == 10
    stranger = [Click(user_id="stranger", item_id="i1", timestamp=NOW)]
    assert learner.train_again(stranger) == 0
    assert learner.weights.optimizer.steps >= before


def test_weights_learn_what_a_first_pass_would_teach(tmp_path) -> None:
    clicks = [Click(user_id=f"u{n % 8}", item_id=f"i{(n // 8) % 10}", timestamp=NOW - 9_000.0 + n) for n in range(400)]
    learner = learner_of(tmp_path)
    count_only(learner, clicks)
    losses = []
    for _ in range(4):
        for start in range(240, 400, 32):
            learner.train_again(clicks[start : start + 32])
        result = learner.learn([Click(user_id="u0", item_id="i0", timestamp=NOW)], train=False)
        losses.append(learner.weights.optimizer.steps)
        assert result.finite()
    assert losses == sorted(losses)
    assert learner.weights.finite()
