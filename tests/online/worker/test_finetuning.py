"""Fine-tuning as a part of the loop: who asks for it, and how it shares the time with clicks."""

import logging
import threading

from online.lifecycle.finetune import FineTuning
from stream.events import Click
from tests.online.worker.conftest import recorded


def test_a_drift_alarm_asks_for_fine_tuning_which_gives_the_next_version(harness, town_clicks, caplog):
    harness.publish(town_clicks)
    loop = harness.begin(harness.loop(drift_delta=0.5, drift_clicks_each=1))
    loop.changes.drift.update(["click"] * 300, [0.1] * 300, [True] * 300, range(300))
    loop.turn()
    assert loop.changes.drift.alarms > 0
    assert loop.progress.finetunings == 1
    assert loop.learner.version == 2
    assert loop.supervisor.state == "idle"
    assert "alarm: the loss has risen from " in caplog.text
    loop.turn()
    assert {top.version for top in harness.lists.held.values()} >= {2}


def test_fine_tuning_may_be_asked_for_by_another_thread_and_twice_is_once(harness, town_clicks):
    harness.publish(town_clicks[:100])
    loop = harness.begin(harness.loop())
    loop.turn()
    threads = [threading.Thread(target=loop.supervisor.ask_finetuning, args=["by the clock"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loop.supervisor.state == "asked"
    harness.drain(loop)
    assert (loop.progress.finetunings, loop.learner.version) == (1, 2)
    _, _, state = loop.checkpoints.load()
    assert state["learner"]["version"] == 2


def test_fine_tuning_in_slices_takes_turns_with_clicks(harness, town_clicks, monkeypatch):
    harness.publish(town_clicks[:200])
    loop = harness.begin(harness.loop(finetune_batch=1))
    loop.turn()
    loop.supervisor.ask_finetuning("a test")
    calls = recorded(loop, "learner.learn")
    loop.turn()
    assert (loop.supervisor.state, loop.progress.finetunings) == ("idle", 1)  # over within one slice
    run_for = FineTuning.run_for
    monkeypatch.setattr(FineTuning, "run_for", lambda tuning, _: run_for(tuning, 0.0))  # now slices of one step
    loop.supervisor.ask_finetuning("a test")
    slices = 0
    while loop.supervisor.state != "idle":
        loop.turn()
        slices += 1
    assert slices > 5
    assert len(calls) > 4  # clicks were learned meanwhile
    assert loop.progress.finetunings == 2


def test_fine_tuning_without_examples_is_left_out(harness, caplog):
    caplog.set_level(logging.INFO, "online.worker.notices")
    harness.publish([Click(user_id="a", item_id="i", timestamp=1)])
    loop = harness.begin(harness.loop())
    loop.supervisor.ask_finetuning("a test")
    harness.drain(loop)
    assert (loop.learner.version, loop.progress.finetunings, loop.supervisor.state) == (1, 0, "idle")
    assert "finetuning: left out" in caplog.text


def test_fine_tuning_that_was_asked_for_is_not_forgotten_in_a_crash(harness, town_clicks):
    harness.publish(town_clicks[:64])
    first = harness.begin(harness.loop())
    first.supervisor.ask_finetuning("a test")
    first.supervisor.step = lambda **_: False  # killed before it came to it
    first.turn()
    assert harness.run().progress.finetunings == 1
