"""All loops are compiled before they are needed, and a start that has to do it says so."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from online.learner.facts import jit, warm
from online.learner.facts.jit import cache_folder
from online.learner.facts.warm import BEFOREHAND, is_warm, warm_if_cold
from stream.events import encode
from tests.online.conftest import worker_thread

pytestmark = pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="nothing is compiled")

# Sizes as they are by default, and what a worker does in its life.
LIVES = """
import json, sys, tempfile
from pathlib import Path
import torch
from online.evaluation.town import Town
from online.learner.facts.warm import TINY, loops, use_all_loops
from online.learner.learner import Learner
from online.config.settings import Settings
from stream.user_ids import digest_of

torch.set_num_threads(1)
if "warmed" in sys.argv:
    use_all_loops()
warmed = {name: len(function.signatures) for name, function in loops()}
folder = Path(tempfile.mkdtemp())
clicks = list(Town(users=30, items=60, seed=3).clicks(320))
sizes = [{}, {"exclude_seen": True}, {"reformer": False}, {"deep_state": False}, {**TINY, "ranker_networks": 2}]
for overrides in sizes:
    learner = Learner(Settings(**{"data_dir": folder, "device": "cpu", **overrides}))
    step = learner.settings.micro_batch_max
    for start in range(0, 256, step):
        learner.learn(clicks[start : start + step])
    learner.store.decay(0.5)
    learner.items.set_available(clicks[0].item_id, False)
    learner.forget(digest_of(clicks[0].user_id))
    arrays, state = learner.to_state()
    again = Learner(learner.settings)
    again.load_state(arrays, json.loads(json.dumps(state)))
    again.learn(clicks[256:257])
    again.learn(clicks[257:288], train=False)
    again.rank(again.histories.users()[:8])
print(json.dumps({
    "misses": {name: sum(function.stats.cache_misses.values()) for name, function in loops()},
    "hits": sum(sum(function.stats.cache_hits.values()) for _, function in loops()),
    "new": [name for name, function in loops() if len(function.signatures) > warmed[name]],
}))
"""


def lives(*arguments):
    done = subprocess.run([sys.executable, "-c", LIVES, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    subprocess.run([sys.executable, "-m", "online.learner.facts.warm"], check=True, stdout=subprocess.DEVNULL)
    assert is_warm()


@pytest.mark.timeout(900)
def test_what_comes_after_it_compiles_nothing():
    found = lives()
    assert found["hits"] > 5
    assert not any(found["misses"].values()), found["misses"]


@pytest.mark.timeout(900)
def test_it_leaves_no_loop_out_that_python_calls():
    """Whatever else was compiled before, as by other tests, would not show in the test above."""
    assert lives("warmed")["new"] == []


def test_a_start_that_is_warm_says_nothing_and_does_nothing(monkeypatch):
    monkeypatch.setattr(warm, "use_all_loops", lambda: pytest.fail("all is compiled"))
    warm_if_cold(pytest.fail)


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """An empty folder for compiled forms, and nothing that takes a minute."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(warm, "use_all_loops", lambda: None)


@pytest.mark.usefixtures("cold")
def test_a_cold_start_says_in_one_line_what_it_compiles_and_how_to_do_it_before():
    said = []
    assert not is_warm()
    warm_if_cold(said.append)
    (line,) = said
    assert "compiling loops for this machine" in line
    assert BEFOREHAND in line
    assert is_warm()
    warm_if_cold(pytest.fail)


@pytest.mark.usefixtures("cold")
def test_where_nothing_can_be_kept_it_says_how_to_mend_that(tmp_path):
    (tmp_path / "kernels").write_text("no folder")
    said = []
    warm_if_cold(said.append)
    assert len(said) == 2
    assert "name a folder with NUMBA_CACHE_DIR" in said[1]


@pytest.mark.usefixtures("cold")
def test_what_was_compiled_from_other_sources_goes(tmp_path):
    old = tmp_path / "kernels" / "kernels-0123456789abcdef" / "facts_1"
    old.mkdir(parents=True)
    (old / "gather.nbc").write_bytes(b"machine code")
    (tmp_path / "kernels" / "mine").write_text("")
    mine = cache_folder() / "facts_1" / "gather.nbc"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"machine code")
    warm.warm()
    assert old.is_dir()  # a process of these sources may still write there
    assert not list(old.iterdir())
    assert mine.exists()
    assert (tmp_path / "kernels" / "mine").exists()


@pytest.mark.usefixtures("cold")
def test_a_worker_says_it_before_it_is_ready(small, caplog, free_port):
    caplog.set_level(logging.INFO, "online.worker.main")
    with worker_thread(small(embedded_redis_port=free_port)):
        pass
    assert caplog.text.count("compiling loops for this machine") == 1
    caplog.clear()
    with worker_thread(small(embedded_redis_port=free_port)):
        pass
    assert "compiling loops" not in caplog.text


@pytest.mark.usefixtures("cold")
def test_a_backtest_says_it_beside_its_figures(command, tmp_path, town_clicks):
    file = tmp_path / "clicks.jsonl"
    file.write_bytes(b"\n".join(encode(click) for click in town_clicks[:60]))
    code, out, errors = command("backtest", str(file), "--methods", "popular")
    assert code == 0
    assert "compiling loops for this machine" in " ".join(errors.split())
    assert "compiling" not in out
    _, _, errors = command("backtest", str(file), "--methods", "popular")
    assert "compiling" not in errors


def test_what_can_be_run_by_itself_is_named_so():
    module = BEFOREHAND.removeprefix("python -m ")
    assert Path(jit.__file__).with_name("warm.py") == Path(warm.__file__)
    assert warm.__name__ == module
