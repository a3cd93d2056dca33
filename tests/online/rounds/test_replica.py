"""A worker's weights stay base + what it has changed since, held to sums in float64."""

import pytest
import torch

from online.rounds.base import Outcome
from online.rounds.change import ROW_CHANGE_MIN, Tag
from online.rounds.weights import MEAN, VARIANCE, RoundsError, Weights, start_of
from tests.online.rounds.small import Worker, assert_same_base, base_by_item, by_item


def test_a_lone_workers_weights_stay_the_same() -> None:
    worker = Worker("a")
    for at in range(20):
        worker.train(0, 10 * at, 10 * at + 10, ["x", "y", f"item{at}"], size=10.0 ** -(at % 7))
        before = by_item(worker)
        worker.merger.add(worker.replica.change())
        assert worker.take(worker.merger.next_base(1)) == Outcome.APPLIED
        for name, tensor in by_item(worker).items():
            assert torch.equal(tensor, before[name]), name
    assert worker.replica.counts["merged"] == 20


def test_live_weights_are_the_new_base_plus_what_is_fresh() -> None:
    worker, other = Worker("a"), Worker("b", seed=1)
    worker.train(0, 0, 10, ["x", "y"])
    other.train(1, 0, 30, ["y", "z"])
    changes = [worker.replica.change(), other.replica.change()]
    sent = changes[0].weights
    base, live = base_by_item(worker.base), by_item(worker)
    worker.train(0, 10, 20, ["x"])
    fresh = by_item(worker)
    for change in changes:
        worker.merger.add(change)
    worker.take(worker.merger.next_base(1))
    after, now = by_item(worker), base_by_item(worker.base)
    # Dense: live = new base + (live before − base before − what was sent), in float64.
    for name in ("network.up", "ranker.linear"):
        expected = now[name].double() + fresh[name] - base[name].double() - sent.dense[name].double()
        torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-6)
    for name in (MEAN, VARIANCE):
        expected = now[name].double() + fresh[name] - live[name]
        torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-6)
    name = "network.items.vectors"
    start = start_of(name, ["x"], (4,), 7)[0].double()
    its = sent.rows[name][sent.items["network.items"].index("x")].double()
    expected = now[name, "x"].double() + fresh[name, "x"] - start - its
    torch.testing.assert_close(after[name, "x"], expected, rtol=0, atol=1e-6)
    assert int(after["ranker.batches"]) == 3


def test_what_is_in_flight_and_not_merged_stays() -> None:
    worker, other = Worker("a"), Worker("b", seed=1)
    worker.train(0, 0, 10, ["x"])
    assert worker.replica.change() is not None
    assert worker.replica.change() is None
    other.train(1, 0, 10, ["x"])
    other.merger.add(other.replica.change())
    before = by_item(worker)
    step = other.merger.next_base(1)
    worker.take(step)
    moved = by_item(worker)["network.up"] - before["network.up"]
    torch.testing.assert_close(moved, step.weights.dense["network.up"].double(), rtol=0, atol=1e-6)
    assert worker.replica.in_flight is not None


def test_a_dropped_change_is_given_up_and_counted() -> None:
    worker, other = Worker("a"), Worker("b", seed=1)
    worker.train(0, 0, 10, ["x"])
    worker.replica.change()
    other.train(0, 0, 10, ["x"])
    other.merger.add(other.replica.change())
    worker.take(other.merger.next_base(1))
    assert worker.replica.counts["dropped"] == 1
    assert worker.replica.in_flight is None
    for name, tensor in base_by_item(worker.base).items():
        torch.testing.assert_close(by_item(worker)[name].float(), tensor.float(), rtol=0, atol=1e-3)


def test_fresh_training_that_was_merged_from_another_worker_is_dropped() -> None:
    worker, other = Worker("a"), Worker("b", seed=1)
    other.train(0, 0, 10, ["x"])
    worker.train(0, 5, 20, ["x"])
    other.merger.add(other.replica.change())
    worker.take(other.merger.next_base(1))
    assert worker.replica.counts["fresh_dropped"] == 1
    assert worker.replica.change() is None
    assert torch.equal(worker.weights.held["network.up"], worker.base.dense["network.up"])
    assert torch.equal(worker.item("x"), worker.base.tables["network.items.vectors"][worker.base.row_of["x"]])
    assert worker.replica.is_merged(0, 9)
    assert not worker.replica.is_merged(0, 10)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_what_rounding_leaves_out_goes_with_the_next_change(narrow) -> None:
    worker = Worker("a", narrow=narrow, row_change_min=0.0)
    worker.see("x")
    start = worker.weights.held["network.up"].clone()
    total = torch.zeros_like(start)
    for at in range(50):  # each step is lost if it is rounded beside the large one alone
        worker.weights.held["network.up"] += 1.0 + 1e-4
        worker.item("x")[:] += 0.001
        worker.replica.trained(0, at, at + 1, 1)
        change = worker.replica.change()
        total += change.weights.dense["network.up"].float()
        worker.merger.add(change)
        worker.take(worker.merger.next_base(1))
    last = torch.finfo(narrow).eps * 2
    torch.testing.assert_close(start + total, worker.weights.held["network.up"], rtol=0, atol=last)
    torch.testing.assert_close(worker.base.dense["network.up"], worker.weights.held["network.up"], rtol=0, atol=last)


