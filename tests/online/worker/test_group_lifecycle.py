"""Versions and reactions to drift through the topic: all workers follow what the leader decides."""

from typing import Any

import numpy as np
import pytest
import torch

from online.rounds.encoding import decode, encode_base
from online.worker.loop import Loop
from online.worker.steps import SHARED_STEPS
from stream.source import Partition
from tests.online.conftest import AbortedError
from tests.online.worker.group_harness import WEIGHTS, GroupHarness
from tests.online.worker.test_group import bases, some_clicks


@pytest.fixture
def group(tmp_path) -> GroupHarness:
    return GroupHarness(tmp_path, abuse_filter=False, gate=False)


def trained_group(group: GroupHarness, names: str = "abc", clicks: int = 300) -> None:
    for name in names:
        group.begin(name)
    group.publish(some_clicks(clicks))
    group.drain()


def tune(group: GroupHarness, name: str = "a") -> None:
    """Has the leader fine-tune, until nothing more comes of it."""
    group.loops[name].supervisor.ask_finetuning("the test")
    for _ in range(200):
        group.turn()
        if group.loops[name].supervisor.state == "idle":
            break
    group.drain(6)


def versions(group: GroupHarness) -> list[int]:
    return [loop.learner.version for loop in group.loops.values()]


def assert_same_base(group: GroupHarness) -> None:
    first, *others = bases(group)
    for other in others:
        assert other.keys() == first.keys()
        for name in first:
            np.testing.assert_array_equal(other[name], first[name], err_msg=name)


def own_change(loop: Loop) -> float:
    """How far the live weights are from the base at most, but for what is in flight."""
    tensors, base = loop.learner.weights.tensors(), loop.group.replica.base
    return max(float((tensors[name] - value).abs().max()) for name, value in base.dense.items())


def test_all_adopt_what_the_leader_has_fine_tuned(group: GroupHarness) -> None:
    trained_group(group)
    before = bases(group)[0]
    tune(group)
    assert versions(group) == [2, 2, 2]
    assert_same_base(group)
    assert any(not np.array_equal(value, before[name]) for name, value in bases(group)[0].items())
    for loop in group.loops.values():
        assert own_change(loop) < 1e-2
        live = loop.versions.live
        assert (live.number, live.parent) == (2, 1)
        assert live.checkpoint in loop.checkpoints.numbers()
        assert loop.learner.weights.finite()
    assert group.loops["a"].supervisor.predecessor is not None
    assert group.loops["b"].supervisor.predecessor is None


def test_a_candidate_that_passes_the_gate_is_adopted_by_all(tmp_path) -> None:
    group = GroupHarness(tmp_path, abuse_filter=False, gate=True)
    trained_group(group)
    supervisor = group.loops["a"].supervisor
    supervisor.ask_finetuning("the test")
    for _ in range(200):
        group.turn()
        if supervisor.candidate is not None:
            break
    group.publish(some_clicks(200, start=400))
    group.drain()
    assert versions(group) == [1, 1, 1] or supervisor.candidate is None
    if supervisor.candidate is not None:  # the gate's decision is not what is tested here
        supervisor._publish(supervisor.candidate)
    group.drain(6)
    assert versions(group) == [2, 2, 2]
    assert_same_base(group)


def test_a_rollback_reaches_all(group: GroupHarness) -> None:
    trained_group(group)
    group.checkpoint()
    first = bases(group)[0]
    tune(group)
    group.publish(some_clicks(100, start=400))
    group.drain()
    assert versions(group) == [2, 2, 2]
    group.loops["a"].supervisor.ask_rollback(1, "the test")
    group.drain(6)
    assert versions(group) == [3, 3, 3]
    assert_same_base(group)
    for loop in group.loops.values():
        assert own_change(loop) == 0
        assert loop.versions.came_back
        assert loop.versions.live.checkpoint in loop.checkpoints.numbers()
    # The checkpoint of version 1 held live weights, which were the base and the leader's own change of then.
    for name, value in bases(group)[0].items():
        if name in group.loops["a"].group.replica.base.dense:
            np.testing.assert_allclose(value, first[name], atol=5e-2, err_msg=name)
    group.publish(some_clicks(100, start=600))
    group.drain()
    assert_same_base(group)


