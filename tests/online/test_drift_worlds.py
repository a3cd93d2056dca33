"""A learner in worlds whose changes are known: none is found before the change, and then it is, soon. The benchmark
(benchmarks/drift.py) asks the same of more worlds, longer ones, and of the learner as it is delivered."""

import pytest

from benchmarks.drift import Life, recovery
from online import worlds
from online.settings import Settings
from online.town import PURCHASE, Town
from tests.online.conftest import SMALL

TOWN = Town(users=40, items=120)
AT = 1_600
SETTINGS = Settings(**SMALL | {"drift_delta": 0.0005, "drift_clicks_each": 20})


@pytest.mark.parametrize("seed", [0, 1])
def test_a_quiet_world_gives_no_alarm_and_a_sudden_change_one_within_300_clicks(seed):
    life = Life(SETTINGS).live(worlds.sudden(seed, change_at=AT, town=TOWN).clicks(AT + 400))
    (alarm,) = life.alarms
    assert AT < alarm.at <= AT + 300
    assert abs(alarm.since - AT) <= 60
    assert life.changes.reaction.reactions == 1


def test_a_change_in_what_is_bought_alone_is_found_where_it_happens():
    world = worlds.one_type(0, change_at=AT, share=0.3, town=TOWN)
    life = Life(SETTINGS).live(world.clicks(AT + 800))
    assert [alarm.event_type for alarm in life.alarms] == [PURCHASE]
    assert life.alarms[0].at > AT


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


def test_recovery_is_when_the_running_mean_is_back():
    assert recovery([False] * 500 + [True] * 500, level=1.0) == 770
    assert recovery([True] * 500, level=1.0) == 300
    assert recovery([False] * 500, level=1.0) == float("inf")
