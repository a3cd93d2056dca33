"""`make` runs this checkout's code with this checkout's dependencies, whatever became of .venv meanwhile."""

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from online.learner.facts import jit

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = "Bringing .venv up to date"
MADE = "Setting up .venv"


def script(root: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("venv_script", str(root / ".ci" / "venv"))
    spec = importlib.util.spec_from_loader("venv_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


class Checkout:
    """A checkout with a tiny package, whose .venv is real but for pip: what would be installed is written down."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for name in ("online", "model", "stream"):
            (root / name).mkdir(parents=True)
            (root / name / "__init__.py").touch()
        (root / ".ci").mkdir()
        for name in (".ci/venv", "Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, root / name)
        self.installs: list[list[str]] = []
        self.warmed = 0
        self.warming_fails = False
        self.pip_fails = False
        self.interrupt = False
        self.module = script(root)
        self._real_run = self.module.Venv.run
        monkeypatch.setattr(self.module.Venv, "run", self._run)

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def packages(self) -> Path:
        return next((self.venv / "lib").glob("python*/site-packages"))

    def make(self, capsys: pytest.CaptureFixture[str], *, named: bool = False) -> str:
        """What is said where nothing fails."""
        assert self.module.main(self.module.Venv(self.root, self.venv), python_is_named=named) == 0
        return capsys.readouterr().out

    def fails(self, capsys: pytest.CaptureFixture[str]) -> str:
        assert self.module.main(self.module.Venv(self.root, self.venv), python_is_named=False) == 1
        return capsys.readouterr().err

    def _run(self, command: list[str], **options: Any) -> Any:
        if command[1:3] == ["-m", "venv"]:
            done = self._real_run(self.module.Venv, [*command, "--without-pip"], **options)
            python = self.venv / "bin" / "python"
            (self.venv / "bin" / "pip").write_text(f"#!{python}\n")
            return done
        if command[1:3] == ["-m", "pip"]:
            if self.interrupt:
                raise KeyboardInterrupt
            self.installs.append(command[4:])
            if "--editable" in command and not self.pip_fails:
                shutil.rmtree(self.packages / "online", ignore_errors=True)
                (self.packages / "editable.pth").write_text(f"{self.root}\n")
            return subprocess.CompletedProcess(command, int(self.pip_fails))
        if command[1:] == ["-m", "online.learner.facts.warm"]:
            self.warmed += 1
            return subprocess.CompletedProcess(command, int(self.warming_fails))
        return self._real_run(self.module.Venv, command, **options)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path / "a checkout", monkeypatch)


def test_it_is_made_once_with_pinned_versions_and_then_left_alone(checkout, capsys) -> None:
    assert MADE in checkout.make(capsys)
    setuptools, package = checkout.installs
    assert setuptools[-3:] == ["--constraint", "constraints.txt", "setuptools"]
    assert package[-4:] == ["constraints.txt", "--no-build-isolation", "--editable", ".[dev]"]
    assert checkout.make(capsys) == ""
    assert len(checkout.installs) == 2


def test_loops_are_compiled_when_it_is_made_and_when_they_have_changed(checkout, capsys) -> None:
    loops = checkout.root / "online" / "learner" / "facts" / "gather.py"
    loops.parent.mkdir(parents=True)
    loops.write_text("")
    checkout.make(capsys)
    assert checkout.make(capsys) == ""
    assert checkout.warmed == 1
    loops.write_text("# other loops")
    os.utime(loops, (1, 1))
    assert "Compiling loops" in checkout.make(capsys)
    assert checkout.make(capsys) == ""
    assert checkout.warmed == 2
    assert len(checkout.installs) == 2


def test_loops_that_cannot_be_compiled_are_reported_and_stop_nothing(checkout, capsys) -> None:
    loops = checkout.root / "online" / "learner" / "facts" / "gather.py"
    loops.parent.mkdir(parents=True)
    loops.write_text("broken")
    checkout.warming_fails = True
    assert checkout.module.main(checkout.module.Venv(checkout.root, checkout.venv), python_is_named=False) == 0
    assert "loops could not be compiled" in capsys.readouterr().err
    checkout.warming_fails = False
    assert "Compiling loops" in checkout.make(capsys)


def test_the_files_with_loops_are_those_whose_compiled_forms_are_named_after_them(checkout) -> None:
    assert {f"online/learner/{source}" for source in jit._SOURCES} == set(checkout.module.LOOPS)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_dependencies_that_changed_are_installed_however_old_the_file_says_it_is(checkout, capsys, name: str) -> None:
    checkout.make(capsys)
    file = checkout.root / name
    before = file.read_text()
    file.write_text(before + "\n# another version\n")
    os.utime(file, (1, 1))  # as an archive or a copy with its times leaves it
    assert INSTALLED in checkout.make(capsys)
    assert checkout.make(capsys) == ""
    file.write_text(before)  # the branch before
    os.utime(file, (1, 1))
    assert INSTALLED in checkout.make(capsys)


def test_files_that_are_merely_newer_install_nothing(checkout, capsys) -> None:
    checkout.make(capsys)
    (checkout.root / "pyproject.toml").touch()
    assert checkout.make(capsys) == ""


def test_a_plain_pip_install_of_a_copy_is_undone(checkout, capsys) -> None:
    checkout.make(capsys)
    (checkout.packages / "editable.pth").unlink()
    shutil.copytree(checkout.root / "online", checkout.packages / "online")
    assert f"{INSTALLED} (what is installed is not the code of this checkout)" in checkout.make(capsys)
    assert checkout.make(capsys) == ""


def test_an_environment_made_by_hand_is_brought_up_to_date(checkout, capsys) -> None:
    checkout.make(capsys)
    (checkout.venv / ".ready").unlink()
    assert INSTALLED in checkout.make(capsys)


def test_another_checkout_s_code_is_not_run(checkout, capsys, tmp_path, monkeypatch) -> None:
    checkout.make(capsys)
    other = Checkout(tmp_path / "other", monkeypatch)
    (checkout.packages / "editable.pth").write_text(f"{other.root}\n")
    assert INSTALLED in checkout.make(capsys)


def test_an_environment_that_was_moved_or_copied_here_is_made_anew(checkout, capsys, tmp_path, monkeypatch) -> None:
    checkout.make(capsys)
    moved = Checkout(tmp_path / "moved", monkeypatch)
    shutil.copytree(checkout.venv, moved.venv, symlinks=True)
    assert "(it was made in another place, or without pip)" in moved.make(capsys)
    assert moved.make(capsys) == ""


def test_what_was_interrupted_is_made_anew(checkout, capsys) -> None:
    checkout.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        checkout.make(capsys)
    checkout.interrupt = False
    assert f"{MADE} (making it was interrupted)" in checkout.make(capsys)
    (checkout.root / "constraints.txt").write_text("")
    checkout.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        checkout.make(capsys)
    checkout.interrupt = False
    assert f"{MADE} (making it was interrupted)" in checkout.make(capsys)
    assert checkout.make(capsys) == ""


def test_a_failure_of_pip_is_reported_and_tried_again(checkout, capsys) -> None:
    checkout.pip_fails = True
    assert ".venv could not be set up: what went wrong stands above" in checkout.fails(capsys)
    checkout.pip_fails = False
    assert INSTALLED in checkout.make(capsys)


def test_a_python_that_is_gone_or_too_old_or_not_the_named_one_is_replaced(checkout, capsys) -> None:
    checkout.make(capsys)
    python = checkout.venv / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert f"{MADE} (its Python does not run)" in checkout.make(capsys)
    for version, named, why in (([3, 9], False, "its Python is too old"), ([3, 99], True, "is not the one that is")):
        answer = textwrap.dedent(f"""\
            #!/bin/sh
            echo '{{"python": {version}, "prefix": "{checkout.venv}", "places": {{}}}}'
            """)
        python.unlink()
        python.write_text(answer)
        python.chmod(0o755)
        assert why in checkout.make(capsys, named=named)
        assert checkout.make(capsys, named=named) == ""


def test_what_an_earlier_build_left_is_not_packed(checkout, capsys) -> None:
    for name in ("build/lib/online", "nextclick.egg-info"):
        (checkout.root / name).mkdir(parents=True)
    checkout.make(capsys)
    assert not (checkout.root / "build").exists()
    assert not (checkout.root / "nextclick.egg-info").exists()


def test_a_link_to_another_environment_is_left_as_it_is(checkout, capsys, tmp_path, monkeypatch) -> None:
    checkout.make(capsys)
    linked = Checkout(tmp_path / "linked", monkeypatch)
    linked.venv.symlink_to(checkout.venv)
    assert linked.make(capsys) == ""
    assert linked.installs == []
    linked.venv.unlink()
    linked.venv.symlink_to(tmp_path / "nowhere")
    assert "is a link to what does not run: remove it" in linked.fails(capsys)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As from a shell; these tests may themselves be run by make."""
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "PYTHON", "ARGS")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("target", ["demo", "test", "bench"])
def test_targets_run_the_code_of_the_folder_whatever_is_installed(target: str) -> None:
    done = make(ROOT, "-n", target)
    commands = [line for line in done.stdout.splitlines() if "/bin/" in line and "command -v" not in line]
    assert ".ci/venv" in done.stdout
    assert commands
    # `python -m` looks in the current folder first; a console script does not.
    assert all("/bin/python -m " in line for line in commands), commands


def test_a_make_without_python_says_so_and_needs_none_where_there_is_an_environment(tmp_path: Path) -> None:
    root = tmp_path / "bare"
    (root / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", root)
    (root / ".ci" / "venv").write_text("import sys; print('asked', *sys.argv[1:])")

    missing = make(root, "venv", "PYTHON=no-such-python")
    assert missing.returncode != 0
    assert "make: there is no no-such-python here; install Python 3.11 or later" in missing.stderr
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert make(root, "venv", "PYTHON=no-such-python").stdout == "asked --python-is-named\n"
    assert make(root, "venv", f"PYTHON={sys.executable}").stdout == "asked --python-is-named\n"
    if shutil.which("python3"):
        assert make(root, "venv").stdout == "asked\n"
