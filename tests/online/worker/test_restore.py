"""What a checkpoint must match to be restored, and what may differ."""

import json
import logging

import pytest

from online.worker.array_file import ArrayFile
from online.worker.checkpoint import ARRAYS, STATE, CheckpointError


def test_a_checkpoint_of_another_shape_is_refused_in_one_line_that_says_what_to_do(harness, town_clicks):
    harness.publish(town_clicks[:20])
    harness.run()
    with pytest.raises(CheckpointError) as refused:
        harness.loop(width=16, layers=("local",)).restore()
    message = str(refused.value)
    assert "NEXTCLICK_WIDTH=8" in message
    assert "NEXTCLICK_LAYERS=['lsh']" in message
    assert "NEXTCLICK_DATA_DIR" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mine: [*mine[:3], "dwell", *mine[3:]], "was written by another version (with dwell among"),
        (lambda mine: mine[:-2], "(without world_6, network among"),
        (lambda mine: ["dwell", *mine[1:]], "(with dwell and without followed_last among"),
        (lambda mine: [mine[1], mine[0], *mine[2:]], "(with share_last, followed_last in another order among"),
    ],
    ids=["removed", "added", "replaced", "reordered"],
)
def test_a_checkpoint_with_other_features_is_refused_in_one_line_that_names_them(
    harness, town_clicks, monkeypatch, change, said
):
    harness.publish(town_clicks[:20])
    harness.run()
    loop = harness.loop()
    number, arrays, state = loop.checkpoints.load()
    state["shape"]["features"] = change(state["shape"]["features"])
    monkeypatch.setattr(loop.checkpoints, "load", lambda: (number, arrays, state))
    monkeypatch.setattr(loop.learner, "load_state", lambda *_: pytest.fail("weights must not be loaded"))
    with pytest.raises(CheckpointError) as refused:
        loop.restore()
    message = str(refused.value)
    assert said in message
    assert "go on with that, or set NEXTCLICK_DATA_DIR to another folder to start anew" in message
    assert "\n" not in message


def test_a_checkpoint_with_other_half_lives_is_refused_with_setting_and_features(harness, town_clicks):
    harness.publish(town_clicks[:20])
    harness.run()
    with pytest.raises(CheckpointError) as refused:
        harness.loop(popularity_half_lives=(10, 50)).restore()
    message = str(refused.value)
    assert (
        "was made with NEXTCLICK_POPULARITY_HALF_LIVES=[10, 100] (with popularity_100 and without popularity_50"
        in message
    )
    assert "set it back" in message
    assert "\n" not in message


def test_smaller_limits_are_taken_up_at_a_restart(harness, town_clicks):
    harness.publish(town_clicks[:200])
    harness.run()
    harness.publish(town_clicks[200:300])
    loop = harness.run(users_held=16, history_max=6, items_held=10, successors_held=3, online_history=4,
                     neighbours_held=5)  # fmt: skip
    assert loop.progress.learned == 300
    assert len(loop.learner.histories) == 16
    assert loop.learner.store.tables.first.held == 3
    assert loop.learner.store.tables.near.held == 5
    top = harness.lists.held[town_clicks[299].user_id]
    assert set(top.items) <= {click.item_id for click in town_clicks[:300]}


def test_restoring_says_where_it_goes_on(harness, town_clicks, caplog):
    caplog.set_level(logging.INFO, "online.worker.loop")
    harness.publish(town_clicks[:20])
    harness.run()
    assert harness.loop().restore() == 1
    assert "checkpoint 1 restored: 20 clicks learned; reading from clicks:0 from 20" in caplog.text


def test_the_checkpoint_s_state_is_plain_json(harness, values):
    harness.publish(values)
    loop = harness.run()
    path = loop.checkpoints.folder / f"{loop.checkpointer.last_saved.number:08d}" / ARRAYS
    with path.open("rb") as file:
        text = ArrayFile(file).read(STATE).tobytes()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
