"""Every command shows an example, prints what operators and programs need, and fails with one clear line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import online.cli
from online.api.keys import ApiKeys
from online.cli import main
from online.commands.views import ago, status_view
from online.config.settings import Settings
from online.worker.connections import prepare_topics
from stream.embedded_redis import EmbeddedRedis
from stream.events import BadEvent, parse
from stream.lists import Lists, TopList, connect
from stream.log import LogProducer, LogSource
from stream.readable import first_bytes, plain
from stream.source import Record

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "demo",
    "worker",
    "serve",
    "api-key",
    "replay",
    "item",
    "items",
    "users",
    "hide",
    "backtest",
    "evaluate-policy",
    "tune",
    "top",
    "explain",
    "user",
    "export",
    "doctor",
    "status",
    "versions",
    "dead-letters",
    "forget",
]
STATUS = {
    "state": "running", "started_at": 1, "written_at": 2, "version": 3, "learned": 12_345, "duplicates": 6,
    "dead_letters": {"malformed-json": 4}, "users": 300, "items": 320, "lag": None, "positions": {"clicks:0": 12_351},
    "events_per_s": 432.1, "click_to_list_ms": {"p50": 21.5, "p99": None}, "scored": 12_000,
    "scores": {"served": {"hit@10": 0.4, "ndcg@10": 0.2}}, "recent": {"served": {"hit@10": 0.61, "ndcg@10": 0.3}},
    "alarms": 1, "last_alarm": {"at": 9_000, "before": 3.0, "after": 5.5}, "finetune": {"state": "idle", "done": 2},
    "checkpoint": None, "redis": "ok", "memory_mb_max": 321.0,
}  # fmt: skip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in this process -> exit status, standard output, standard error."""
    monkeypatch.setenv("NEXTCLICK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(online.cli, "out", Console(width=200, highlight=False))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nextclick", *arguments])
        capsys.readouterr()
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)
        # Rich writes to the standard output of the moment it was made: give it the present one.
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return command


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lists]:
    with EmbeddedRedis() as server:
        monkeypatch.setenv("NEXTCLICK_REDIS_URL", server.url)
        yield Lists(connect(server.url), ttl_s=60)