def test_a_version_that_another_base_preceded_is_sent_again(group: GroupHarness) -> None:
    """A second worker that believes to lead writes a base between the leader's reading and its proposal."""
    trained_group(group)
    group.publish(some_clicks(60, start=400))
    group.turn(0.0)
    group.loops["b"].group.revoking()  # publishes its change
    group.loops["a"].turn()
    leader, other = group.loops["a"].group, group.loops["b"].group
    other._read()
    record = other.merger.next_base(leader.leader_epoch)
    assert record is not None
    other.outbox.put(encode_base(record))
    group.loops["a"].supervisor.examine(group.loops["a"].learner.weights.copy(), "copied", {})
    group.loops["a"].supervisor.step()
    assert leader.decisions.send(leader.leader_epoch) is not None
    group.drain(8)
    assert leader.decisions.not_accepted == 1
    assert versions(group) == [2, 2, 2]
    assert_same_base(group)


def test_a_leader_that_loses_the_lead_drops_its_version(group: GroupHarness) -> None:
    trained_group(group)
    loop = group.loops["a"]
    loop.supervisor.examine(loop.learner.weights.copy(), "copied", {})
    group.coordinator.leader = "b"
    group.coordinator.generation += 1
    group.drain(8)
    assert versions(group) == [1, 1, 1]
    assert not loop.group.decisions.waits
    tune(group, "b")
    assert versions(group) == [2, 2, 2]
    assert_same_base(group)


def test_a_reaction_to_drift_scales_all_counts_once(group: GroupHarness) -> None:
    trained_group(group)
    kept = group.loops["a"].settings.reaction_counts_kept
    before = {name: loop.learner.store.items.clicks.copy() for name, loop in group.loops.items()}
    group.loops["a"].changes.reaction.begin()
    group.drain(6)
    for name, loop in group.loops.items():
        np.testing.assert_allclose(loop.learner.store.items.clicks, before[name] * np.float32(kept), rtol=1e-6)
        assert loop.changes.reaction.reactions == 1
    group.checkpoint()
    group.kill("b")
    group.begin("b")
    group.drain(6)
    assert group.loops["b"].changes.reaction.reactions == 1
    np.testing.assert_allclose(
        group.loops["b"].learner.store.items.clicks, group.loops["a"].learner.store.items.clicks, rtol=1e-6
    )


def test_a_leader_that_has_told_of_a_reaction_and_lost_it_begins_it_again(group: GroupHarness) -> None:
    trained_group(group)
    group.checkpoint()
    group.loops["a"].changes.reaction.begin()
    group.drain(4)
    group.kill("a")  # its checkpoint is older than the reaction
    group.begin("a")
    group.drain(4)
    assert [loop.changes.reaction.reactions for loop in group.loops.values()] == [1, 1, 1]
    sums = [float(loop.learner.store.items.clicks.sum()) for loop in group.loops.values()]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-6)


class KilledAt:
    """Kills at the n-th time that a step is reached, once `armed`."""

    def __init__(self, step: str, nth: int = 1) -> None:
        self.step, self.left, self.armed = step, nth, False

    def __call__(self, step: str) -> None:
        if self.armed and step == self.step:
            self.left -= 1
            if self.left == 0:
                self.armed = False
                raise AbortedError(step)


@pytest.mark.parametrize("step", [step for step in SHARED_STEPS if step not in ("share_reaction", "train_again")])
def test_a_leader_killed_at_any_step_of_sharing_leaves_workers_that_agree(tmp_path, step: str) -> None:
    group = GroupHarness(tmp_path, abuse_filter=False, gate=False)
    killed = KilledAt(step)
    group.begin("a", killed)
    group.begin("b")
    group.begin("c")
    group.publish(some_clicks(300))
    group.drain()
    group.checkpoint()
    group.publish(some_clicks(60, start=400))
    loop = group.loops["a"]
    loop.supervisor.examine(loop.learner.weights.copy(), "copied", {})
    killed.armed = True
    kills = 0
    for _ in range(12):
        for name in list(group.loops):
            try:
                group.loops[name].turn()
            except AbortedError:
                kills += 1
                group.kill(name)
        group.seconds += 0.4
    assert kills == 1
    group.begin("a")
    group.drain()
    assert len(set(versions(group))) == 1
    # The version is published where its replacement was sent, and else it is not.
    assert versions(group)[0] == (1 if step in ("share_version", "share_replacement") or not _replaced(group) else 2)
    assert_same_base(group)
    tune(group, next(name for name, one in group.loops.items() if one.group.leads))
    assert len(set(versions(group))) == 1
    assert versions(group)[0] in (2, 3)
    assert_same_base(group)


