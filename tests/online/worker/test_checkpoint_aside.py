"""Checkpoints that another thread completes while the loop goes on: the order of effects holds, and so do crashes."""

import itertools
import json
import os
import signal
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest

from online.worker import checkpointing
from online.worker.checkpoint import CheckpointError, Checkpoints
from online.worker.steps import STEPS
from stream.events import Forget
from stream.user_ids import digest_of

CLICKS = 160  # five full polls
BAD = {3: b"no json", 40: None, 70: b"[]", 130: b"{}"}
ASIDE = ("checkpoint_manifest", "checkpoint_rename", "checkpoint_clean")


class CrashError(BaseException):
    """As kill -9: nothing of ours catches it."""


class Late(Executor):
    """Does what it is given when it has been asked so many times whether it is done, or has to be: within the loop's
    own thread, so that a test says what comes before what. A crash in it is one of the whole process."""

    def __init__(self, turns):
        self.turns = turns
        self.given = 0

    def submit(self, work):
        self.given += 1
        return LateFuture(work, self.turns)

    def shutdown(self, **_):
        pass


class LateFuture(Future):
    def __init__(self, work, turns):
        super().__init__()
        self.work, self.turns = work, turns

    def done(self):
        if self.turns > 0:
            self.turns -= 1
            return False
        self._do()
        return super().done()

    def result(self, timeout=None):
        self._do()
        return super().result(timeout)

    def _do(self):
        if not super().done():
            try:
                self.set_result(self.work())
            except Exception as error:
                self.set_exception(error)


@pytest.fixture
def values(town_clicks):
    return [BAD.get(place, click) for place, click in enumerate(town_clicks[:CLICKS])]


@pytest.fixture
def aside_loop():
    """Loops whose checkpoints are due at each turn, and completed aside."""

    def make(harness, reached=lambda _: None, *, aside, monotonic=None, **overrides):
        passing = itertools.count(1.0)
        monotonic = monotonic or (lambda: float(next(passing)))
        return harness.loop(reached, monotonic=monotonic, aside=aside, checkpoint_interval_s=1e-3, **overrides)

    return make


def fault(step, visit):
    """A crash at the n-th visit of a step."""
    count = itertools.count(1)

    def reached(one):
        if one == step and next(count) == visit:
            raise CrashError(step)

    return reached


def outcome(harness, loop):
    letters = [(letter.key, letter.value, letter.offset) for letter in harness.dead()]
    everything = harness.everything(loop)
    del everything["versions"]  # they know the numbers of checkpoints, of which there were fewer
    return everything, letters, dict(harness.broker.committed), loop.progress.next_offsets


@pytest.fixture(scope="module")
def quiet():
    return {}


@pytest.fixture
def undisturbed(quiet, new_harness, values):
    if not quiet:
        harness = new_harness()
        harness.publish(values)
        quiet["outcome"] = outcome(harness, harness.run())
    return quiet["outcome"]


@pytest.mark.parametrize(("step", "turns"), [*itertools.product(STEPS, (0, 1, 3))])
def test_a_crash_at_any_step_while_a_checkpoint_is_being_written_changes_nothing(
    new_harness, values, undisturbed, aside_loop, *, step, turns
):
    harness = new_harness()
    harness.publish(values)
    crashes = 0
    for visit in (1, 2, 1):
        try:
            harness.drain(harness.begin(aside_loop(harness, fault(step, visit), aside=Late(turns))))
        except CrashError:
            crashes += 1
    assert crashes >= 2
    aside = Late(turns)
    last = harness.drain(harness.begin(aside_loop(harness, aside=aside)))
    assert outcome(harness, last) == undisturbed


@pytest.fixture
def copies(monkeypatch, increments):  # noqa: ARG001
    """Small checkpoints are increments, and written by a copy of the process, too."""
    monkeypatch.setattr(checkpointing, "COPY_FROM_BYTES", 0)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("step", [step for step in STEPS if step != "checkpoint_state"])  # which the copy reaches
def test_a_crash_at_any_step_while_a_copy_of_the_process_writes_changes_nothing(
    new_harness, values, undisturbed, aside_loop, step
):
    harness = new_harness()
    harness.publish(values)
    crashes = 0
    for visit in (1, 3, 2):
        try:
            harness.drain(harness.begin(aside_loop(harness, fault(step, visit), aside=Late(1))))
        except CrashError:
            crashes += 1
    assert crashes >= 2
    last = harness.drain(harness.begin(aside_loop(harness, aside=Late(1))))
    assert outcome(harness, last) == undisturbed


