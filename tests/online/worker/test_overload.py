"""Behind the stream: the lag is measured and told; training may be left out, and nothing else is."""

import numpy as np
import pytest
import torch

from online.config.settings import SettingsError, load_settings
from online.learner.learner import Learner
from online.worker.overload import MEASURE_S, Overload
from online.worker.status import StatusReport
from stream.source import Partition, Record, SourceError

ONE, TWO = Partition("clicks", 0), Partition("clicks", 1)


class At:
    """A broker and a clock that say what a test wants."""

    def __init__(self, small, **settings):
        self.settings = small(poll_records_max=10, lag_told_s=30.0, **settings)
        self.now, self.told, self.end, self.position = 1_000.0, [], {}, {}
        self.progress = type("Progress", (), {"untrained": 0})()
        self.seconds = 0.0  # of the monotonic clock
        self.overload = Overload(
            self.settings, progress=self.progress, emit=self.emit, clock=lambda: self.now,
            monotonic=lambda: self.seconds,
        )  # fmt: skip

    def emit(self, kind, text, figures):
        self.told.append((kind, text, dict(figures)))

    def ends(self):
        if self.end is None:
            raise SourceError("the broker is away")
        return self.end

    def positions(self):
        return self.position

    def look(self, unread, waited_s):
        """The worker has read some of partition 0, whose latest message was `waited_s` old; `unread` are left."""
        self.position = {ONE: 5}
        self.end = {ONE: 5 + unread}
        self.overload.received([Record(*ONE, 4, int(1000 * (self.now - waited_s)), None, b"")])
        self.seconds += MEASURE_S
        self.overload.update(self)

    @property
    def kinds(self):
        return [kind for kind, _, _ in self.told]


def test_the_lag_is_measured_per_partition_and_in_seconds(small):
    at = At(small)
    at.end, at.position = {ONE: 12, TWO: 9}, {ONE: 5, TWO: 9}
    lag = at.overload.measure(at)
    assert (lag.total, lag.messages, lag.oldest_s) == (7, {ONE: 7, TWO: 0}, 0.0)  # nothing says how old they are yet
    at.overload.received([Record(*ONE, 3, 970_000, None, b""), Record(*ONE, 4, 990_000, None, b"")])
    at.overload.received([Record(*TWO, 8, 1_000, None, b"")])
    lag = at.overload.measure(at)
    assert lag.seconds == {ONE: 10.0, TWO: 0.0}  # where nothing waits, nothing is late
    assert lag.oldest_s == 10.0
    at.end = None
    assert at.overload.measure(at) is None


def test_falling_behind_is_reported_once_and_its_end_once(small):
    at = At(small)
    for unread, waited_s in ((500, 20.0), (500, 31.0), (900, 60.0), (400, 20.0), (400, 1.5), (500, 20.0), (5, 99.0)):
        at.look(unread, waited_s)
        assert not at.overload.shedding
    assert at.kinds == ["lagging", "lagging_over"]
    assert at.told[0][1] == "more clicks come than can be learned: 500 messages wait, the oldest for 31 s"
    assert at.told[0][2] == {"messages": 500, "seconds": 31.0}


def test_what_the_next_poll_takes_is_no_lag(small):
    at = At(small, overload="shed-training")
    at.look(10, 10_000.0)  # as clicks of a file whose times are those of long ago
    assert at.told == []
    assert not at.overload.shedding


def test_fine_tuning_rests_while_clicks_are_late(small):
    at, found = At(small), []
    for unread, waited_s in ((500, 1.0), (500, 3.0), (5, 3.0), (500, 3.0), (500, 1.0)):
        at.look(unread, waited_s)
        found.append(at.overload.late)
    assert found == [False, True, False, True, False]
    assert at.told == []


def test_training_is_left_out_between_two_limits_and_its_cost_is_reported(small):
    at = At(small, overload="shed-training", shed_lag_s=10.0, lag_over_s=2.0)
    found = []
    for waited_s in (9.0, 11.0, 5.0, 2.5, 1.5, 9.0):
        at.look(500, waited_s)
        found.append(at.overload.shedding)
        at.progress.untrained += 70 * at.overload.shedding
    assert found == [False, True, True, True, False, False]
    assert at.kinds == ["shedding", "shedding_over"]
    assert at.told[1][2]["untrained"] == 210


def test_a_lag_reported_before_a_restart_is_reported_over_after_it(small):
    at, later = At(small), At(small)
    at.look(500, 40.0)
    later.overload.load_state(at.overload.to_state())
    later.look(3, 0.1)
    assert later.kinds == ["lagging_over"]


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(SettingsError, match=r"NEXTCLICK_SHED_LAG_S \(1\) must exceed NEXTCLICK_LAG_OVER_S \(2\)"):
        load_settings(shed_lag_s=1.0)


# --- the learner -------------------------------------------------------------------------------------------------


def tensors(learner):
    named = {name: tensor.clone() for name, tensor in learner.weights.tensors().items()}
    return named | {"steps": torch.tensor(learner.weights.optimizer.steps)}


def batches(clicks, size=8):
    return [clicks[start : start + size] for start in range(0, len(clicks), size)]


