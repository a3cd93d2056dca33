"""Clicks of which another worker takes care are only counted."""

import numpy as np
import pytest

from online.config.settings import Settings
from online.learner.learner import Learner
from online.learner.lookahead import UpcomingBatch
from stream.events import Click

COUNTED = ("store.", "histories.", "returns.")  # parts of a learner's state that depend on no weights
OF_WEIGHTS = ("store.log_states", "histories.served")


@pytest.fixture
def settings(small) -> Settings:
    return small()


@pytest.fixture
def clicks() -> list[Click]:
    random = np.random.default_rng(1)
    users, items = random.integers(0, 20, 400), random.integers(0, 40, 400) ** 2 // 40
    return [
        Click(user_id=f"u{user}", item_id=f"i{item}", timestamp=1e9 + 60.0 * at)
        for at, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True))
    ]


def learned(settings: Settings, clicks: list[Click], share: float | None, size: int = 32) -> Learner:
    """Returns a learner that owns this share of the users; None: all, without saying so."""
    learner = Learner(settings)
    for start in range(0, len(clicks), size):
        batch = clicks[start : start + size]
        owned = None if share is None else np.array([int(one.user_id[1:]) < 20 * share for one in batch])
        learner.learn(batch, owned=owned)
    return learner


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_facts_are_the_same_whoever_owns_the_clicks(settings: Settings, clicks: list[Click], share: float) -> None:
    expected, _ = learned(settings, clicks, None).to_state()
    found, _ = learned(settings, clicks, share).to_state()
    facts = [name for name in expected if name.startswith(COUNTED) and not name.startswith(OF_WEIGHTS)]
    assert len(facts) > 10
    for name in facts:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_owning_all_is_as_saying_nothing(settings: Settings, clicks: list[Click]) -> None:
    expected, state = learned(settings, clicks, None).to_state()
    found, other = learned(settings, clicks, 1.0).to_state()
    assert state == other
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_weights_learn_from_owned_clicks_only(settings: Settings, clicks: list[Click]) -> None:
    untouched = Learner(settings).weights.tensors()["first"].clone()
    learner = learned(settings, clicks, 0.0)
    assert (learner.weights.tensors()["first"] == untouched).all()
    assert learner.scores.scored == 0
    some = learned(settings, clicks, 0.3)
    assert some.scores.scored > 0
    assert set(some.states.user_ids()) <= {f"u{user}" for user in range(6)}


def test_only_owned_clicks_give_lists(settings: Settings, clicks: list[Click]) -> None:
    learner = learned(settings, clicks, 0.3)
    batch = clicks[:32]
    owned = np.array([one.user_id == batch[5].user_id for one in batch])
    result = learner.learn(batch, owned=owned)
    assert list(result.rankings) == [batch[5].user_id]
    assert len(result.losses) == len(result.ranks) == owned.sum()
    assert not learner.learn(batch, owned=np.zeros(32, np.bool_)).rankings


def test_the_next_batch_may_be_announced_with_its_owned_clicks(settings: Settings, clicks: list[Click]) -> None:
    owned = [np.arange(32) % 3 == start % 2 for start in range(4)]
    batches = [clicks[32 * at : 32 * at + 32] for at in range(4)]
    plain, ahead = Learner(settings), Learner(settings)
    for at in range(4):
        expected = plain.learn(batches[at], owned=owned[at])
        following = None if at == 3 else lambda at=at: UpcomingBatch(batches[at + 1], None, owned[at + 1])
        assert ahead.learn(batches[at], owned=owned[at], following=following).rankings == expected.rankings
