"""A learner in worlds whose changes are known: none is found before the change, and then it is, soon. The benchmark
(benchmarks/drift.py) asks the same of more worlds, longer ones, and of the learner as it is delivered."""

import pytest

from benchmarks.drift import Life, recovery
from online.config.settings import Settings
from online.evaluation import worlds
from online.evaluation.town import Town
from tests.online.conftest import SMALL

TOWN = Town(users=40, items=120)
AT = 1_600
SETTINGS = Settings(**SMALL | {"drift_delta": 0.0005, "drift_clicks_each": 10, "drift_threshold": 10.0})


@pytest.mark.parametrize("seed", [0, 1])
def test_a_quiet_world_gives_no_alarm_and_a_sudden_change_one_within_300_clicks(seed):
    life = Life(SETTINGS).live(worlds.sudden(seed, change_at=AT, town=TOWN).clicks(AT + 400))
    (alarm,) = life.alarms
    assert AT < alarm.at <= AT + 300
    assert abs(alarm.since - AT) <= 60
    assert life.changes.reaction.reactions == 1


def test_an_outage_is_no_drift():
    settings = SETTINGS.model_copy(update={"outage_clicks": 100})
    life = Life(settings).live(worlds.outage(0, change_at=AT, kept=0.1, town=TOWN).clicks(AT + 300))
    assert life.alarms == []
    assert life.changes.rates.outages == 1


def test_a_life_goes_on_twice_from_the_same_state():
    clicks = list(worlds.sudden(0, change_at=200, town=TOWN).clicks(400))
    life = Life(SETTINGS).live(clicks[:208])
    twins = [life.another(SETTINGS).live(clicks[208:]) for _ in range(2)]
    life.live(clicks[208:])
    assert twins[0].hits == twins[1].hits == life.hits[208:]


def test_recovery_is_when_the_running_mean_stays_near_a_newcomers():
    assert recovery([True] * 1_000, [True] * 1_000) == 100
    assert recovery([False] * 500 + [True] * 500, [True] * 1_000) == 949  # 450 hits of 500 are 90 %
    assert recovery([False] * 1_000, [True] * 1_000) == 1_000
