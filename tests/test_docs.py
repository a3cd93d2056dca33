"""What the documents say is held to the code: links, paths, commands, settings, metrics, reasons, examples."""

import ast
import contextlib
import json
import os
import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import typer.main

from online.api import group_metrics, metrics, process_metrics, worker_metrics
from online.cli import app
from online.config.settings import PREFIX, RENAMED, Settings
from online.worker.problem_kinds import KINDS as PROBLEMS
from stream import events, feedback, items, users
from stream.kafka import ensure_topics
from stream.readers import KafkaReader

ROOT = Path(__file__).resolve().parent.parent
DOCS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"]
#: A changelog names what is no more.
OF_NOW = [path for path in DOCS if path.name != "CHANGELOG.md"]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in OF_NOW}
PLACES = r"(?:\.ci|online|stream|model|benchmarks|tests|docs)"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
#: Words that were given up for the field's own, as regular expressions.
GIVEN_UP = (
    *(r"somebody", r"nobody", r"anybody", r"whoever", r"people's", r"Leaving it alone", r"OPERATING"),
    *(r"the guard", r"guarded", r"half of them", r"99 of 100", r"looks_max", r"upkeep", r"NoticeBoard", r"GRAVE"),
    *(r"Ledger", r"Receipts", r"HalfDoneError", r"AwayError", r"edges\.py", r"secure\.py", r"Watched", r"Lesson"),
    *(r"hasten", r"Surprises", r"HowFar", r"poured", r"heard", r"taught"),
)


def test_the_documents_were_found() -> None:
    assert {"README.md", "ARCHITECTURE.md", "benchmarks/README.md", "docs/operations.md"} <= set(TEXTS)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(path.read_text())):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in _anchors(found.read_text()), f"{target}: there is no such heading"


@pytest.mark.parametrize("name", TEXTS)
def test_each_path_and_module_exists(name: str) -> None:
    code = _fenced(TEXTS[name]) + "\n".join(_inline(TEXTS[name]))
    paths = set(re.findall(rf"(?<![\w./-]){PLACES}/[\w./-]*\w", code))
    assert not {path for path in paths if not (ROOT / path).exists()}
    modules = {module.replace(".", "/") for module in re.findall(r"python -m ((?:online|benchmarks)[\w.]*)", code)}
    assert not {one for one in modules if not (ROOT / one).is_dir() and not (ROOT / f"{one}.py").exists()}


def test_each_function_that_the_path_of_a_click_names_is_in_its_file() -> None:
    for document in ("ARCHITECTURE.md", "docs/extending.md"):
        for path, function in re.findall(rf"\[({PLACES}/[\w/]+\.py)\]\([^)]*\)[:,] `([\w.]+)`", TEXTS[document]):
            nodes = ast.walk(ast.parse((ROOT / path).read_text()))
            names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert set(function.split(".")) <= names, f"{document}: {path} has no {function}"


def test_the_documents_name_only_targets_and_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in TEXTS.items():
        code = "\n".join([_fenced(text), *_inline(text)])
        assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets, name
        assert set(re.findall(r"\bnextclick ([a-z][a-z-]*)", code)) <= set(COMMANDS), name


def test_commands_in_the_documents_have_only_options_that_exist() -> None:
    seen = 0
    for name, text in TEXTS.items():
        code = "\n".join([_fenced(text), *_inline(text)])
        # Up to a comment, a pipe or the next command.
        for command, rest in re.findall(r"\bnextclick ([a-z][a-z-]*)((?: [^\n#|&;]*)?)", code):
            known = {option for parameter in COMMANDS[command].params for option in parameter.opts}
            known |= {option for parameter in COMMANDS[command].params for option in parameter.secondary_opts}
            unknown = set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest)) - known
            assert not unknown, f"{name}: nextclick {command} has no {', '.join(sorted(unknown))}"
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_documented_with_an_example(command: str) -> None:
    assert f"`nextclick {command}" in TEXTS["README.md"]
    shown = "\n".join(_fenced(text) for name, text in TEXTS.items() if name.startswith("docs/"))
    assert re.search(rf"\bnextclick {command}\b", shown), f"docs/ has no example of nextclick {command}"


def test_each_setting_that_is_named_exists() -> None:
    others = {"env_file", "secrets_dir"}  # where settings are read from
    others |= {"key"}  # docs/examples' own
    for name, text in TEXTS.items():
        named = {one.lower() for one in re.findall(rf"\b{PREFIX}([A-Z][A-Z0-9_]*[A-Z0-9])\b(?!_?\*)", text)}
        unknown = named - set(Settings.model_fields) - others - {"name"}
        assert not unknown, f"{name}: {sorted(unknown)}"
        assert not named & set(RENAMED), name


