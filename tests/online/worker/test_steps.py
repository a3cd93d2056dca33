"""Fail points: whatever step of a turn it crashes, hangs or raises at, it ends as if nothing had happened."""

import ast
import inspect
import re
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from online.worker import checkpoint as checkpoint_module
from online.worker import checkpointing as checkpointing_module
from online.worker import loop as loop_module
from online.worker.poison_pills import InconsistentStateError
from online.worker.steps import STEPS
from stream.events import Click

POLL = 32
CLICKS = 96  # three full polls, six micro-batches
BAD = {3: b"no json", 40: None, 70: b"[]", 95: b'{"user_id": "", "item_id": "i", "timestamp": 1}'}
VISITS = (1, 2, 1)  # of each start; what a crash left behind a checkpoint is not visited again


class CrashError(BaseException):
    """As kill -9: nothing of ours catches it."""


class Fault:
    """Fails at the n-th visit of a step; without one, only counts."""

    def __init__(self, step=None, visit=0, how=CrashError):
        self.step, self.visit, self.how = step, visit, how
        self.visits = Counter()

    def __call__(self, step):
        self.visits[step] += 1
        if step == self.step and self.visits[step] == self.visit:
            raise self.how(f"a fault at {step}")


@pytest.fixture(scope="module")
def quiet():
    """What a run without faults leaves, computed once."""
    return {}


@pytest.fixture
def values(town_clicks):
    return [BAD.get(place, click) for place, click in enumerate(town_clicks[:CLICKS])]


@pytest.fixture
def undisturbed(quiet, new_harness, values):
    if not quiet:
        harness = new_harness()
        harness.publish(values)
        loop = harness.run()
        quiet.update(harness.everything(loop), dead=dead(harness), saved=saved(loop))
    return quiet


def killed(harness, fault, **overrides):
    """Runs a worker with a fault -> whether it came to it."""
    try:
        harness.run(fault, **overrides)
    except CrashError:
        return True
    return False


def dead(harness):
    return [(letter.key, letter.value, letter.headers) for letter in harness.dead()]


def saved(loop):
    """The latest checkpoint: arrays bit for bit, and the state, but for how far the dead letters' topic was read,
    since when it is looked for lists that have aged, and the mark that Redis was left."""
    _, arrays, state = loop.checkpoints.load()
    del state["dead_letters"], state["lists"]["aging"]["looked_at"], state["lists"]["link"]
    return state | {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def differences(harness, loop, undisturbed):
    found = {**harness.everything(loop), "dead": dead(harness), "saved": saved(loop)}
    different = {name for name in undisturbed if found[name] != undisturbed[name]}
    if "saved" in different:
        different |= {f"saved.{n}" for n, value in undisturbed["saved"].items() if found["saved"].get(n) != value}
    return different


def sections(source):
    """The numbered comments of a function, in order, each with the steps that it reaches before the next one."""
    found, number = {}, 0
    for line in source.splitlines():
        if match := re.match(r" +# (\d+)\. ", line):
            number = int(match[1])
            found[number] = []
        elif (
            match := re.search(r'_reached\("(\w+)"\)', line.replace("_apply_updates()", '_reached("items")'))
        ) and match[1] not in found[number]:
            found[number].append(match[1])
    return found


def test_every_numbered_step_of_the_loop_has_a_name_and_each_name_is_reached(harness, values):
    """The comments `# 1. ...` of `Loop.turn` are the steps; what they say is done after the names of that number."""
    turn = inspect.getsource(loop_module.Loop.turn)
    assert len(turn.splitlines()) <= 80  # one screen
    numbered = sections(turn)
    assert list(numbered) == list(range(1, len(numbered) + 1))
    named = {number: [] for number in numbered}
    for step, what in STEPS.items():
        named[int(what.split(":")[0])].append(step)
    last = max(numbered)
    assert numbered.pop(last) == []  # the checkpoints reach them
    assert named.pop(last)
    assert named == numbered
    text = (Path(loop_module.__file__).parents[2] / "ARCHITECTURE.md").read_text().split("```")[1]
    assert {int(number) for number in re.findall(r"(?<![\w+])(\d+) (?=[a-z])", text)} == set(range(1, last + 1))
    calls = [
        node.args[0].value
        for module in (loop_module, checkpointing_module, checkpoint_module)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(module))))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "_reached"
    ]
    assert set(calls) == set(STEPS)
    fault = Fault()
    harness.publish(values)
    harness.run(fault)
    assert set(fault.visits) == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_again_and_again_it_ends_as_if_nothing_had_happened(new_harness, values, undisturbed, step):
    harness = new_harness()
    harness.publish(values)
    assert sum(killed(harness, Fault(step, visit)) for visit in VISITS) >= 2
    last = harness.run()
    assert differences(harness, last, undisturbed) == set()
    assert harness.broker.committed == {harness.partition(): CLICKS}


def test_killed_at_one_step_after_the_other_it_ends_as_if_nothing_had_happened(new_harness, values, undisturbed):
    harness = new_harness()
    harness.publish(values)
    assert all(killed(harness, Fault(step, 1)) for step in STEPS)
    assert differences(harness, harness.run(), undisturbed) == set()


def test_after_crashes_at_every_step_each_event_of_all_partitions_counts_once(new_harness, town_clicks):
    clicks = [click.model_copy(update={"event_id": f"e{at}"}) for at, click in enumerate(town_clicks[:120])]
    sent = [BAD.get(place, click) for place, click in enumerate(clicks)]
    harness = new_harness()
    harness.publish([*sent, *clicks[:10]], partitions=3)
    for at, step in enumerate(STEPS):
        assert killed(harness, Fault(step, 1), poll_records_max=20 + at)  # other turns each time
    last = harness.run()
    good = {click.event_id for click in sent if isinstance(click, Click)}
    twice = sum(click.event_id in good for click in clicks[:10])
    assert last.progress.learned == last.learner.scores.scored == len(good) + 10 - twice
    assert (last.progress.duplicates, sum(last.progress.dead_letters.values())) == (twice, len(BAD))
    assert last.progress.next_offsets == last.source.ends()
    assert len(harness.dead()) == len(BAD)


def test_an_error_at_any_step_stops_the_worker_or_restores_and_leaves_no_trace(new_harness, values, undisturbed):
    harness = new_harness()
    harness.publish(values)
    stopped = sent_back = 0
    for step in STEPS:
        with pytest.raises((ValueError, InconsistentStateError)) as error:
            harness.run(Fault(step, 1, ValueError))
        stopped += error.type is ValueError
        sent_back += error.type is InconsistentStateError
    assert (stopped, sent_back) == (len(STEPS) - 3, 3)
    assert differences(harness, harness.run(), undisturbed) == set()
