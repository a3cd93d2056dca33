"""The reaction: raised rates that fall back, a past that counts less, each of them by setting; and exact restarts."""

import json
from itertools import islice

import numpy as np
import pytest

from online.config.settings import Settings
from online.evaluation import worlds
from online.evaluation.town import Town
from online.learner.learner import Learner
from online.lifecycle.drift import BETTER, WORSE, Alarm
from online.lifecycle.reaction import Changes, Reaction
from tests.online.conftest import SMALL

TOWN = Town(users=40, items=120)
SETTINGS = Settings(**SMALL | {"reaction_clicks": 100, "reaction_learning_rate_factor": 3.0})
QUICK = {
    "drift_delta": 0.002,
    "drift_clicks_each": 10,
    "drift_threshold": 8.0,
    "drift_tolerance": 0.5,
    "reaction_clicks": 400,
}


def alarm(direction=WORSE):
    return Alarm(10, 5.0, "loss", None, "ADWIN", direction, 1.0, 2.0, 5, 2.0)


def batches(clicks, size=16):
    clicks = iter(clicks)
    while batch := list(islice(clicks, size)):
        yield batch


@pytest.fixture
def learner():
    return taught(SETTINGS)


def taught(settings, clicks=320):
    learner = Learner(settings)
    for batch in batches(worlds.quiet(0, town=TOWN).clicks(clicks)):
        learner.learn(batch)
    return learner


def rates_of(learner):
    weights = learner.weights
    return [
        weights.optimizer.boost,
        *(group["lr"] for group in weights.adam.param_groups),
        weights.adagrad.learning_rate,
    ]


def test_learning_rates_rise_with_an_alarm_and_fall_back(learner):
    reaction, before = Reaction(SETTINGS, learner), rates_of(learner)
    reaction.start(alarm())
    assert rates_of(learner) == pytest.approx([3 * rate for rate in before])
    reaction.after(50)
    assert rates_of(learner) == pytest.approx([2 * rate for rate in before])
    reaction.after(60)
    assert rates_of(learner) == before
    assert (reaction.left, reaction.reactions) == (0, 1)


def test_what_was_counted_counts_less_and_what_was_replayed_is_gone(learner):
    rows = np.arange(learner.vocabulary.rows)
    popular, first = learner.popularity(), learner.store.tables.first.counts.copy()
    assert learner.replay.filled
    Reaction(SETTINGS.model_copy(update={"reaction_counts_kept": 0.25}), learner).start(alarm())
    np.testing.assert_allclose(learner.popularity()[rows], 0.25 * popular, rtol=1e-6)
    assert np.array_equal(learner.store.tables.first.counts, np.float32(0.25) * first)
    assert learner.replay.filled == 0


@pytest.mark.parametrize(
    ("changed", "direction"),
    [
        ({"reaction_clicks": 0}, WORSE),
        ({}, BETTER),
        ({"reaction_learning_rate_factor": 1.0, "reaction_counts_kept": 1.0, "reaction_replay_kept": 1.0}, WORSE),
    ],
    ids=["no reaction", "nothing is worse", "each part turned off"],
)
def test_it_can_be_turned_off_and_improvements_ask_for_nothing(learner, changed, direction):
    before = known(learner)
    Reaction(SETTINGS.model_copy(update=changed), learner).start(alarm(direction))
    assert known(learner) == before


def test_weights_that_replace_others_get_the_rates_that_hold(learner):
    reaction = Reaction(SETTINGS, learner)
    learner.weights.scale_learning_rate(3.0)  # as those of a version that was kept in the middle of a reaction
    reaction.after(16)
    assert rates_of(learner)[0] == 1.0


def known(learner):
    arrays, state = learner.to_state()
    return {name: array.tobytes() for name, array in arrays.items()}, state


def test_a_change_is_found_and_reacted_to_also_across_a_restart():
    settings = Settings(**SMALL | QUICK)
    clicks = list(batches(worlds.sudden(0, change_at=1_600, town=TOWN).clicks(2_400)))
    learner = taught(settings, 0)
    changes, found = Changes(settings, learner), []
    for at, batch in enumerate(clicks):
        if changes.reaction.left and not found:
            arrays, state = learner.to_state()
            saved = {name: array.copy() for name, array in arrays.items()}, json.dumps([state, changes.to_state()])
            found = [at]
        changes.update(batch, learner.learn(batch))
    assert found, "no reaction"
    assert 100 <= found[0] < 120
    again = taught(settings, 0)
    state, watched = json.loads(saved[1])
    again.load_state(saved[0], state)
    goes_on = Changes(settings, again)
    goes_on.load_state(watched)
    for batch in clicks[found[0] :]:
        goes_on.update(batch, again.learn(batch))
    assert known(again) == known(learner)
    assert goes_on.to_state() == changes.to_state()


def test_while_clicks_are_missing_nothing_is_forgotten():
    settings = Settings(**SMALL | QUICK)
    learner = taught(settings)
    changes = Changes(settings, learner)
    spells = {"falling": True, "log_spell": 0.0, "spells": 10, "spells_s": 1e3}  # 200 clicks a second are expected
    changes.rates.load_state(changes.rates.to_state() | spells)
    reacted = []
    for batch in batches(worlds.sudden(0, change_at=800, town=TOWN).clicks(1_600)):
        notices = changes.update(batch, learner.learn(batch))
        reacted += [notice for notice in notices if isinstance(notice, Alarm) and notice.worse]
    assert reacted
    assert changes.reaction.reactions == 0
