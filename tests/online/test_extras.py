"""The bare installation serves, publishes and shows; a command that lacks its extra says so in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from online.commands.extras import EXTRAS, MissingExtraError, require_extras

# Refuses packages as though they were not installed, then runs what follows.
WITHOUT = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Refusing())
"""
OPTIONAL = tuple(sorted({name for names in EXTRAS.values() for name in names}))
NEEDS = "nextclick {}: needs the packages of the extra \"{}\": pip install 'nextclick[{}]'\n"


def run(code: str, folder: Path, missing: tuple[str, ...], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code where some packages are missing; state is in `folder`, and no Redis is reached."""
    variables = {"NEXTCLICK_DATA_DIR": str(folder / "data"), "NEXTCLICK_EMBEDDED_REDIS_PORT": "1"} | variables
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing) + code],
        env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def command(*arguments: object, folder: Path, missing: tuple[str, ...] = OPTIONAL, **variables: str):
    line = ["nextclick", *map(str, arguments)]
    return run(f"sys.argv = {line!r}\nfrom online.cli import main\nmain()", folder, missing, **variables)


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    path = tmp_path / "clicks.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"u{n},i{n},{1_700_000_000 + n}\n" for n in range(5)))
    return path


def test_the_help_needs_no_extra(tmp_path):
    done = command("--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dead-letters" in done.stdout


def test_a_file_is_published_and_items_too_without_any_extra(tmp_path, clicks):
    done = command("replay", clicks, folder=tmp_path)
    assert done.returncode == 0, done
    done = command("item", "i9", "--unavailable", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "i9: published to topic items as not available\n"), done
    done = command("dead-letters", "--json", folder=tmp_path)
    assert done.returncode == 0, done
    done = command("api-key", "shop", folder=tmp_path)
    assert done.returncode == 0, done


@pytest.mark.parametrize("arguments", [("top", "u1"), ("status",), ("versions",), ("forget", "u1")])
def test_commands_that_ask_redis_get_as_far_as_redis_without_any_extra(tmp_path, clicks, arguments):
    if arguments[0] == "forget":  # it refuses a folder that no worker has used
        assert command("replay", clicks, folder=tmp_path).returncode == 0
    done = command(*arguments, folder=tmp_path, NEXTCLICK_FINETUNE_CRON="30 3 * * *")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("nextclick: the embedded Redis does not answer"), done


def test_doctor_needs_no_extra(tmp_path):
    done = command("doctor", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done


@pytest.mark.parametrize(
    ("arguments", "extra"), [(("user", "u1"), "worker"), (("item", "i1"), "worker"), (("export", "out"), "backtest")]
)
def test_what_reads_a_checkpoint_says_that_it_lacks_its_extra(tmp_path, arguments, extra):
    done = command(*arguments, folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, NEEDS.format(arguments[0], extra, extra))


def test_the_api_answers_without_any_extra(tmp_path):
    code = """
from online.api.app import create_app
from online.config.settings import load_settings
from online.worker.connections import open_lists
from starlette.testclient import TestClient
settings = load_settings()
client = TestClient(create_app(settings, open_lists(settings, there=False)))
print(client.get("/healthz").status_code, client.get("/").status_code, client.get("/recommend/u1").status_code)
"""
    done = run(code, tmp_path, OPTIONAL)
    assert done.stdout == "200 200 503\n", done


def test_the_worker_says_that_it_lacks_its_extra(tmp_path):
    done = command("worker", folder=tmp_path, NEXTCLICK_REDIS_URL="redis://127.0.0.1:1")
    assert (done.returncode, done.stderr) == (1, NEEDS.format("worker", "worker", "worker"))


def test_a_worker_without_a_redis_needs_the_embedded_one(tmp_path):
    done = command("worker", folder=tmp_path, missing=("fakeredis",))
    assert (done.returncode, done.stderr) == (1, NEEDS.format("worker", "embedded", "embedded"))
    done = command("worker", folder=tmp_path)
    wanted = 'nextclick worker: needs the packages of the extras "worker" and "embedded": '
    assert (done.returncode, done.stderr) == (1, wanted + "pip install 'nextclick[worker,embedded]'\n")


def test_the_worker_imports_neither_the_embedded_redis_nor_the_backtest(tmp_path):
    missing = tuple(set(OPTIONAL) - set(EXTRAS["worker"]))
    done = run("import online.worker.main", tmp_path, missing)
    assert done.returncode == 0, done


def test_the_demo_says_that_it_lacks_its_extras(tmp_path):
    done = command("demo", folder=tmp_path, missing=("torch",))
    assert (done.returncode, done.stderr) == (1, NEEDS.format("demo", "worker", "worker"))


@pytest.mark.parametrize("name", ["backtest", "tune"])
def test_a_backtest_and_a_search_say_that_they_lack_their_extra(tmp_path, clicks, name):
    for missing in (OPTIONAL, ("optuna",)):
        done = command(name, clicks, folder=tmp_path, missing=missing)
        assert (done.returncode, done.stderr) == (1, NEEDS.format(name, "backtest", "backtest"))


def test_a_parquet_file_says_what_it_needs(tmp_path):
    path = tmp_path / "clicks.parquet"
    path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    done = command("replay", path, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "is a Parquet file, which needs the packages of the extra \"backtest\": pip install 'nextclick[backtest]'\n"
    )
    assert len(done.stderr.splitlines()) == 1


def test_nothing_is_missing_where_all_is_installed():
    require_extras("worker", *EXTRAS)


def test_a_message_names_only_the_extras_that_are_missing(monkeypatch):
    monkeypatch.setitem(EXTRAS, "embedded", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r'^demo: needs the packages of the extra "embedded": '):
        require_extras("demo", "worker", "embedded")
