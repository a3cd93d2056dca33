"""Fine-tuning outside the worker as a part of the loop: turns do not wait for it, and its end is as in the worker."""

import os
import signal
import sys
import time

import pytest
import torch

from online.lifecycle.finetune_outside import FOLDERS, OutsideFineTuning
from stream.events import Forget, encode_forget
from stream.user_ids import digest_of

SLEEPS = f"{sys.executable} -c 'import time; time.sleep(99)' {{folder}}"


@pytest.fixture
def begun(harness, town_clicks):
    """Creates a loop that has learned some clicks and asks for fine-tuning."""
    loops = []

    def make(**settings):
        harness.publish(town_clicks[:160])
        loop = harness.begin(harness.loop(**settings))
        loops.append(loop)
        while loop.turn():
            pass
        loop.supervisor.ask_finetuning("a test")
        return loop

    yield make
    for loop in loops:
        loop.close()


def turned_until(loop, state, timeout_s=120.0):
    """Turns of the loop until the supervisor is in another state than `running`."""
    until, turns = time.monotonic() + timeout_s, 0
    while loop.supervisor.state in ("asked", "running"):
        assert time.monotonic() < until
        loop.turn()
        turns += 1
        time.sleep(0.01)  # the job's processes need the time
    assert loop.supervisor.state == state
    return turns


def started(loop):
    """The fine-tuning, once its process runs."""
    loop.turn()
    tuning = loop.supervisor.finetuning
    assert isinstance(tuning, OutsideFineTuning)
    until = time.monotonic() + 60
    while tuning.process is None and time.monotonic() < until:
        time.sleep(0.01)
    assert tuning.process is not None
    return tuning


def folders(loop):
    return list(loop.settings.data_dir.glob(f"{FOLDERS}*"))


def kinds(loop):
    return [notice.kind for notice in loop.notices.latest]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_two_processes_tune_the_next_version_while_clicks_are_learned(harness, begun, town_clicks):
    loop = begun(finetune_processes=2, finetune_batch=4)
    before = loop.learner.weights.copy().tensors()
    loop.turn()
    assert loop.supervisor.state == "running"
    assert not loop.supervisor.busy  # polls may wait for clicks meanwhile
    harness.publish(town_clicks[160:240])
    learned = loop.progress.learned
    while loop.progress.learned < learned + 80:
        loop.turn()
    assert loop.supervisor.state == "running"
    assert turned_until(loop, "idle") > 3
    assert kinds(loop) == ["finetuning", "published"]
    assert (loop.progress.finetunings, loop.learner.version, loop.progress.learned) == (1, 2, learned + 80)
    assert loop.versions.live.figures["steps"] > 0
    assert not folders(loop)
    after = loop.learner.weights.tensors()
    assert not torch.equal(before["ranker.linear"], after["ranker.linear"])


def test_its_candidate_ranks_in_the_shadow_first(begun):
    loop = begun(finetune_processes=1, gate=True)
    turned_until(loop, "shadow")
    assert kinds(loop) == ["finetuning", "candidate"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"finetune_command": "/nowhere/torchrun {folder}"}, "cannot be started"),
        ({"finetune_command": SLEEPS, "finetune_timeout_s": 0.2}, "took longer than 0.2 s"),
        ({"finetune_command": f"{sys.executable} -c 'raise ValueError(1)' {{folder}}"}, "ValueError: 1"),
    ],
)
def test_a_failure_is_a_notice_and_clicks_are_learned_all_the_same(harness, begun, town_clicks, settings, reason):
    loop = begun(**settings)
    turned_until(loop, "idle")
    assert kinds(loop) == ["finetuning", "rejected"]
    assert reason in loop.notices.latest[-1].text
    assert "fine-tuned (a test): " in loop.notices.latest[-1].text
    assert (loop.progress.finetunings, loop.learner.version) == (1, 1)
    harness.publish(town_clicks[160:200])
    while loop.turn():
        pass
    assert loop.progress.learned == 200
    loop.finish()
    assert not folders(loop)


def test_a_killed_process_is_a_notice(begun):
    loop = begun(finetune_command=SLEEPS)
    os.kill(started(loop).process.pid, signal.SIGKILL)
    turned_until(loop, "idle")
    assert "was killed by signal 9" in loop.notices.latest[-1].text


def test_a_worker_that_stops_ends_its_job_and_asks_for_it_again(harness, begun, town_clicks):
    loop = begun(finetune_command=SLEEPS)
    tuning = started(loop)
    assert folders(loop)
    harness.publish(town_clicks[160:170])
    loop.turn()
    loop.finish()
    loop.close()
    assert gone(tuning.process.pid)
    assert not folders(loop)
    again = harness.begin(harness.loop(finetune_processes=0))
    assert again.supervisor.state == "asked"


def test_forgetting_a_user_ends_the_job_and_starts_it_again(harness, begun, town_clicks):
    loop = begun(finetune_command=SLEEPS)
    tuning = started(loop)
    folder = tuning.folder
    user = encode_forget(Forget(user_sha256=digest_of(town_clicks[0].user_id), timestamp=town_clicks[159].timestamp))
    harness.publish([user])
    while loop.supervisor.finetuning is tuning:
        loop.turn()
    assert gone(tuning.process.pid)
    assert not folder.exists()
    assert loop.supervisor.state in ("asked", "running")
    assert started(loop).folder != folder


def test_a_rollback_ends_the_job(begun):
    loop = begun(finetune_processes=0)
    turned_until(loop, "idle")
    loop.checkpoint()
    loop.supervisor.settings = loop.settings.model_copy(update={"finetune_command": SLEEPS})
    loop.learner.settings = loop.supervisor.settings
    loop.supervisor.ask_finetuning("another test")
    tuning = started(loop)
    loop.supervisor.ask_rollback(1, "a test")
    loop.turn()
    assert loop.supervisor.state == "idle"
    assert gone(tuning.process.pid)
    assert not folders(loop)