@pytest.mark.usefixtures("copies")
def test_increments_by_copies_hold_what_full_checkpoints_hold(new_harness, values, aside_loop, same):
    harness = new_harness()
    harness.publish(values)
    loop = harness.begin(aside_loop(harness, aside=Late(1), poll_records_max=16))
    before, seen = None, 0
    while loop.turn():
        writing = loop.checkpointer._writing
        if writing is not None and writing is not before:  # it was begun at the end of this turn
            before = writing
            arrays, state = loop.checkpointer._capture()
            expected = {name: np.array(array) for name, array in arrays.items()}
            saved = writing.saved.result()
            found, found_state = loop.checkpoints.read(saved.number)
            assert same(found, expected)
            assert found_state == json.loads(json.dumps(state))
            seen += loop.checkpoints.is_increment(saved.number)
    assert seen >= 2


@pytest.mark.usefixtures("copies")
def test_a_copy_that_is_killed_is_reported_and_made_good(harness, values, aside_loop, caplog):
    parent, killing = os.getpid(), [True]

    def reached(step):
        if step == "checkpoint_state" and os.getpid() != parent and killing:
            os.kill(os.getpid(), signal.SIGKILL)

    harness.publish(values)
    loop = harness.begin(aside_loop(harness, reached, aside=Late(0)))
    for _ in range(4):
        loop.turn()
    assert loop.checkpointer.failing_since is not None
    assert "was killed by signal 9" in caplog.text
    assert loop.checkpoints.numbers() == [1]  # the first, which no copy writes: it is not known yet how large it is
    killing.clear()
    harness.drain(loop)
    assert loop.checkpointer.failing_since is None
    assert harness.broker.committed == {harness.partition(): CLICKS}


@pytest.mark.parametrize("how", ["here", "in copies"])
def test_a_real_thread_changes_nothing_either(new_harness, values, undisturbed, aside_loop, request, *, how):
    if how == "in copies":
        request.getfixturevalue("copies")
    harness = new_harness()
    harness.publish(values)
    loop = harness.drain(harness.begin(aside_loop(harness, aside=ThreadPoolExecutor(1))))
    loop.close()
    assert outcome(harness, loop) == undisturbed
    number, _, state = loop.checkpoints.load()
    assert state["progress"]["learned"] == loop.progress.learned
    assert number == loop.checkpointer.last_saved.number


def test_committed_offsets_are_those_of_the_checkpoint_not_of_later_clicks(harness, values, aside_loop):
    harness.publish(values)
    loop = harness.begin(aside_loop(harness, aside=Late(2)))
    commits = []
    while loop.turn():
        if harness.broker.committed:
            _, _, state = loop.checkpoints.load()
            (_, _, offset), *_ = state["progress"]["next_offsets"]
            assert harness.broker.committed == {harness.partition(): offset}
            commits.append((offset, loop.progress.next_offsets[harness.partition()]))
    assert any(committed < taken for committed, taken in commits)


def test_lists_and_dead_letters_are_out_before_their_checkpoint_is_begun(harness, values, aside_loop):
    steps = []
    harness.publish(values)
    loop = harness.begin(aside_loop(harness, steps.append, aside=Late(1)))
    for _ in range(3):
        loop.turn()
    first = steps.index("checkpoint")
    assert steps.index("lists") < first
    assert steps.index("dead_letters") < first
    assert "learn" in steps[first : steps.index("checkpoint_rename")]  # another turn was not held up
    assert steps.index("checkpoint_rename") < steps.index("commit")


def test_only_one_is_on_its_way_and_the_next_waits_for_its_end(harness, values, aside_loop):
    harness.publish(values)
    aside = Late(10**6)
    loop = harness.begin(aside_loop(harness, aside=aside))
    while loop.turn():
        pass
    assert aside.given == 1
    assert loop.checkpoints.numbers() == []
    loop.finish()
    assert loop.checkpoints.numbers() == [1, 2]
    assert harness.broker.committed == {harness.partition(): CLICKS}