def test_each_metric_is_documented_and_exists() -> None:
    modules = (group_metrics, metrics, process_metrics, worker_metrics)
    source = "".join(Path(str(module.__file__)).read_text() for module in modules)
    made = set(re.findall(r'"(nextclick_[a-z0-9_]+)"', source)) - {"nextclick_build"} | {"nextclick_build_info"}
    made |= {f"nextclick_{kind}_at_10{span}" for kind in ("hit_rate", "ndcg") for span in ("", "_recent")}
    documented = {
        one.removesuffix("_total") for one in re.findall(r"`(nextclick_[a-z0-9_]+)`", TEXTS["docs/metrics.md"])
    }
    assert documented == made
    for name, text in TEXTS.items():
        named = {one.removesuffix("_total") for one in re.findall(r"`(nextclick_[a-z0-9_]+)", text)}
        assert named - {"nextclick_redis_password"} <= made, name


def test_each_reason_of_a_dead_letter_is_documented() -> None:
    page = TEXTS["docs/events.md"]
    assert [
        reason for reason in sorted(events.REASONS | items.REASONS | feedback.REASONS) if f"`{reason}`" not in page
    ] == []


def test_each_kind_of_problem_is_documented() -> None:
    assert [kind for kind in PROBLEMS if f"`{kind}`" not in TEXTS["docs/operations.md"]] == []


def test_benchmarks_have_the_options_that_their_readme_names() -> None:
    code = [*_inline(TEXTS["benchmarks/README.md"]), *_inline(TEXTS["README.md"])]
    seen = 0
    for name, rest in re.findall(r"^(?:python -m benchmarks\.)?([a-z_]+)( --[^\n]*)$", "\n".join(code), re.MULTILINE):
        source = (ROOT / f"benchmarks/{name}.py").read_text()
        unknown = [option for option in re.findall(r"(?<= )--[a-z][a-z-]*", rest) if f'"{option}"' not in source]
        assert not unknown, f"benchmarks.{name} has no {', '.join(unknown)}"
        seen += 1
    assert seen > 5


@pytest.mark.parametrize("name", TEXTS)
def test_examples_are_what_they_claim_to_be(name: str) -> None:
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```", TEXTS[name], re.DOTALL | re.MULTILINE):
        if language == "json":
            json.loads(code)
        elif language == "python":
            ast.parse(code)


@pytest.mark.parametrize("name", TEXTS)
def test_words_that_were_given_up_are_in_no_prose(name: str) -> None:
    prose = re.sub(r"`[^`\n]*`|\]\([^)]*\)", " ", _prose(TEXTS[name]))
    assert [word for word in GIVEN_UP if re.search(rf"\b(?:{word})\b", prose)] == []


def test_the_picture_is_small() -> None:
    assert 10_000 < (ROOT / "docs/dashboard.png").stat().st_size < 300_000


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "topic", "key"),
    [("README.md", "clicks", b"u1"), ("docs/events.md", "items", b"i9"), ("docs/events.md", "users", b"u1")],
    ids=["click", "item", "user"],
)
def test_the_commands_for_kafka_s_own_producer_publish(kafka_broker: Any, name: str, topic: str, key: bytes) -> None:
    commands = re.findall(r"^echo .*?kafka-console-producer\.sh \\\n.*?$", TEXTS[name], re.MULTILINE)
    (command,) = [one for one in commands if f"--topic {topic} " in one]
    there = f"{topic}-{uuid.uuid4().hex[:8]}"
    servers = kafka_broker.bootstrap_servers
    ensure_topics(servers, {there: 1})
    tool = Path(os.environ["KAFKA_START"]).with_name("tool")
    command = command.replace("kafka-console-producer.sh", f"{tool} ConsoleProducer")
    command = command.replace("localhost:9092", servers).replace(f"--topic {topic}", f"--topic {there}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done
    assert "deprecat" not in (done.stdout + done.stderr).lower(), done
    with contextlib.closing(KafkaReader(servers, there)) as reader:
        (record,) = reader.read()
    assert record.key == key
    if topic == "items":
        item = items.parse(record.key, record.value)
        assert isinstance(item, items.Item), item
        assert (item.item_id, item.title, item.available) == ("i9", "A kettle", False)
    elif topic == "users":
        user = users.parse(record.key, record.value)
        assert isinstance(user, users.User), user
        assert (user.user_id, user.attributes["country"], user.tags) == ("u1", "DE", ("sport",))
    else:
        click = events.parse(record.value)
        assert isinstance(click, events.Click), click
        assert (click.user_id, click.item_id, click.event_id) == ("u1", "i9", "a-7")


def _fenced(markdown: str) -> str:
    """All blocks of code."""
    return "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE))


def _prose(markdown: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^```[^\n]*\n.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)


def _inline(markdown: str) -> list[str]:
    """Code within lines, and what links show and lead to."""
    prose = _prose(markdown)
    return [*re.findall(r"`([^`\n]+)`", prose), *re.findall(r"\[([^\]\n]+)\]\(", prose)]


def _anchors(markdown: str) -> set[str]:
    """Of all headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _prose(markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