def test_rows_that_hardly_moved_wait_until_they_have() -> None:
    worker = Worker("a")
    worker.see("x")
    moved = []
    for at in range(4):
        worker.item("x")[0] += 0.4 * ROW_CHANGE_MIN
        worker.replica.trained(0, at, at + 1, 1)
        change = worker.replica.change()
        moved.append("network.items" in change.weights.items)
        worker.merger.add(change)
        worker.take(worker.merger.next_base(1))
    assert moved == [False, False, True, False]


def test_items_start_the_same_in_every_worker() -> None:
    one, other = Worker("a"), Worker("b")
    one.see("x", "y")
    other.see("y", "z", "x")
    assert torch.equal(one.item("x"), other.item("x"))
    assert torch.equal(one.item("y", "vectors.vectors"), other.item("y", "vectors.vectors"))
    assert not torch.equal(one.item("x"), one.item("y"))
    torch.testing.assert_close(one.item("x").norm(), torch.tensor(1.0), rtol=0, atol=1e-3)


def test_an_item_that_others_have_trained_starts_from_the_base() -> None:
    worker, other = Worker("a"), Worker("b")
    other.train(0, 0, 10, ["new"])
    other.merger.add(other.replica.change())
    step = other.merger.next_base(1)
    worker.take(step)
    worker.see("other", "new")
    other.take(step)
    assert torch.equal(worker.item("new"), other.base.tables["network.items.vectors"][other.base.row_of["new"]])
    assert not torch.equal(worker.item("new"), start_of("network.items.vectors", ["new"], (4,), 7)[0])


def test_an_item_that_loses_its_row_while_its_change_is_in_flight() -> None:
    worker = Worker("a", items_max=2)
    worker.train(0, 0, 10, ["x", "y"])
    change = worker.replica.change()
    sent = by_item(worker)["network.items.vectors", "x"]
    worker.see("z")  # takes the row of x
    assert "x" not in worker.vocabulary
    z = worker.item("z").clone()
    worker.see("x")  # takes the row of y
    torch.testing.assert_close(worker.item("x").double(), sent, rtol=0, atol=1e-3)
    worker.merger.add(change)
    x = worker.item("x").clone()
    worker.take(worker.merger.next_base(1))
    assert torch.equal(worker.item("x"), x)
    assert torch.equal(worker.item("z"), z)
    assert worker.base.known == {"x", "y"}


def test_rows_of_items_that_never_were_in_a_record_are_used_again() -> None:
    worker = Worker("a", items_max=3)
    for at in range(100):
        worker.see(f"item{at}")
    assert len(worker.base.row_of) == 3
    assert max(worker.base.row_of.values()) <= 8


def test_a_gap_is_reported_and_a_snapshot_mends_it() -> None:
    leader, late = Worker("a"), Worker("b", seed=1)
    late.train(1, 0, 10, ["x"])
    steps = []
    for at in range(3):
        leader.train(0, 10 * at, 10 * at + 10, ["x", f"item{at}"])
        leader.merger.add(leader.replica.change())
        steps.append(leader.merger.next_base(1))
        leader.take(steps[-1])
    assert late.take(steps[1]) == Outcome.GAP
    assert late.replica.change() is None
    own = {name: tensor - base_by_item(late.base).get(name, 0) for name, tensor in by_item(late).items()}
    assert late.take(leader.merger.snapshot()) == Outcome.APPLIED
    assert late.take(steps[2]) == Outcome.OLD
    assert_same_base(late.base, leader.base)
    for name in ("network.up", "ranker.linear"):
        expected = late.base.dense[name].double() + own[name]
        torch.testing.assert_close(by_item(late)[name], expected, rtol=0, atol=1e-5)
    assert late.replica.change() is not None
    assert late.replica.counts == {"gap": 1, "old": 1, "sent": 1}


def test_a_rollback_voids_what_all_have_changed() -> None:
    leader, other = Worker("a"), Worker("b", seed=1)
    for worker, partition in ((leader, 0), (other, 1)):
        worker.train(partition, 0, 10, ["x"])
    version = {name: tensor.clone() for name, tensor in leader.weights.held.items()}
    change = other.replica.change()
    other.train(1, 10, 20, ["x"])
    record = leader.merger.replacement(leader.replica.whole(version), 1, discard=True)
    for worker in (leader, other):
        assert worker.take(record) == Outcome.APPLIED
        assert torch.equal(worker.weights.held["network.up"], version["network.up"])
        assert torch.equal(worker.item("x"), version["network.items.vectors"][leader.vocabulary.row_of("x")])
        assert worker.replica.change() is None
    assert_same_base(leader.base, other.base)
    assert leader.merger.add(change) == "dropped"