def test_a_checkpoint_that_cannot_be_completed_is_reported_and_made_good(harness, values, aside_loop, caplog):
    failing = threading.Event()
    failing.set()

    def reached(step):
        if step == "checkpoint_manifest" and failing.is_set():
            raise OSError(28, "No space left on device")

    now = [0.0]
    harness.publish(values)
    loop = harness.begin(aside_loop(harness, reached, aside=Late(1), monotonic=lambda: now[0]))
    now[0] = 1.0
    for _ in range(3):
        loop.turn()
    assert loop.checkpointer.failing_since is not None
    assert "No space left on device" in caplog.text
    assert loop.checkpoints.numbers() == []
    assert loop.versions.live.checkpoint is None
    assert not list(loop.checkpoints.folder.iterdir())
    assert harness.broker.committed == {}
    failing.clear()
    now[0] = 2.0
    for _ in range(3):
        loop.turn()
    assert loop.checkpointer.failing_since is None
    while loop.turn():
        pass
    loop.finish()
    assert harness.broker.committed == {harness.partition(): CLICKS}
    assert loop.versions.live.checkpoint == loop.checkpointer.last_saved.number


def test_a_version_is_on_disk_before_its_first_list_even_during_a_checkpoint(harness, values, aside_loop):
    harness.publish(values)
    loop = harness.begin(aside_loop(harness, aside=Late(10**6)))
    loop.turn()
    loop.supervisor.ask_finetuning("a test")
    while loop.learner.version == 1:
        loop.turn()
    _, _, state = loop.checkpoints.load()
    assert state["learner"]["version"] == 2
    assert loop.checkpoints.numbers() == [1, 2]  # the one on its way came first
    assert loop.versions.live.checkpoint == 2
    assert loop.versions.all()[0].checkpoint == 1


def test_a_forgotten_user_is_not_in_the_checkpoint_that_was_being_written(harness, town_clicks, aside_loop):
    clicks = town_clicks[:CLICKS]
    user = clicks[0].user_id
    forget = Forget(user_sha256=digest_of(user), timestamp=clicks[-1].timestamp)
    left = [click for click in clicks[96:] if click.user_id != user]
    harness.publish(
        [*clicks[:96], forget.model_dump_json().encode().replace(b"{", b'{"event_type":"nextclick.forget",', 1), *left]
    )
    loop = harness.begin(aside_loop(harness, aside=Late(10**6), forget_checkpoints_s=0.0))
    while loop.turn():
        pass
    loop.turn()
    loop.turn()
    loop.finish()
    assert loop.checkpoints.numbers()
    for number in loop.checkpoints.numbers():
        answer = loop.answer_forget({"forget": digest_of(user), "after": [], "search": True})
        assert answer["checkpoints"][str(number)] == 0


def test_closing_waits_for_the_one_on_its_way(harness, values, aside_loop):
    """So that a loop which begins anew in the same process, after a bug, does not meet it half done."""
    held, entered = threading.Event(), threading.Event()

    def reached(step):
        if step == "checkpoint_rename":
            entered.set()
            assert held.wait(30)

    harness.publish(values)
    loop = harness.begin(aside_loop(harness, reached, aside=ThreadPoolExecutor(1)))
    loop.turn()
    assert entered.wait(30)
    threading.Timer(0.05, held.set).start()
    loop.close()
    assert Checkpoints(loop.checkpoints.folder, 2).numbers() == [1]


def test_begun_and_completed_is_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "some", 2)
    arrays = {"a": np.arange(5)}
    complete = checkpoints.begin(arrays, {"b": 1})
    assert checkpoints.load() is None
    arrays["a"][:] = 0  # what is begun holds what was, whatever changes meanwhile
    saved = complete()
    number, found, state = checkpoints.load()
    assert (number, found["a"].tolist(), state) == (saved.number, [0, 1, 2, 3, 4], {"b": 1})


def test_what_cannot_be_begun_or_completed_leaves_nothing(tmp_path):
    steps = []

    def full(step):
        steps.append(step)
        if step == refused:
            raise OSError(28, "No space left on device")

    for refused in ("checkpoint_state", "checkpoint_manifest", "checkpoint_rename"):
        checkpoints = Checkpoints(tmp_path / refused, 2, reached=full)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.begin({"a": np.arange(5)}, {})()
        assert not list((tmp_path / refused).iterdir())
    assert set(ASIDE) - {"checkpoint_clean"} <= set(steps)
