"""A flood of flagged clicks is reported at its beginning and at its end, and honest users' repeats are not."""

import json

import numpy as np
import pytest

from online.learner.learner import Learner
from online.lifecycle.finetune import examples
from online.lifecycle.flood import CHECK_EACH, FLOOD, FloodWatch
from stream.events import Click


def run(watch, guarded_each, clicks, start=0, total=None):
    """So many clicks, one of `guarded_each` flagged -> what was told."""
    total = {} if total is None else total
    found = []
    for number in range(start + 1, start + clicks + 1):
        if guarded_each and number % guarded_each == 0:
            total["repeats"] = total.get("repeats", 0) + 1
        found.append(watch.update(number, total))
    return [told for told in found if told is not None]


def test_a_flood_is_reported_at_its_beginning_and_at_its_end():
    watch, total = FloodWatch(), {"rate": 0}
    assert run(watch, 0, 5_000, total=total) == []
    (began,) = run(watch, 2, 20_000, 5_000, total)
    assert began.text.startswith("clicks that look like a bot's are kept from other users' lists: 20 of the latest ")
    assert began.figures == {"clicks": FLOOD, "reasons": {"repeats": FLOOD}}
    (over,) = run(watch, 0, 3 * CHECK_EACH, 25_000, total)
    assert over.text == ("the flood of clicks is over: 10,000 were kept from other users' lists (repeats 10,000)")
    assert run(watch, 0, 5_000, 28_000, total) == []


def test_what_honest_users_repeat_is_no_flood():
    assert run(FloodWatch(), 100, 50_000) == []


def test_what_is_taken_back_is_no_click_of_its_own():
    assert FloodWatch().update(100, {"taken-back": 90}) is None


@pytest.mark.parametrize("stop", [30, 500, 2_300, 2_600])
def test_a_restart_changes_nothing(stop):
    whole, first, second = FloodWatch(), FloodWatch(), FloodWatch()
    told = run(whole, 3, 2_000, total=(total := {})) + run(whole, 0, 3_000, 2_000, total)
    parts, total = [], {}
    watch = first
    for start, clicks, each in ((0, 2_000, 3), (2_000, 3_000, 0)):
        for number in range(start, start + clicks):
            parts += run(watch, each, 1, number, total)
            if number == stop:
                second.load_state(json.loads(json.dumps(first.to_state())))
                watch = second
    assert parts == told
    assert len(told) == 2


def bot_clicks(count, start):
    return [Click(user_id="a bot", item_id="pushed", timestamp=start + 0.2 * n) for n in range(count)]


def test_the_worker_tells_of_a_flood_and_counts_it_by_reason(harness, town_clicks):
    at = town_clicks[199].timestamp
    harness.publish([*town_clicks[:200], *bot_clicks(300, at)])
    loop = harness.run()
    (notice,) = [notice for notice in loop.notices.latest if notice.kind == "abuse_flood"]
    assert "kept from other users' lists" in notice.text
    flagged = loop.learner.abuse_filter.total
    assert flagged["repeats"] + flagged["rate"] > 250
    assert sum(notice.figures["reasons"].values()) == notice.figures["clicks"]
    again = harness.begin(harness.loop())
    assert again.supervisor.to_state()[1]["flood"] == loop.supervisor.to_state()[1]["flood"]


def test_fine_tuning_does_not_read_what_a_bot_clicked(small, town_clicks):
    learner = Learner(small(finetune_reservoir_held=64))
    stream = [*town_clicks[:100], *bot_clicks(200, town_clicks[99].timestamp), *town_clicks[100:140]]
    for start in range(0, len(stream), 8):
        learner.learn(stream[start : start + 8])
    pushed = learner.vocabulary.row_of("pushed")
    bots = learner.mostly_flagged(learner.histories.find(["a bot", town_clicks[120].user_id]))
    assert bots.tolist() == [True, False]
    assert "a bot" in learner.histories.users_of(learner.histories.recently_seen(512))
    found = examples(learner, 0.5, np.random.default_rng(0))
    lengths = (found.rows == pushed).sum(1)
    assert lengths.max() <= learner.settings.abuse_repeats_at_once  # its first clicks, before the filter can tell
