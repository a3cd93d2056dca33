"""What a process imports: a worker's start and memory must not pay for what it does not use."""

import json
import subprocess
import sys

import pytest

from online.lifecycle.detectors import ADWIN, PageHinkley

TABLES = ("pandas", "matplotlib", "optuna", "pyarrow", "polars", "sklearn", "sqlalchemy", "narwhals")
PLOTS_AND_TABLES = (*TABLES, "scipy")
# numba looks whether there is scipy, but none of it is needed.
LOOPS = (*TABLES, "scipy.linalg", "scipy.stats", "scipy.sparse", "scipy.optimize", "scipy.special")
HTTP = ("fastapi", "starlette", "uvicorn", "prometheus_client")
COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "networkx")
NOT_A_SITES = ("torch", "numpy", "river", "kafka", "numba", *PLOTS_AND_TABLES, *HTTP)
HEAVY = ("torch", "numpy", "river", "kafka", "redis", "numba")

LEARNS_AND_TUNES = """
import tempfile
from pathlib import Path
from online.learner.learner import Learner
from online.lifecycle.finetune import FineTuning
from online.config.settings import Settings
from stream.events import Click
learner = Learner(Settings(data_dir=Path(tempfile.gettempdir()), device="cpu"))
for at in range(3):
    learner.learn([Click(user_id="u", item_id=f"i{at}", timestamp=1e9 + at)])
tuning = FineTuning(learner, learner.histories.oldest_first(learner.histories.recently_seen(1), 4), seed=1)
while not tuning.done:
    tuning.run_for(9.0)
assert tuning.losses
"""


def imported_by(code: str) -> set[str]:
    """All modules that a process has that ran this."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "needed", "unwanted"),
    [
        ("import online.cli", ("typer",), (*HEAVY, *PLOTS_AND_TABLES, *HTTP, *COMPILER)),
        (
            "import online.worker.main",
            ("torch", "river", "redis"),
            (*LOOPS, *HTTP, *COMPILER, "kafka", "rich", "typer"),
        ),
        (LEARNS_AND_TUNES, ("torch", "numba"), (*LOOPS, *HTTP, *COMPILER, "kafka", "redis", "rich")),
        ("import online.commands.backtest", ("torch",), (*LOOPS, *HTTP, *COMPILER, "kafka", "redis")),
        ("import online.api.serve", ("fastapi",), (*PLOTS_AND_TABLES, *COMPILER, "torch", "river", "numba")),
        ("import online.commands.replay", (), (*HEAVY, *PLOTS_AND_TABLES, *HTTP, *COMPILER)),
        ("import online.client", ("httpx",), (*HEAVY, *PLOTS_AND_TABLES, *HTTP, *COMPILER)),
        ("from online.client import Client; Client('http://shop', redis_url='redis://shop')", ("redis",), NOT_A_SITES),
    ],
    ids=["help", "worker", "learning", "backtest", "serve", "replay", "client", "client-redis"],
)
def test_nothing_is_imported_that_is_not_used(code, needed, unwanted):
    modules = imported_by(code)
    assert modules.issuperset(needed)
    assert modules.isdisjoint(unwanted)


def test_the_detectors_are_river_s_own_and_a_later_import_of_river_drift_is_whole():
    import river.drift  # noqa: PLC0415 - after online.lifecycle.detectors

    theirs = river.drift.ADWIN(delta=0.01, clock=1), river.drift.PageHinkley(mode="up")
    ours = ADWIN(delta=0.01, clock=1), PageHinkley(mode="up")
    assert river.drift.KSWIN is not None
    assert river.stats.Var is not None
    found = 0
    for value in [0.0] * 200 + [5.0] * 200:
        for one, other in zip(ours, theirs, strict=True):
            one.update(value)
            other.update(value)
            assert one.drift_detected == other.drift_detected
            found += one.drift_detected
    assert found >= 1
    for one, other in zip(ours, theirs, strict=True):
        assert type(one).__module__ == type(other).__module__


def test_with_a_river_of_another_make_the_detectors_are_imported_as_ever():
    code = (
        "import river, sys; path = list(river.__path__); river.__path__ = ['/nowhere', *path];"
        "from online.lifecycle.detectors import ADWIN; ADWIN(); assert 'river.drift' in sys.modules"
    )
    assert "river.drift.kswin" in imported_by(code)
