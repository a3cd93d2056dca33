"""What holds for the whole repository: imports go one way, settings are used, versions are pinned, docs are true."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from online.commands import extras as commands_extras
from online.config.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stream", "model", "online")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
#: Units of online/, highest first: each may import what stands below it.
LEVELS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("evaluation", "api", "doctor"),
    ("worker",),
    ("lifecycle",),
    ("rounds",),
    ("learner",),
    ("config", "logs", "metrics"),
    ("filters", "client"),
)
BROUGHT_ALONG = {"pydantic_core": "pydantic", "starlette": "fastapi"}  # parts that these show openly as their own
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


# Parsed by the first test that looks at them: each process of a test run loads this file.
@cache
def trees() -> dict[str, ast.Module]:
    return {module: ast.parse(path.read_text(), str(path)) for module, path in SOURCES.items()}


def imported(module: str) -> set[str]:
    """Every module that `module` names in an import, wherever in the file; of ours in full, of others the top name."""
    names = set()
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; say the whole name"
            # `from online import counts` names a module, `from online.counts import Counts` something in one.
            names |= {
                full if (full := f"{node.module}.{alias.name}") in SOURCES else str(node.module) for alias in node.names
            }
    return {name if name in SOURCES else name.split(".")[0] for name in names}


@cache
def imports() -> dict[str, set[str]]:
    return {module: imported(module) for module in SOURCES}


def test_the_walk_found_the_project() -> None:
    assert {"stream.events", "model.lsh", "online.config.settings"} <= set(SOURCES)


@pytest.mark.parametrize("package", ["stream", "model"])
def test_the_edges_and_the_network_import_no_other_package_of_ours(package: str) -> None:
    others = set(PACKAGES) - {package}
    wrong = {m: found for m, names in imports().items() if m.startswith(package) and (found := _tops(names) & others)}
    assert not wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    TopologicalSorter({m: names & set(SOURCES) for m, names in imports().items()}).prepare()  # raises CycleError


def test_no_unit_of_online_imports_one_above_it_or_beside_it() -> None:
    level = {unit: number for number, units in enumerate(LEVELS) for unit in units}
    assert {module.split(".")[1] for module in SOURCES if module.startswith("online.")} == set(level)
    arrows = [
        (module, name)
        for module, names in imports().items()
        for name in names
        if module.startswith("online.") and name.startswith("online.")
        if (mine := module.split(".")[1]) != (its := name.split(".")[1]) and level[its] <= level[mine]
    ]
    assert not arrows


def test_nothing_that_the_loop_stands_on_knows_the_loop() -> None:
    below = _reachable("online.worker.loop") - {"online.worker.loop"}
    assert not {module for module in below if "online.worker.loop" in imports()[module]}


def test_the_api_needs_neither_the_network_nor_the_loop() -> None:
    assert not {m for m in _reachable("online.api.serve") if m == "online.worker.loop" or m.startswith("model")}


def test_names_of_tests_are_short_enough_to_read_at_a_glance() -> None:
    names = re.findall(r"def (test_\w+)", "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py"))))
    assert len(names) > 1_000
    assert not [name for name in names if len(name) > 80]


def test_every_import_is_a_declared_dependency() -> None:
    names = set().union(*map(_tops, imports().values())) - set(PACKAGES) - set(sys.stdlib_module_names)
    sold_as = importlib.metadata.packages_distributions()
    declared = {_requirement_name(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines}
    wanted = {name: sold_as.get(BROUGHT_ALONG.get(name, name), [name]) for name in names}
    undeclared = {name for name, candidates in wanted.items() if not set(map(_canonical, candidates)) & declared}
    assert not undeclared


@pytest.mark.parametrize(
    ("start", "extras"),
    [
        *((module, ()) for module in ("online.cli", "online.api.serve", "online.api.keys", "online.worker.start")),
        *((f"online.commands.{name}", ()) for name in ("dead_letters", "forget", "replay_run", "views")),
        *((module, ()) for module in ("online.worker.connections", "online.worker.rollback_request", "stream.items")),
        ("online.worker.main", ("worker",)),
        ("online.commands.demo", ("worker",)),  # which starts the embedded Redis by way of the worker
        ("online.commands.backtest", ("backtest",)),
        ("online.commands.tune", ("backtest",)),
        ("online.commands.evaluate_policy", ("backtest",)),
        ("stream.embedded_redis", ("embedded",)),
        ("online.client", ("client",)),
    ],
)
def test_a_command_loads_only_packages_of_the_bare_installation_and_of_its_extra(start, extras) -> None:
    installed = {_requirement_name(line) for line in [*PROJECT["dependencies"], *_lines_of(extras)]}
    found, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo.extend(_loaded_with(module) & set(SOURCES))
    sold_as = importlib.metadata.packages_distributions()
    for module in found:
        for name in _tops(_loaded_with(module)) - set(PACKAGES) - set(sys.stdlib_module_names):
            candidates = set(map(_canonical, sold_as.get(BROUGHT_ALONG.get(name, name), [name])))
            assert candidates & installed, f"{module}, which {start} loads, imports {name}"


def test_an_extra_brings_what_its_commands_look_for() -> None:
    sold_as = importlib.metadata.packages_distributions()
    for extra, modules in commands_extras.EXTRAS.items():
        brought = {_requirement_name(line) for line in _lines_of((extra,))}
        looked_for = {_canonical(sold_as[module][0]) for module in modules}
        assert looked_for == brought, extra


def test_every_setting_is_read_somewhere() -> None:
    read = set().union(
        *(_settings_read(tree) for module, tree in trees().items() if module != "online.config.settings")
    )
    read |= _fields_behind(read)
    unread = set(Settings.model_fields) - read
    assert not unread, f"settings that nothing reads: {sorted(unread)}"


def test_what_docker_compose_sets_are_settings() -> None:
    for name in ("docker-compose.yml", ".env.example"):
        variables = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+", (ROOT / name).read_text()))
        unknown = {v for v in variables if v.removeprefix(PREFIX).lower() not in Settings.model_fields}
        assert variables, f"{name} sets nothing"
        assert not unknown, f"{name} names settings that do not exist: {sorted(unknown)}"


def test_the_example_environment_shows_the_defaults() -> None:
    shown = re.findall(rf"^#{PREFIX}([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    defaults = {name: Settings.model_fields[name.lower()].get_default() for name, _ in shown}
    wrong = {n: text for n, text in shown if type(defaults[n])(_parsed(text)) != defaults[n]}
    assert not wrong


def test_the_version_is_the_changelog_s_latest_and_that_of_images_and_documents() -> None:
    released = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[:2] == ["Unreleased", PROJECT["version"]]
    files = (*ROOT.glob("docker-compose.yml"), *ROOT.glob("deploy/kubernetes/base/*.yaml"), ROOT / "docs/operations.md")
    named = {tag for path in files for tag in re.findall(r"nextclick-(?:api|worker):([\w.]+)", path.read_text())}
    assert named == {PROJECT["version"]}


def test_each_dependency_is_pinned_to_one_version() -> None:
    asked = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines), "setuptools"]
    asked = [
        line for line in asked if _requirement_name(line) not in {"nextclick", "atheris"}
    ]  # the latter: Linux only
    assert _with_indirect(asked) - {"pip"} <= set(_pins())  # which comes with the virtual environment


@pytest.mark.parametrize(
    ("script", "status", "line"),
    [
        (
            'echo \'{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}\' >$F',
            0,
            "0 known vulnerabilities in 1",
        ),
        (
            'echo \'{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", '
            '"fix_versions": ["2"]}]}, {"name": "b", "skip_reason": "unknown"}]}\' >$F; exit 1',
            1,
            "a 1: PYSEC-1, mended by 2",
        ),
        (
            'echo \'{"dependencies": [{"name": "b", "skip_reason": "unknown"}]}\' >$F',
            0,
            "left out: the index knows none",
        ),
        ("echo 'requests.exceptions.ConnectionError: ...' >&2; exit 1", 0, "left out: the index does not answer"),
        ("echo 'error: unrecognized arguments' >&2; exit 2", 1, "unrecognized arguments"),
    ],
)
def test_a_known_vulnerability_fails_and_an_unavailable_index_is_reported(tmp_path, script, status, line) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\nfor F; do :; done\n{script}\n")  # the last argument is where the report goes
    program.chmod(0o755)
    command = [sys.executable, str(ROOT / ".ci/audit"), str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, line in done.stdout + done.stderr) == (status, True), done


def test_nothing_is_unpickled_or_run_from_data() -> None:
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
    assert not {m for m, names in imports().items() if _tops(names) & modules}
    calls = [(m, node) for m, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(calls) > 1_000
    for module, call in calls:
        name = ast.unparse(call.func)
        assert name not in {"eval", "exec", "torch.load", "np.load", "numpy.load", "torch.hub.load"}, module
        assert "allow_pickle" not in {keyword.arg for keyword in call.keywords}, module


def test_a_pin_leaves_open_which_build_is_taken() -> None:
    assert not [version for version in _pins().values() if "+" in version]


def _tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _reachable(start: str) -> set[str]:
    found, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module in SOURCES and module not in found:
            found.add(module)
            todo.extend(imports()[module])
    return found


def _lines_of(extras: tuple[str, ...]) -> list[str]:
    """What extras require, those of ours that they name included."""
    lines = []
    for line in (line for extra in extras for line in EXTRAS[extra]):
        asked = Requirement(line)
        lines += _lines_of(tuple(sorted(asked.extras))) if asked.name == "nextclick" else [line]
    return lines


def _loaded_with(module: str) -> set[str]:
    """What is imported as `module` is: not what a function imports when it runs, nor what only type checkers see."""
    names, todo = set(), list(trees()[module].body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {full if (full := f"{node.module}.{a.name}") in SOURCES else str(node.module) for a in node.names}
        elif isinstance(node, ast.If):
            todo += node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            todo += [*node.body, *node.orelse, *(each for handler in node.handlers for each in handler.body)]
    return names


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirement_name(requirement: str) -> str:
    return _canonical(Requirement(requirement).name)


def _pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {_canonical(name): version for name, version in (line.split("==") for line in lines)}


def _with_indirect(requirements: list[str]) -> set[str]:
    """The names of what is required and of all that it requires in turn, on this machine."""
    found: set[str] = set()
    todo = [Requirement(line) for line in requirements]
    while todo:
        requirement = todo.pop()
        name = _canonical(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        for line in importlib.metadata.requires(requirement.name) or []:
            needed = Requirement(line)
            # PyTorch for CUDA names one version of each of its libraries itself.
            if not str(needed.specifier).startswith("=="):
                todo.append(needed)
    return found


def _parsed(text: str) -> object:
    try:
        return ast.literal_eval(text.capitalize())
    except (ValueError, SyntaxError):
        return text


def _settings_read(tree: ast.AST) -> set[str]:
    """Attributes taken from anything called settings: `settings.x`, `self.settings.x`, `self._settings.x`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _last_name(node.value).lstrip("_") == "settings"
    }


def _last_name(node: ast.expr) -> str:
    """`a` of the expression `a`, `c` of `a.b.c`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _fields_behind(properties: set[str]) -> set[str]:
    """The fields from which the named properties of Settings are derived."""
    tree = trees()["online.config.settings"]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in properties]
    return {node.attr for f in functions for node in ast.walk(f) if isinstance(node, ast.Attribute)}
