"""What Docker Compose starts has few rights, and each image and each checkout can say what is in it."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OBSERVABILITY = {"prometheus", "grafana"}


@pytest.mark.parametrize("name", ["worker", "api", *sorted(OBSERVABILITY)])
def test_a_container_writes_only_to_its_volumes_and_to_tmp(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    mounts = [mount.split(":") for mount in service.get("volumes", [])]
    assert all(mount[2:] == ["ro"] if mount[0].startswith(".") else mount[0] in COMPOSE["volumes"] for mount in mounts)
    assert all((ROOT / mount[0]).exists() for mount in mounts if mount[0].startswith("."))


def test_ports_are_open_to_this_machine_only_and_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        tag = service["image"].partition(":")[2]
        assert re.search(r"\d", tag), f"{name}: {service['image']} is no version"
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


def test_grafana_and_prometheus_come_when_they_are_asked_for_and_with_a_password() -> None:
    assert {name for name, service in SERVICES.items() if service.get("profiles")} == OBSERVABILITY
    grafana = SERVICES["grafana"]
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_ADMIN_PASSWORD:-}"
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    shell = [
        *grafana["entrypoint"][:2],
        grafana["entrypoint"][2].replace("$$", "$").replace("exec /run.sh", "echo runs"),
    ]
    for password, status in (("", 1), ("planted", 0)):
        environment = {"PATH": "/usr/bin:/bin", "GF_SECURITY_ADMIN_PASSWORD": password}
        done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, "GRAFANA_ADMIN_PASSWORD" in done.stderr) == (status, status == 1)


def test_variables_of_compose_are_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    variables = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert not {name for name in variables if f"\n#{name}=" not in example}


def test_users_are_not_root_and_what_the_build_needs_is_sent_to_it() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    shipped = [stage for stage in stages if re.match(r"runtime AS (api|worker)\n", stage)]
    assert len(shipped) == 2
    for stage in shipped:
        assert stage.rstrip().endswith("USER 10001:10001")
        assert "sbom.cdx.json /opt/nextclick/" in stage
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for names in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in names.split():
            assert any(name.rstrip("/") == one or name.startswith(f"{one}/") for one in sent), name
            assert (ROOT / name).exists()


def test_slim_removes_tests_and_leaves_what_runs(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.11/site-packages"
    gone = ["a/tests/test_x.py", "torch/include/x.h", "torch/bin/test_api", "torch/test/x"]
    stay = ["a/x.py", "a/testing/x.py", "torch/bin/torch_shm_manager", "torch/lib/libsmall.so"]
    for name in (*gone, *stay):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("x")
    subprocess.run([ROOT / "deploy/image/slim", tmp_path], check=True, timeout=30)
    left = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert left == set(stay)


@pytest.mark.real
def test_compose_accepts_its_file() -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed: its file is only checked as YAML")
    command = [program, "--profile", "observability", "config", "--services"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(SERVICES)


@pytest.mark.real  # it reads each file of each package
def test_an_sbom_names_each_package_with_its_version(tmp_path: Path) -> None:
    """As `make sbom` and the Dockerfile write it."""
    if importlib.util.find_spec("cyclonedx_py") is None:
        pytest.skip("cyclonedx-bom is not installed: no SBOM can be written")
    path = tmp_path / "sbom.cdx.json"
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--output-file", str(path)]
    subprocess.run([*command, sys.executable], check=True, capture_output=True, timeout=120)
    sbom = json.loads(path.read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    named = {one["name"].lower(): one for one in sbom["components"]}
    assert {"torch", "pydantic", "fastapi", "redis", "kafka-python", "numpy"} <= set(named)
    assert all(named[name]["version"] and named[name]["purl"] for name in ("torch", "pydantic", "redis"))
