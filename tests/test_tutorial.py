"""The tutorial does what it says: its blocks run here, with embedded parts in the place of the containers."""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from online.api.serve import Api
from online.config.settings import Settings
from online.worker.connections import open_producer
from tests.online.client.test_examples import load, shelf
from tests.online.conftest import worker_thread

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/tutorial.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
URL = "http://127.0.0.1:8000"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SHELF_S_MAX = 30.0  # until the worker has learned, on a busy machine


def block(naming: str) -> str:
    """The one block that has these words."""
    [found] = [one for one in BLOCKS if naming in one]
    return found


def run(script: str, folder: Path, **environment: str) -> str:
    """Runs a block in a checkout's place, with this Python as that of the shop. Returns what it printed."""
    script = script.replace("../shop/bin/python", sys.executable)
    script = script.replace("../shop/bin/nextclick", f"{sys.executable} -m online")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEXTCLICK_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


def made_key(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Does the second step. Returns the key, and what .env has set since."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(ROOT / ".env.example", folder)
    key = run(block("api-key shop") + 'printf %s "$NEXTCLICK_KEY"', folder)
    lines = [line for line in (folder / ".env").read_text().splitlines() if line and not line.startswith("#")]
    return key, dict(line.split("=", 1) for line in lines)


def shelf_after(browser: TestClient, item: str, before: list[str]) -> list[str]:
    """Clicks, and loads the page until the shelf is another one."""
    items, _ = shelf(browser.post(f"/click/{item}").text)
    deadline = time.monotonic() + SHELF_S_MAX
    while items == before:
        assert time.monotonic() < deadline, f"the shelf has not changed after a click on {item}"
        time.sleep(0.1)
        items, _ = shelf(browser.get("/").text)
    return items


@pytest.mark.timeout(240)
def test_the_list_changes_after_a_click_as_the_tutorial_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    key, environment = made_key(tmp_path)
    assert key.startswith("nck_")
    assert environment.keys() == {"NEXTCLICK_API_KEYS", "NEXTCLICK_API_READ_ONLY"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings(
        device="cpu",
        data_dir=tmp_path / "data",
        embedded_redis_port=free_port,
        worker_port=0,
        api_port=0,
        status_interval_s=0.2,
    )
    with (
        worker_thread(settings) as lists,
        closing(open_producer(settings)) as producer,
        closing(Api(settings, lists, producer).start()) as api,
    ):
        run(block("WAYS").replace(URL, api.url), tmp_path, NEXTCLICK_KEY=key)
        wait_for_clicks(lists, 180)
        own = run(block("/v1/recommend/").splitlines()[-1].replace(URL, api.url), tmp_path, NEXTCLICK_KEY=key)
        assert '"source":"personal"' in own.replace(" ", "")
        monkeypatch.setenv("NEXTCLICK_URL", api.url)
        monkeypatch.setenv("NEXTCLICK_KEY", key)
        with TestClient(load("fastapi_shop").app) as browser:
            at_first, source = shelf(browser.get("/").text)
            assert source in {"asked", "popular"}
            after_kettle = shelf_after(browser, "kettle", at_first)
            assert after_kettle[0] == "tea"
            assert shelf_after(browser, "bread", after_kettle)[0] == "knife"


def wait_for_clicks(lists: Any, count: int) -> None:
    deadline = time.monotonic() + SHELF_S_MAX
    while (lists.status() or {}).get("learned", 0) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_its_commands_name_services_ports_and_folders_that_exist() -> None:
    commands = re.findall(r"docker compose (?:exec|logs|stop|start) (\w+)", TEXT)
    assert set(commands) <= set(COMPOSE)
    assert len(commands) >= 5
    assert COMPOSE["api"]["ports"] == ["127.0.0.1:${API_PORT:-8000}:8000"]
    assert {"NEXTCLICK_API_KEYS", "NEXTCLICK_API_READ_ONLY"} <= set(COMPOSE["api"]["environment"])
    assert COMPOSE["api"]["environment"]["NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS"] == "kafka:9092"
    for script in BLOCKS:
        subprocess.run(["bash", "-n", "-c", script], timeout=20, check=True)
    assert TEXT.index("PIP_ARGS") < TEXT.index("docker compose up"), "what the first build reads is set before it"
    served = re.search(r"--app-dir (\S+) (\w+):app", block("uvicorn"))
    assert served
    assert (ROOT / served[1] / f"{served[2]}.py").exists()


def test_compose_accepts_its_settings(tmp_path: Path) -> None:
    if not _works("docker", "compose", "version"):
        pytest.skip("there is no Docker Compose")
    _, environment = made_key(tmp_path)
    command = ["docker", "compose", "--file", str(ROOT / "docker-compose.yml"), "config"]
    done = subprocess.run(
        command, env=dict(os.environ) | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"]["api"]["environment"]["NEXTCLICK_API_READ_ONLY"] == "false"


@pytest.mark.real
@pytest.mark.timeout(1_500)
def test_the_containers_take_clicks_and_show_lists(tmp_path: Path) -> None:
    if not _works("docker", "compose", "version") or not _works("docker", "info"):
        pytest.skip("no Docker runs here: the tutorial's containers are left out")
    key, environment = made_key(tmp_path)
    names = "".join(f"{name}={value}\n" for name, value in environment.items())
    (tmp_path / "settings").write_text(names)
    compose = f"docker compose --project-name nextclick-tutorial --env-file {tmp_path / 'settings'}"
    try:
        subprocess.run(["bash", "-c", f"{compose} up --build --detach --wait"], cwd=ROOT, timeout=1_200, check=True)
        run(block("WAYS"), tmp_path, NEXTCLICK_KEY=key)
        deadline = time.monotonic() + SHELF_S_MAX
        own = ""
        while '"personal"' not in own:
            assert time.monotonic() < deadline
            own = run(block("/v1/recommend/").splitlines()[-1], tmp_path, NEXTCLICK_KEY=key)
    finally:
        subprocess.run(["bash", "-c", f"{compose} down --volumes"], cwd=ROOT, timeout=120, check=False)


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