def _replaced(group: GroupHarness) -> bool:
    """Whether any replacement of the base stands in the topic."""
    loop = next(iter(group.loops.values()))
    shape = loop.group.replica.base.shape
    from functools import partial  # noqa: PLC0415

    from online.worker.weights_topic import WeightsTopic  # noqa: PLC0415
    from tests.online.conftest import ListProducer  # noqa: PLC0415
    from tests.online.worker.group_harness import ListTail  # noqa: PLC0415

    topic = WeightsTopic(partial(ListTail, group.broker, WEIGHTS), ListProducer(group.broker), WEIGHTS)
    topic.open(None)
    records = (decode(message.weights, shape) for message in topic.read() if message.weights is not None)
    return any(getattr(record, "kind", None) == "replacement" for record in records)


def test_a_follower_that_becomes_leader_fine_tunes_and_rolls_back(group: GroupHarness) -> None:
    trained_group(group)
    group.checkpoint()
    tune(group)
    group.kill("a")
    group.drain(4)
    leader = next(name for name, loop in group.loops.items() if loop.group.leads)
    tune(group, leader)
    assert versions(group) == [3, 3]
    group.loops[leader].supervisor.ask_rollback(2, "the test")
    group.drain(6)
    assert versions(group) == [4, 4]
    group.begin("a")
    group.drain(6)
    assert versions(group) == [4, 4, 4]
    assert_same_base(group)


def test_what_is_announced_and_never_comes_is_bounded(group: GroupHarness) -> None:
    trained_group(group, "ab", 40)
    topic = group.loops["a"].group.topic
    for at in range(300):
        topic.write_news({"kind": "version", "identity": f"never {at}"})
        topic.write_news({"kind": "reaction"})
        topic.write_news({"kind": "unheard of", "identity": "x"})
    group.drain(4)
    for loop in group.loops.values():
        assert len(loop.group.decisions.to_state()["announced"]) <= 64
    assert versions(group) == [1, 1]


def test_a_worker_whose_base_is_lost_gets_the_whole_one_and_its_version(group: GroupHarness) -> None:
    trained_group(group, "ab")
    tune(group)
    # The topic's retention has passed: only the latest messages are left.
    records = group.broker.topics[Partition(WEIGHTS, 0)]
    group.loops["a"].group.topic._tail.position = group.loops["b"].group.topic._tail.position = 0
    records.clear()
    group.publish(some_clicks(100, start=400))
    group.drain()
    assert group.broker.topics[Partition(WEIGHTS, 0)]
    group.begin("c")
    group.publish(some_clicks(60, start=600))
    for _ in range(40):
        group.turn(0.5)
    group.drain()
    assert versions(group) == [2, 2, 2]
    assert not group.loops["c"].group.replica.base.lost
    assert_same_base(group)


def learned_alone(group: GroupHarness, name: str, clicks: Any) -> Loop:
    """A worker of mode one, with the folder of a member to be; its checkpoint knows no group."""
    loop = group.begin(name)
    loop.checkpointer.step(at_once=False)
    group.publish(clicks)
    member, loop.group = loop.group, None
    loop.supervisor.propose, loop.supervisor.leads = None, True
    loop.learner.on_rows_changed = None
    loop.writer.writes_popular = True
    while loop.turn():
        pass
    loop.checkpoint()
    assert member is not None
    group.kill(name)
    return loop


def test_weights_of_a_worker_that_was_alone_become_the_groups(tmp_path) -> None:
    group = GroupHarness(tmp_path, abuse_filter=False, gate=False)
    alone = learned_alone(group, "a", some_clicks(400))
    tensors = {name: tensor.clone() for name, tensor in alone.learner.weights.tensors().items()}
    assert not group.broker.topics[Partition(WEIGHTS, 0)]
    group.begin("b")  # a newcomer that knows nothing, and leads
    group.begin("a")
    for _ in range(3):
        group.turn()
    group.drain()
    assert_same_base(group)
    position = group.loops["a"].group.replica.base.position
    assert sum(position.merged.values()) >= 400
    dense = group.loops["b"].group.replica.base.dense
    moved = {
        n: float((tensors[n] - v).abs().max())
        for n, v in group.loops["b"].learner.weights.tensors().items()
        if n in dense
    }
    assert max(moved.values()) < 0.05, moved
    assert not group.loops["a"].group._alone
    group.publish(some_clicks(100, start=600))
    group.drain()
    assert_same_base(group)
    with torch.no_grad():
        assert own_change(group.loops["a"]) < 0.05
