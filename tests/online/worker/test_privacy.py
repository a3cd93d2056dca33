"""A worker that learns under differential privacy: kills, restarts, budgets, and what is switched off."""

import io

import numpy as np
import pytest
from rich.console import Console

from online.commands.views import status_view
from online.worker.checkpoint import CheckpointError
from online.worker.status import StatusReport
from stream.events import Click
from tests.online.worker.conftest import owner_of

PRIVATE = {"privacy_epsilon": 50.0, "privacy_seed": 1, "privacy_clicks_per_step": 20, "step_clicks": 8}
MOVED = {"ranker.linear", "first"}


def flat(tensor):
    return tensor.detach().numpy().reshape(-1)


@pytest.fixture
def clicks(values):
    """Clicks of more users, so that a step has some."""
    found = [one for one in values if isinstance(one, Click)]
    return [click.model_copy(update={"user_id": f"{click.user_id}-{at % 3}"}) for at, click in enumerate(found)]


def test_only_the_linear_weights_move(new_harness, clicks):
    harness = new_harness()
    harness.publish(clicks)
    before = {name: tensor.clone() for name, tensor in harness.loop(**PRIVATE).learner.weights.tensors().items()}
    loop = harness.run(**PRIVATE)
    after = loop.learner.weights.tensors()
    changed = {
        name for name, held in before.items() if not np.array_equal(flat(after[name])[: held.numel()], flat(held))
    }
    assert changed == MOVED
    assert loop.learner.privacy.describe()["moved"] > 2


@pytest.mark.parametrize(("step", "call"), [("learner.learn", 4), ("lists.write", 5), ("checkpoints.save", 3)])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_changes_neither_weights_nor_what_is_spent(new_harness, clicks, step, call, after):
    quiet, harness = new_harness(), new_harness()
    for one in (quiet, harness):
        one.publish(clicks)
    wanted = quiet.run(**PRIVATE)
    first = harness.loop(**PRIVATE)
    harness.crash(*owner_of(first, step), call=call, after=after)
    harness.crashes(first)
    vars(harness.lists).pop("write", None)
    # The seed of another process: what goes on is the noise of the checkpoint.
    found = harness.run(**PRIVATE | ({"privacy_seed": 2} if first.checkpoints.numbers() else {}))
    assert found.learner.privacy.describe() == wanted.learner.privacy.describe()
    assert found.learner.privacy.describe()["steps"] > 4
    assert harness.everything(found) == quiet.everything(wanted)


def test_a_spent_budget_is_told_once_and_stays_spent(new_harness, clicks):
    harness = new_harness()
    harness.publish(clicks[:100])
    limited = PRIVATE | {"privacy_steps": 3, "privacy_steps_per_user": 2}
    loop = harness.run(**limited)
    spent = loop.learner.weights.tensors()["first"].clone()
    harness.publish(clicks[100:])
    again = harness.run(**limited)
    assert [one.kind for one in again.notices.latest if one.kind.startswith("privacy")] == ["privacy_budget_spent"]
    assert np.array_equal(again.learner.weights.tensors()["first"], spent)
    status = StatusReport(again).describe("running")
    assert status["privacy"] | {"steps": 3, "exhausted": True, "epsilon": 50.0} == status["privacy"]
    assert 0 < status["privacy"]["spent"] <= 50
    with io.StringIO() as text:
        console = Console(width=200, file=text)
        console.print(status_view(status))
        assert "of 3 private steps moved weights; weights stay as they are from now on" in text.getvalue()
    raised = harness.run(**limited | {"privacy_steps": 30})
    assert not raised.learner.privacy.exhausted


def test_a_checkpoint_learned_without_privacy_is_refused(new_harness, clicks):
    harness = new_harness()
    harness.publish(clicks[:40])
    harness.run()
    with pytest.raises(CheckpointError, match="was learned without NEXTCLICK_PRIVACY_EPSILON"):
        harness.loop(**PRIVATE).restore()


def test_fine_tuning_is_left_out_with_a_word(new_harness, clicks):
    harness = new_harness()
    harness.publish(clicks[:40])
    loop = harness.begin(harness.loop(**PRIVATE))
    loop.supervisor.ask_finetuning("test")
    harness.drain(loop)
    texts = [one.text for one in loop.notices.latest if one.kind == "finetuning"]
    assert texts == ["left out: NEXTCLICK_PRIVACY_EPSILON does not account for learning whole histories"]
    assert loop.supervisor.state == "idle"


def test_a_rollback_gives_back_nothing_of_the_budget(new_harness, clicks):
    harness = new_harness()
    harness.publish(clicks)
    loop = harness.run(**PRIVATE)
    before = loop.learner.privacy.describe()
    weights = loop.learner.weights.copy()
    loop.learner.publish(weights, 7)
    loop.supervisor._keep_predecessor(weights, 1)
    assert loop.learner.privacy.describe() == before
    assert loop.supervisor.trials == []