def test_a_tuned_candidate_moves_all_by_what_was_tuned() -> None:
    leader, other = Worker("a"), Worker("b", seed=1)
    for worker, partition in ((leader, 0), (other, 1)):
        worker.train(partition, 0, 10, ["x"])
    candidate = {name: t + 0.5 if t.is_floating_point() else t for name, t in leader.weights.held.items()}
    before = [by_item(worker) for worker in (leader, other)]
    record = leader.merger.replacement(leader.replica.moved_base(leader.replica.change_to(candidate)), 1, discard=False)
    for worker, was in zip((leader, other), before, strict=True):
        worker.take(record)
        for name in ("network.up", ("network.items.vectors", "x")):
            torch.testing.assert_close(by_item(worker)[name], was[name] + 0.5, rtol=0, atol=1e-5)
        assert worker.replica.change() is not None


def test_weights_that_are_not_finite_are_never_sent() -> None:
    worker = Worker("a")
    worker.train(0, 0, 10, ["x"])
    worker.item("x")[0] = float("nan")
    assert worker.replica.change() is None
    assert worker.replica.counts["not_finite"] == 1


def test_a_record_that_does_not_fit_changes_nothing() -> None:
    worker = Worker("a")
    worker.train(0, 0, 10, ["x"])
    worker.merger.add(worker.replica.change())
    record = worker.merger.next_base(1)
    record.weights.dense["network.up"] = torch.zeros(9)
    before = by_item(worker)
    with pytest.raises(RoundsError):
        worker.take(record)
    assert worker.replica.in_flight is not None
    assert worker.base.position.number == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in by_item(worker).items())


def restored(worker, name, epoch="2"):
    """Another worker from this one's checkpoint."""
    arrays, state = worker.replica.to_state()
    merger_arrays, merger_state = worker.merger.to_state()
    new = Worker(name, epoch)
    new.vocabulary = type(new.vocabulary).from_state(worker.vocabulary.to_state(), capacity_max=100)
    new.weights.held = {key: tensor.clone() for key, tensor in worker.weights.held.items()}
    new.replica.load_state(arrays, state)
    new.merger.load_state(merger_arrays, merger_state)
    return new


def trained_worker():
    """One with a base, a change in flight, and fresh training."""
    worker = Worker("a")
    worker.train(0, 0, 10, ["x", "y"])
    worker.merger.add(worker.replica.change())
    worker.take(worker.merger.next_base(1))
    worker.train(0, 10, 20, ["x"])
    worker.merger.add(worker.replica.change())
    worker.train(0, 20, 30, ["z"])
    return worker


def test_a_worker_goes_on_from_its_own_checkpoint() -> None:
    worker = trained_worker()
    again = restored(worker, "a")
    assert_same_base(worker.base, again.base)
    step = worker.merger.next_base(1)
    for each in (worker, again):
        each.take(step)
        assert each.replica.in_flight is None
        assert each.replica.ranges == {0: (20, 30)}
    assert all(torch.equal(tensor, by_item(again)[name]) for name, tensor in by_item(worker).items())
    change, its = worker.replica.change(), again.replica.change()
    assert its.tag == Tag("a", "2", 1)
    assert torch.equal(change.weights.dense["network.up"], its.weights.dense["network.up"])


def test_of_its_own_checkpoint_what_was_merged_meanwhile_is_dropped() -> None:
    worker = trained_worker()
    again = restored(worker, "a")
    steps = [worker.merger.next_base(1)]
    worker.take(steps[0])
    worker.merger.add(worker.replica.change())
    steps.append(worker.merger.next_base(1))
    worker.take(steps[1])
    for step in steps:
        again.take(step)
    assert again.replica.counts["fresh_dropped"] == 1
    assert again.replica.change() is None
    assert torch.equal(again.weights.held["network.up"], again.base.dense["network.up"])


def test_of_another_workers_checkpoint_its_change_is_dropped() -> None:
    worker = trained_worker()
    new = restored(worker, "b")
    assert new.replica.in_flight is None
    assert new.replica.change() is None
    assert len(new.merger) == 1
    assert torch.equal(new.weights.held["network.up"], new.base.dense["network.up"])
    assert torch.equal(new.item("z"), start_of("network.items.vectors", ["z"], (4,), 7)[0])
    step = worker.merger.next_base(1)
    for each in (worker, new):
        each.take(step)
    assert_same_base(worker.base, new.base)


def test_an_empty_change_of_weights_is_no_record_of_shape() -> None:
    Weights().check(Worker("a").base.shape)
    with pytest.raises(RoundsError, match="lacks"):
        Weights().check(Worker("a").base.shape, whole=True)


def test_a_live_variance_never_becomes_negative() -> None:
    worker, other = Worker("a"), Worker("b", seed=1)
    worker.train(0, 0, 10)
    worker.weights.held[VARIANCE].fill_(0.1)  # 0.9 less than the base
    other.train(1, 0, 10)
    other.weights.held[VARIANCE].fill_(0.2)
    other.merger.add(other.replica.change())
    worker.take(other.merger.next_base(1))
    assert torch.equal(worker.weights.held[VARIANCE], torch.zeros(3))