def top(source: str = "personal") -> TopList:
    now = int(time.time() * 1_000)
    items, scores = ["green tea", "[red]rose", "bell\x07\x1b[31m"], [0.3, 0.2, 0.1]
    return TopList(
        items=items, scores=scores, version=7, offset="0:9", clicked_at=now, written_at=now - 4_000, source=source
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(run: Run, command: str) -> None:
    code, shown, _ = run(command, "--help")
    assert code == 0
    assert re.search(rf"Example: nextclick {command}\b", shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_one_that_the_command_takes(command: str) -> None:
    """Its words alone are read: nothing runs."""
    known: Any = typer.main.get_command(online.cli.app)
    example = str(known.commands[command].epilog).removeprefix("Example: nextclick ").split()
    assert example[0] == command
    with known.commands[command].make_context(command, example[1:]) as context:
        assert context.params


@pytest.mark.parametrize("user", ["", "x" * 257, "\udcff"])
def test_a_user_that_cannot_exist_has_no_list(run: Run, user: str) -> None:
    assert run("top", user)[0] == 2


def test_the_readme_mentions_every_command() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    text = readme.read_text()
    assert [command for command in COMMANDS if f"nextclick {command}" not in text] == []


def test_every_command_there_is_is_tested_here() -> None:
    names = [info.name or getattr(info.callback, "__name__", "") for info in online.cli.app.registered_commands]
    assert sorted(names) == sorted(COMMANDS)


def test_help_does_not_import_what_takes_long() -> None:
    slow = {"torch", "pyarrow", "fastapi", "redis", "kafka", "numpy"}
    code = f"import sys, online.cli; print(sorted({slow} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"


def test_top_prints_a_list_and_spells_out_what_a_terminal_would_obey(run: Run, lists: Lists) -> None:
    lists.write({"ada": top()}, top("popular"))
    code, shown, _ = run("top", "ada", "--k", "3")
    assert code == 0
    assert re.search(r"the list of ada, written \d+\.\d s ago by version 7 \(personal, offset 0:9\)", shown)
    assert re.search(r"1 +green tea +30\.00% ", shown)
    assert "[red]rose" in shown
    assert r"bell\x07\x1b[31m" in shown
    assert "\x1b[31m" not in shown
    assert "nobody has no list yet: the popular one" in run("top", "nobody")[1]


def test_top_as_json_is_json(run: Run, lists: Lists) -> None:
    lists.write({"ada": top()}, top("popular"))
    body = json.loads(run("top", "ada", "--k", "1", "--json")[1])
    assert (body["user_id"], body["own"], body["items"], body["scores"]) == ("ada", True, ["green tea"], [0.3])
    assert body["age_ms"] >= 4_000
    assert json.loads(run("top", "nobody", "--json")[1])["own"] is False


def test_top_before_anything_is_learned_says_so(run: Run, lists: Lists) -> None:
    lists.check()
    code, shown, error = run("top", "ada")
    assert (code, shown) == (1, "")
    assert error.startswith("nextclick: nothing has been learned yet")


def test_status_is_a_health_check(run: Run, lists: Lists) -> None:
    code, _, error = run("status")
    assert code == 1
    assert error.startswith("nextclick: no worker reports in Redis at redis://127.0.0.1")
    lists.write_status(STATUS, 30)
    code, shown, _ = run("status")
    assert code == 0
    for text in (
        "12,345 clicks",
        "the broker does not say",
        "4 (4 malformed-json)",
        "0.6100",
        "went from 3.000 to 5.500",
    ):
        assert text in shown
    assert json.loads(run("status", "--json")[1]) == STATUS | {"health": {"state": "ready", "reasons": []}}


@pytest.mark.parametrize(
    ("state", "problems", "code"),
    [
        ("running", [{"kind": "redis", "since": 1, "text": "no Redis answers"}], 0),
        ("starting", [], 3),
        ("waiting", [{"kind": "waiting", "since": 1, "text": "no Kafka answers"}], 3),
        ("failed", [], 1),
        ("stopped", [], 1),
    ],
)
def test_status_ends_as_the_worker_is(run: Run, lists: Lists, state: str, problems: list[Any], code: int) -> None:
    lists.write_status(STATUS | {"state": state, "problems": problems}, 30)
    ended, shown, _ = run("status")
    health = "degraded" if state == "running" else state
    assert (ended, shown.split(":")[0]) == (code, health)
    ended, shown, _ = run("status", "--json")
    assert (ended, json.loads(shown)["health"]["state"]) == (code, health)


@given(missing=st.sets(st.sampled_from(sorted(STATUS))))
def test_status_is_shown_whatever_an_older_worker_leaves_out(missing: set[str]) -> None:
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(status_view({name: value for name, value in STATUS.items() if name not in missing}))


def test_without_redis_the_error_is_one_line_without_the_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTCLICK_REDIS_URL", "redis://:hush@127.0.0.1:1/0")
    for command in (["top", "ada"], ["status"]):
        code, shown, error = run(*command)
        assert (code, shown, error.count("\n")) == (1, "", 1)
        assert re.match(r"nextclick: .*127\.0\.0\.1:1", error)
        assert "hush" not in error


def test_wrong_settings_are_all_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTCLICK_API_PORT", "many")
    monkeypatch.setenv("NEXTCLICK_USER_HELD", "5")
    code, _, error = run("status")
    assert code == 1
    assert "Traceback" not in error
    assert "NEXTCLICK_API_PORT" in error
    assert "NEXTCLICK_USERS_HELD" in error


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["top"], ["top", "ada", "--k", "0"], ["replay", "f.csv", "--rate", "5", "--speedup", "2"]],
)
def test_wrong_usage_is_exit_status_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def write_csv(path: Path, rows: int) -> Path:
    path.write_text("user,item,timestamp\n" + "".join(f"u{i},i,{i}\n" for i in range(rows)) + ",i,5\n")
    return path


def make_log(folder: Path) -> None:
    """As a worker leaves it."""
    prepare_topics(Settings(data_dir=folder))


def published(folder: Path, topic: str = "clicks") -> list[Record]:
    source = LogSource(folder / "log.db", [topic], "test")
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    records = source.poll(max_records=1_000_000, timeout_s=0)
    source.close()
    return records