def test_without_training_weights_stay_and_histories_counts_and_lists_go_on(small, town_clicks):
    trained, shed = Learner(small()), Learner(small())
    for batch in batches(town_clicks[:160]):
        trained.learn(batch)
        shed.learn(batch)
    before = tensors(shed)
    scored = shed.scores.scored
    for batch in batches(town_clicks[160:240]):
        learned = shed.learn(batch, train=False)
        trained.learn(batch)
        assert not learned.trained
        assert set(learned.rankings) == {click.user_id for click in batch}
        assert all(ranking.items for ranking in learned.rankings.values())
        assert np.isfinite(learned.losses).all()
    assert all(torch.equal(before[name], now) for name, now in tensors(shed).items())
    assert shed.scores.scored == scored  # the lists that stood were not scored
    mine, theirs = shed.to_state()[0], trained.to_state()[0]
    facts = ("store.", "history.rows", "history.numbers", "abuse_filter.")
    same = [name for name in mine if name.startswith(facts) and name != "store.log_states.states"]  # which weights made
    assert len(same) > 20
    assert all(np.array_equal(mine[name], theirs[name]) for name in same)
    assert shed.replay.filled == trained.replay.filled  # to be learned from later
    shed.learn(town_clicks[240:248])
    assert not all(torch.equal(before[name], now) for name, now in tensors(shed).items())


def test_a_list_after_clicks_that_were_not_trained_on_knows_of_them(small, town_clicks):
    learner = Learner(small())
    for batch in batches(town_clicks[:80]):
        learner.learn(batch)
    click = town_clicks[80].model_copy(update={"user_id": "a new user"})
    ranking = learner.learn([click], train=False).rankings["a new user"]
    assert ranking == learner.rank(["a new user"])[0]


# --- the loop ----------------------------------------------------------------------------------------------------


def overloaded(harness, clicks, **settings):
    """A worker that finds 400 clicks on the topic, as old as the harness."""
    harness.broker.arrived_ms = 0
    harness.publish(clicks)
    return harness.begin(
        harness.loop(lag_told_s=30.0, micro_batch_max=8, poll_records_max=8, abuse_filter=False, **settings)
    )


@pytest.fixture
def _looks_each_turn(monkeypatch):
    monkeypatch.setattr("online.worker.overload.MEASURE_S", 0.0)


@pytest.mark.usefixtures("_looks_each_turn")
def test_a_shedding_worker_reads_every_click_and_trains_again_once_caught_up(harness, town_clicks):
    loop = overloaded(harness, town_clicks, overload="shed-training")
    loop.turn()
    assert loop.overload.shedding
    weights = tensors(loop.learner)
    loop.supervisor.ask_finetuning("a test")
    for _ in range(20):
        loop.turn()
    assert loop.supervisor.state == "asked"  # it waits
    assert all(torch.equal(weights[name], now) for name, now in tensors(loop.learner).items())
    status = StatusReport(loop).describe("running")
    assert (status["shedding"], status["behind"], status["untrained"]) == (True, True, 160)
    assert (status["lag"], status["lag_of"]) == (232, {"clicks:0": 232})
    while loop.turn():
        pass
    loop.turn()
    assert not loop.overload.shedding
    assert loop.progress.learned == 400
    assert loop.progress.untrained == 384  # all but the first poll and the last
    assert list(loop.notices.counts) == [
        "lagging",
        "shedding",
        "lagging_over",
        "shedding_over",
        "finetuning",
        "published",
    ]
    assert {click.user_id for click in town_clicks} == set(harness.lists.held)
    harness.publish(town_clicks[:8])
    loop.turn()
    assert not all(torch.equal(weights[name], now) for name, now in tensors(loop.learner).items())
    loop.finish()
    again = harness.begin(harness.loop())
    assert again.progress.untrained == 384


@pytest.mark.usefixtures("_looks_each_turn")
def test_by_default_a_worker_that_falls_behind_learns_everything_in_order(new_harness, town_clicks):
    behind, quiet = new_harness(), new_harness()
    late = behind.drain(overloaded(behind, town_clicks))
    quiet.publish(town_clicks)
    other = quiet.run(micro_batch_max=8, poll_records_max=8, abuse_filter=False)
    assert late.progress.untrained == 0
    assert late.notices.counts == {"lagging": 1, "lagging_over": 1}
    assert all(torch.equal(now, tensors(other.learner)[name]) for name, now in tensors(late.learner).items())


@pytest.mark.usefixtures("_looks_each_turn")
def test_fine_tuning_waits_until_a_worker_has_caught_up(harness, town_clicks):
    loop = overloaded(harness, town_clicks)
    loop.turn()
    loop.supervisor.ask_finetuning("a test")
    for _ in range(5):
        loop.turn()
        assert loop.supervisor.state == "asked"
    while loop.turn():
        pass
    for _ in range(3):
        loop.turn()
    assert loop.progress.finetunings == 1


@pytest.mark.usefixtures("_looks_each_turn")
def test_drift_and_the_shadow_wait_while_training_is_left_out(harness, town_clicks):
    loop = overloaded(harness, town_clicks, overload="shed-training", gate=True, gate_block_clicks=5,
                      shadow_clicks_max=100)  # fmt: skip
    loop.turn()
    loop.supervisor.examine(loop.learner.weights.copy(), "a test", {})
    seen = loop.changes.drift.to_state()
    for _ in range(10):
        loop.turn()
    assert loop.supervisor.candidate.figures()["clicks"] == 0
    assert len(loop.supervisor.candidate.weights.vectors) == len(loop.learner.weights.vectors)
    assert loop.changes.drift.to_state() == seen


def test_messages_without_a_time_say_nothing_of_how_old_what_waits_is(small):
    at = At(small)
    at.end, at.position = {ONE: 500}, {ONE: 5}
    at.overload.received([Record(*ONE, 3, 970_000, None, b""), Record(*ONE, 4, -1, None, b"")])
    at.overload.update(at)
    assert (at.overload.lag.total, at.overload.lag.oldest_s) == (495, None)
    assert at.kinds == []
