"""Fine-tuning outside the worker gives what fine-tuning in it gives; whatever goes wrong with it harms nothing else."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from online.config.settings import Settings
from online.learner.learner import Learner
from online.lifecycle.finetune import FineTuning
from online.lifecycle.finetune_folder import FolderError, job_of, read_job, read_result, write_job, write_result
from online.lifecycle.finetune_job import LOCK, _worker_gone
from online.lifecycle.finetune_outside import FOLDERS, OutsideFineTuning, command_of, remove_left_jobs


@pytest.fixture(scope="module")
def learned():
    """What learners have learned, by the settings that it follows from."""
    return {}


@pytest.fixture
def learner_of(small, town_clicks, tmp_path, learned):
    """Creates a learner that has learned some clicks, the same for the same settings."""

    def make(**settings):
        learner = Learner(small(finetune_batch=4, items_held=60, data_dir=tmp_path / "data", **settings))
        of_jobs = ("finetune_", "redis_url")
        key = tuple(sorted((name, value) for name, value in settings.items() if not name.startswith(of_jobs)))
        if key not in learned:
            for start in range(0, 320, 8):
                learner.learn(town_clicks[start : start + 8])
            arrays, state = learner.to_state()
            learned[key] = {name: array.copy() for name, array in arrays.items()}, json.dumps(state)
        arrays, state = learned[key]
        learner.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(state))
        return learner

    return make


def histories(learner):
    """Of 17 users: the last of batches of 4 has one, so that some processes have nothing to do."""
    return learner.histories.oldest_first(learner.histories.recently_seen(512)[:17], 12)


def finished(tuning, timeout_s=120.0):
    until = time.monotonic() + timeout_s
    while not tuning.done:
        assert time.monotonic() < until
        tuning.run_for(1.0)
        time.sleep(0.01)
    return tuning


def folders(learner):
    return list(learner.settings.data_dir.glob(f"{FOLDERS}*"))


def python(code):
    """A command that runs code instead of a job."""
    return f"{sys.executable} -c '{code}' {{folder}}"


def far(one, other):
    both = {name: value for name, value in one.items() if value.is_floating_point() and name in other}
    return max(float((value - other[name]).abs().max()) for name, value in both.items())


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (1, {}),
        (1, {"event_weights": "click=2,view=1"}),
        (2, {}),
        (2, {"dropout": 0.3}),
        (3, {"gradient_norm_max": 0.01, "replay_held": 300, "negatives": 16}),
    ],
)
def test_processes_together_do_what_the_worker_does_alone(learner_of, processes, settings):
    learner = learner_of(finetune_processes=processes, **settings)
    assert len(histories(learner).lengths) == 17
    inside = finished(FineTuning(learner, histories(learner), seed=3))
    outside = finished(OutsideFineTuning(learner, histories(learner), seed=3))
    assert outside.failed is None
    one, other = inside.weights.tensors(), outside._result.tuned
    assert far(one, inside.start) > 1e-3  # there is something to compare
    assert far(one, other) < 1e-5
    assert far(inside.candidate().tensors(), outside.candidate().tensors()) < 1e-5
    assert len(outside._result.ranking_losses) == len(inside.ranking_losses)
    np.testing.assert_allclose(outside._result.losses, inside.losses, rtol=1e-4)
    assert outside.figures()["steps"] == inside.figures()["steps"] == 5
    assert not folders(learner)


def test_a_folder_gives_back_the_job_and_holds_no_user_and_no_password(learner_of, tmp_path):
    learner = learner_of(finetune_processes=2, redis_url="redis://:geheim@r1:6379/0")
    start = learner.weights.tensors()
    job = job_of(learner, histories(learner), start, seed=3)
    write_job(tmp_path, job)
    found = read_job(tmp_path)
    assert (found.seed, found.rows) == (3, learner.vocabulary.rows)
    assert found.settings.redis_url is None
    assert found.settings.width == learner.settings.width
    for name, array in job.histories._asdict().items():
        np.testing.assert_array_equal(found.histories._asdict()[name], array)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"geheim" not in written
    assert not any(user.encode() in written for user in learner.histories._slots if len(user) > 3)
    steps = found.steps()
    steps.run_for(60.0)
    write_result(tmp_path, steps, 1.5)
    result = read_result(tmp_path, start)
    assert (result.losses, result.seconds) == (steps.losses, 1.5)
    assert far(result.tuned, steps.weights.tensors()) == 0


@pytest.mark.parametrize("name", ["result.json", "tuned.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_damaged_result_is_refused(learner_of, tmp_path, name, damage):
    learner = learner_of()
    start = learner.weights.tensors()
    job = job_of(learner, histories(learner), start, seed=3)
    write_result(tmp_path, job.steps(), 1.5)
    path = tmp_path / name
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:20])
    elif name == "result.json":
        path.write_text("[]")
    else:
        start = start | {"first": start["first"][:-1]}
    with pytest.raises(FolderError):
        read_result(tmp_path, start)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"finetune_command": "/nowhere/torchrun {folder}"}, "cannot be started: /nowhere/torchrun: No such file"),
        ({"finetune_command": python("raise SystemExit(7)")}, "ended with status 7"),
        ({"finetune_command": python('raise ValueError("no GPU")')}, "ended with status 1: ValueError: no GPU"),
        ({"finetune_command": python("import os; os.kill(os.getpid(), 9)")}, "was killed by signal 9"),
        ({"finetune_command": python("pass")}, "the result cannot be read"),
        ({"finetune_command": python("import time; time.sleep(99)"), "finetune_timeout_s": 0.3}, "longer than 0.3 s"),
    ],
)
def test_a_job_that_fails_says_why_and_leaves_nothing(learner_of, settings, reason):
    learner = learner_of(**settings)
    tuning = finished(OutsideFineTuning(learner, histories(learner), seed=3))
    assert reason in tuning.failed
    assert not folders(learner)


def test_a_full_disk_is_a_reason(learner_of, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("online.lifecycle.finetune_outside.write_job", full)
    learner = learner_of(finetune_processes=2)
    tuning = finished(OutsideFineTuning(learner, histories(learner), seed=3))
    assert "No space left on device" in tuning.failed
    assert not folders(learner)


@pytest.mark.parametrize("processes", [1, 2])
def test_ending_it_leaves_no_process_and_no_folder(learner_of, processes):
    learner = learner_of(finetune_processes=processes)
    tuning = OutsideFineTuning(learner, histories(learner), seed=3)
    until = time.monotonic() + 60
    while not _running(tuning.folder) and time.monotonic() < until:
        time.sleep(0.01)
    folder = tuning.folder
    assert _running(folder)
    tuning.close()
    assert tuning.done
    assert not folders(learner)
    until = time.monotonic() + 10
    while _running(folder) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _running(folder)


def test_processes_end_by_themselves_when_the_folder_is_gone(learner_of):
    """As on other machines, which the worker cannot reach."""
    learner = learner_of(finetune_command=f"{sys.executable} -m online.lifecycle.finetune_job {{folder}}")
    tuning = OutsideFineTuning(learner, histories(learner), seed=3)
    while tuning.process is None:
        time.sleep(0.01)
    os.kill(tuning.process.pid, signal.SIGSTOP)
    shutil.rmtree(tuning.folder)
    os.kill(tuning.process.pid, signal.SIGCONT)
    finished(tuning)
    assert "ended with status 1" in tuning.failed


def test_a_worker_that_died_holds_its_lock_no_more_and_its_folder_is_removed(tmp_path):
    import fcntl  # noqa: PLC0415

    folder = tmp_path / f"{FOLDERS}abc"
    folder.mkdir()
    assert not _worker_gone(folder)  # made by hand
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not _worker_gone(folder)
    assert _worker_gone(folder)
    (tmp_path / "checkpoints").mkdir()
    remove_left_jobs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_command_gets_the_folder_and_no_shell():
    settings = Settings(finetune_command="srun -n {processes} 'my job' {folder}/x; rm", finetune_processes=4)
    assert command_of(settings, Path("/d/f")) == ["srun", "-n", "4", "my job", "/d/f/x;", "rm"]
    with pytest.raises(ValueError, match="folder"):
        Settings(finetune_command="srun")


def test_the_job_gets_no_setting_of_the_worker_by_the_environment(learner_of, monkeypatch, tmp_path):
    monkeypatch.setenv("NEXTCLICK_REDIS_URL", "redis://:geheim@r1:6379/0")
    code = 'import os, pathlib; pathlib.Path(os.environ["SEEN"]).write_text(str(dict(os.environ)))'
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    learner = learner_of(finetune_command=python(code))
    finished(OutsideFineTuning(learner, histories(learner), seed=3))
    seen = (tmp_path / "seen").read_text()
    assert "PATH" in seen
    assert "geheim" not in seen


def test_nothing_of_the_worker_moves_meanwhile(learner_of, same):
    learner = learner_of(finetune_processes=1)
    random = torch.get_rng_state()
    arrays = {name: array.copy() for name, array in learner.to_state()[0].items()}
    tuning = finished(OutsideFineTuning(learner, histories(learner), seed=3))
    assert tuning.failed is None
    assert same(arrays, learner.to_state()[0])
    assert torch.equal(random, torch.get_rng_state())


def _running(folder):
    """Whether any process has the folder in its command line."""
    if folder is None:
        return False
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False