def test_replay_publishes_and_says_what_it_did(run: Run, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", 100)
    code, shown, _ = run("replay", str(path), "--limit", "40")
    assert code == 0
    assert re.search(r"a\.csv: 40 events published to topic clicks \(.*log\.db\) in \d", shown)
    code, shown, _ = run("replay", str(path))
    assert "goes on after 40 rows that are published already" in shown
    assert "61 events published" in shown
    assert "dead letters: 1 (1 invalid-user_id)" in shown
    code, shown, _ = run("replay", str(path))
    assert code == 0
    assert "101 rows are already published" in shown
    assert "goes on" not in shown
    assert "--restart" in shown
    clicks = [parse(record.value) for record in published(tmp_path / "data")]
    assert len(clicks) == 101
    assert sum(isinstance(click, BadEvent) for click in clicks) == 1
    assert run("replay", str(path), "--restart")[0] == 0
    assert len(published(tmp_path / "data")) == 202


@pytest.mark.parametrize(
    ("options", "value", "said"),
    [
        (("--available",), {"tags": [], "available": True}, "available"),
        (("--unavailable",), {"tags": [], "available": False}, "not available"),
        (("--withdraw",), None, "withdrawn"),
        (
            ("--available", "--title", "É", "--tag", "a", "--tag", "b"),
            {"title": "É", "tags": ["a", "b"], "available": True},
            "available",
        ),
    ],
)
def test_item_publishes_whether_an_item_is_available(
    run: Run, tmp_path: Path, options: tuple[str, ...], value: object, said: str
) -> None:
    make_log(tmp_path / "data")
    code, shown, told = run("item", "ï9", *options)
    assert (code, shown) == (0, f"ï9: published to topic items as {said}\n")
    assert f"uses the click log of {tmp_path / 'data'}" in told
    (record,) = published(tmp_path / "data", "items")
    assert record.key == "ï9".encode()
    assert (None if record.value is None else json.loads(record.value)) == value


@pytest.mark.parametrize("item_id", ["", "x" * 257])
def test_an_item_id_that_no_topic_takes_is_refused(run: Run, tmp_path: Path, item_id: str) -> None:
    code, _, err = run("item", item_id, "--available")
    assert code == 2
    assert "1 to 256" in err
    assert not (tmp_path / "data" / "log.db").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--available", "--unavailable"),
        ("--withdraw", "--available"),
        ("--title", "A kettle"),
        ("--tag", "tea"),
        ("--withdraw", "--title", "A kettle"),
        ("--available", "--json"),
    ],
)
def test_options_of_item_that_contradict_each_other_publish_nothing(
    run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    make_log(tmp_path / "data")
    assert run("item", "i9", *options)[0] == 2
    assert published(tmp_path / "data", "items") == []


def test_item_without_a_flag_publishes_nothing(run: Run, tmp_path: Path) -> None:
    make_log(tmp_path / "data")
    code, _, error = run("item", "i9")
    assert (code, error.count("\n")) == (1, 1)
    assert "there is no checkpoint" in error
    assert published(tmp_path / "data", "items") == []


@pytest.mark.parametrize("command", [("item", "i9", "--unavailable"), ("dead-letters",), ("forget", "ada")])
def test_a_folder_that_no_worker_has_used_is_refused(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, shown, error = run(*command)
    assert (code, shown, error.count("\n")) == (1, "", 1)
    assert f"no worker has ever run in {tmp_path / 'data'}" in error
    assert "--data-dir" in error
    assert not (tmp_path / "data").exists()


def test_replay_says_that_it_makes_a_new_log(run: Run, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", 100)
    assert f"makes a new click log in {tmp_path / 'data'}" in run("replay", str(path))[2]
    assert f"uses the click log of {tmp_path / 'data'}" in run("replay", str(path), "--restart")[2]


def test_doctor_finds_nothing_wrong_with_embedded_parts_and_makes_nothing(run: Run, tmp_path: Path) -> None:
    code, shown, _ = run("doctor", "--json")
    found = json.loads(shown)
    assert (code, found["ok"]) == (0, True)
    assert {check["area"] for check in found["checks"]} == {"settings", "broker", "redis", "clock", "folder"}
    assert str(tmp_path / "data") in run("doctor")[1]
    assert not (tmp_path / "data").exists()


def test_doctor_reads_the_embedded_log_and_leaves_it_as_it_is(run: Run, tmp_path: Path) -> None:
    run("replay", str(write_csv(tmp_path / "a.csv", 100)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    checks = {check["check"]: check for check in json.loads(run("doctor", "--json")[1])["checks"]}
    assert "100 of the latest 101 messages are clicks" in checks["latest clicks"]["text"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_doctor_says_which_settings_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTCLICK_LIST_SIZE", "0")
    code, shown, _ = run("doctor")
    assert code == 1
    assert "NEXTCLICK_LIST_SIZE" in shown
    assert "1 wrong" in shown


def test_replay_of_what_is_no_file_is_one_clear_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("user,thing\n1,2\n")
    for name, message in (
        ("a.csv", "there is no such file"),
        ("b.csv", "has no column item_id or item"),
        ("", "is a folder"),
    ):
        code, shown, error = run("replay", str(tmp_path / name))
        assert (code, shown, error.count("\n")) == (1, "", 1)
        assert error.startswith(f"nextclick: {tmp_path / name}" if name else "nextclick: ")
        assert message in error


def test_an_interrupted_replay_can_be_resumed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", 100_000)
    environment = {**os.environ, "NEXTCLICK_DATA_DIR": str(tmp_path / "data")}
    command = [sys.executable, "-m", "online", "replay", str(path)]
    process = subprocess.Popen(
        [*command, "--rate", "2000"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "data" / "replay").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in error
    assert "Traceback" not in error
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert re.search(r"goes on after [\d,]+ rows", done.stdout)
    records = published(tmp_path / "data")
    assert len({json.loads(record.value or b"")["event_id"] for record in records}) == len(records) == 100_001
    assert "events published" in shown


def put_dead_letters(folder: Path, topic: str = "clicks.dead") -> None:
    producer = LogProducer(folder / "log.db")
    for offset, (reason, value) in enumerate(
        [("malformed-json", b"{"), ("malformed-json", b"\xff\x1b[31m"), ("missing-user_id", b'{"item_id": "x"}')]
    ):
        headers = [
            ("topic", b"clicks"), ("partition", b"0"), ("offset", str(offset).encode()), ("reason", reason.encode()),
            ("detail", b"why it is none"),
        ]  # fmt: skip
        producer.send(topic, key=b"u", value=value, headers=headers)
    producer.close()


def test_dead_letters_are_counted_and_shown(run: Run, tmp_path: Path) -> None:
    put_dead_letters(tmp_path / "data")
    code, shown, _ = run("dead-letters")
    assert code == 0
    assert re.search(r"malformed-json +2 ", shown)
    assert re.search(r"clicks:0:2 +missing-user_id: why it is none\s+\{\"item_id\": \"x\"\}", shown)
    assert "\x1b[31m" not in shown
    shown = run("dead-letters", "--reason", "missing-user_id")[1]
    assert "malformed-json" not in shown
    assert "there are no dead letters with reason tombstone" in run("dead-letters", "--reason", "tombstone")[1]


def test_dead_letters_as_json(run: Run, tmp_path: Path) -> None:
    put_dead_letters(tmp_path / "data")
    body = json.loads(run("dead-letters", "--json", "--limit", "1")[1])
    assert body == {
        "total": 3,
        "reasons": {"malformed-json": 2, "missing-user_id": 1},
        "redriven": 0,
        "latest": [
            {
                "topic": "clicks", "partition": 0, "offset": 2, "reason": "missing-user_id", "detail": "why it is none",
                "begins_with": '{"item_id": "x"}', "redriven": False,
            }
        ],
    }  # fmt: skip
    assert json.loads(run("dead-letters", "--json")[1]) == {
        **body,
        "latest": json.loads(run("dead-letters", "--json")[1])["latest"],
    }


def test_dead_letters_where_there_is_no_log_or_none_in_it(run: Run, tmp_path: Path) -> None:
    code, _, error = run("dead-letters")
    assert code == 1
    assert error.startswith("nextclick: dead-letters: no worker has ever run in")
    put_dead_letters(tmp_path / "data", "another topic")
    assert run("dead-letters")[1].strip() == "there are no dead letters"


def test_a_port_that_is_taken_is_one_clear_line(run: Run, lists: Lists) -> None:
    port = re.findall(r":(\d+)/", lists.address)[0]
    code, _, error = run("serve", "--port", port)
    assert code == 1
    assert re.match(rf"nextclick: the API cannot listen on 127\.0\.0\.1 port {port} .*--port\n$", error)


def test_serve_ends_gracefully_on_sigterm(tmp_path: Path, lists: Lists) -> None:
    lists.write({}, top("popular"))
    environment = {**os.environ, "NEXTCLICK_DATA_DIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "online", "serve", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ INFO online\.api\.serve: API at http://127\.0\.0\.1:\d+ ", line)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in error


@given(st.text())
def test_plain_text_is_printable(text: str) -> None:
    assert plain(text).isprintable()


@given(st.binary(max_size=300))
def test_the_first_bytes_of_anything_can_be_shown(value: bytes) -> None:
    assert first_bytes(value).isprintable()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(-5, "0 ms"), (999, "999 ms"), (1_500, "1.5 s"), (119_000, "119.0 s"), (7_200_000, "2 h"), (864e5 * 3, "3 days")],
)
def test_ago(milliseconds: float, text: str) -> None:
    assert ago(milliseconds) == text


def test_a_key_for_the_api_is_shown_once_with_the_entry_that_lets_it_in(run: Run) -> None:
    code, out, _ = run("api-key", "shop")
    key, entry = (line.rpartition(": ")[2] for line in out.splitlines())
    assert code == 0
    assert ApiKeys(Settings(api_keys=entry).api_keys).name_of(key.encode()) == "shop"
    code, _, err = run("api-key", "the shop")
    assert code == 2
    assert "letters, digits" in err
