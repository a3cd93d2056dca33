"""The decorators of compiled loops."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from online.learner.facts import jit
from online.learner.facts.jit import cache_folder, called, inlined, kernel, summing, use_folder

LEARNER = Path(jit.__file__).resolve().parents[1]


@inlined
def half(x):
    return x / 2


@called
def a_third(x):
    return x / 3


@kernel
def halve(values):
    for i in range(len(values)):
        values[i] = half(values[i])


@kernel
def divide(values):
    for i in range(len(values)):
        values[i] = a_third(values[i])


@summing
def add_up(values):
    total = 0.0
    for i in range(len(values)):
        total += values[i]
    return total


def test_loops_do_what_they_say():
    values = np.arange(10.0)
    halve(values)
    assert values.tolist() == [i / 2 for i in range(10)]
    assert add_up(values) == pytest.approx(22.5)
    divide(values)
    assert values.tolist() == [i / 2 / 3 for i in range(10)]
    assert (half(3), a_third(6)) == (1.5, 2.0)  # they can be called by themselves


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_sums_in_any_order_keep_nan_and_infinity(odd):
    values = np.ones(100)
    values[41] = odd
    assert str(add_up(values)) == str(odd)


@pytest.mark.parametrize("decorator", [kernel, summing, called, inlined])
def test_code_that_cannot_be_kept_on_disk_is_compiled_all_the_same(decorator):
    names = {}
    exec("def double(x):\n    return 2 * x", names)  # in no file, so it has no folder
    double = decorator(names["double"])
    assert double(21) == 42
    assert double is not names["double"]
    if not os.environ.get("NUMBA_DISABLE_JIT"):
        assert double.signatures


def test_without_compiler_functions_are_the_plain_python():
    code = (
        "from online.learner.facts.jit import *; f = lambda: 0;"
        "assert f is kernel(f) is summing(f) is called(f) is inlined(f) is allocating(f)"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, check=True)


# --- where compiled forms lie -------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the sources."""
    copied = tmp_path / "learner"
    shutil.copytree(LEARNER, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jit, "_PACKAGE", copied)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(jit, "user_cache_path", lambda name: tmp_path / "home" / name)
    return copied


def test_compiled_forms_lie_beside_the_code_in_a_folder_of_these_sources():
    assert cache_folder().name.startswith("kernels-")
    if not os.environ.get("NUMBA_CACHE_DIR"):
        assert str(cache_folder()) == numba.config.CACHE_DIR


def test_code_compiled_from_other_sources_is_never_run(package):
    before = cache_folder()
    assert before == cache_folder()
    assert before.parent == package / "facts" / "__pycache__"
    for name in ("facts/tables.py", "facts/items.py", "recall.py", "prune.py"):
        source = package / name
        source.write_text(source.read_text() + "\n")
        assert cache_folder() != before
        before = cache_folder()
    (package / "ranking_model.py").write_text("")
    assert cache_folder() == before  # it has no loops


def test_every_file_with_compiled_loops_is_among_the_sources():
    sources = {path for pattern in jit._SOURCES for path in LEARNER.glob(pattern)}
    compiled = {path for path in LEARNER.rglob("*.py") if re.search(r"facts\.jit import|import jit", path.read_text())}
    assert compiled
    assert compiled <= sources


def test_where_the_code_cannot_be_written_to_each_user_has_a_folder(package, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    folder = cache_folder()
    assert folder.parent == tmp_path / "home" / "nextclick"
    assert use_folder() == folder
    assert not folder.exists()
    (package / "facts" / "__pycache__" / folder.name).mkdir(parents=True)
    assert cache_folder() == folder


def test_what_was_compiled_when_another_user_installed_the_code_is_copied_once(package, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    folder = cache_folder()
    installed = package / "facts" / "__pycache__" / folder.name / "facts_1"
    installed.mkdir(parents=True)
    (installed / "a.nbc").write_bytes(b"machine code")
    assert use_folder() == folder
    assert (folder / "facts_1" / "a.nbc").read_bytes() == b"machine code"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (folder / "facts_1" / "a.nbc").write_bytes(b"of another processor")
    use_folder()
    assert (folder / "facts_1" / "a.nbc").read_bytes() == b"of another processor"


def test_where_it_cannot_be_copied_nothing_is_left_and_all_goes_on(package, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    folder = cache_folder()
    (package / "facts" / "__pycache__" / folder.name).mkdir(parents=True)

    def full(_, to):
        to.mkdir(parents=True)
        raise OSError("no space left on device")

    monkeypatch.setattr(jit.shutil, "copytree", full)
    assert use_folder() == folder
    assert not list(folder.parent.iterdir())


def test_a_folder_that_the_environment_names_is_used(tmp_path):
    code = (
        "import numba; from online.learner.facts.jit import cache_folder;"
        "assert numba.config.CACHE_DIR == str(cache_folder())"
    )
    code += f"; assert str(cache_folder().parent) == {str(tmp_path / 'elsewhere')!r}"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "elsewhere")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_compiled_forms_are_kept_in_no_other_folder(tmp_path):
    """numba's own choices are not named after the sources."""
    code = "from online.learner.facts import moments; print(type(moments.forget_items._cache).__name__)"
    (tmp_path / "file").write_text("")
    for folder, kept in ((tmp_path, "FunctionCache"), (tmp_path / "file" / "no folder", "NullCache")):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == kept
