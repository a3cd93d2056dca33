"""The four commands that read a file: the same options, exit status 0 only where everything counts, one line else."""

import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import online.cli
from online.cli import main
from online.config.settings import load_settings
from online.evaluation.backtest_events import read_clicks
from stream.event_files import EventFile, RowTally
from stream.log import LogSource

Run = Callable[..., tuple[int, str, str]]
HEADER = "user,item,timestamp\n"
COMMANDS = {
    "replay": (),
    "backtest": ("--methods", "popular", "--jobs", "1"),
    "tune": ("--out", "never.env"),
    "demo": ("--port", "0"),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in this process -> exit status, standard output, standard error."""
    monkeypatch.setenv("NEXTCLICK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(online.cli, "out", Console(width=300, highlight=False))
    monkeypatch.chdir(tmp_path)

    def command(name: str, file: str, *options: str) -> tuple[int, str, str]:
        given = (*(["--data", file] if name == "demo" else [file]), *COMMANDS[name], *options)
        monkeypatch.setattr(sys, "argv", ["nextclick", name, *given])
        capsys.readouterr()
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)
        shown = capsys.readouterr()
        told = [line for line in shown.err.splitlines(keepends=True) if "click log" not in line]
        return code, shown.out, "".join(told)

    return command


def rows(n: int, start: int = 0) -> str:
    return "".join(f"u{i % 7},i{i % 11},{1_700_000_000 + i}\n" for i in range(start, start + n))


def published(folder: Path) -> list[dict[str, object]]:
    if not (folder / "log.db").exists():
        return []
    source = LogSource(folder / "log.db", ["clicks"], "test")
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    records = source.poll(max_records=1_000_000, timeout_s=0)
    source.close()
    return [json.loads(record.value or b"") for record in records]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + rows(999) + 'u1,"i1,5\n' + rows(500), "line 1,001: the quote that opens here"),
        ("visitorid,itemid,ts\n1,2,3\n", "did you mean --columns user=visitorid,item=itemid,timestamp=ts ?"),
        (HEADER + "u,i,2026-11-28 10:03:00\n" * 9, "--timezone UTC"),
        (HEADER + rows(90) + ",i,5\n" * 10, "10 of 100 rows (10%) cannot be read as clicks"),
        ("user,user,item,timestamp\na,b,i,5\n", "has 2 columns of one name"),
        ("", "is empty"),
        (HEADER, "has no rows after its header"),
        ("PK\x03\x04", "is a zip archive"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_exit_status_1(
    run: Run, tmp_path: Path, command: str, content: str, said: str
) -> None:
    (tmp_path / "a.csv").write_text(content)
    code, shown, error = run(command, "a.csv")
    assert (code, shown, error.count("\n")) == (1, "", 1)
    assert error.startswith("nextclick: a.csv")
    assert said in error
    assert published(tmp_path / "data") == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--columns", "user"), "--columns: 'user' is none of user=COLUMN"),
        (("--delimiter", "abc"), "--delimiter: 'abc' separates no columns"),
        (("--encoding", "utf-99"), "--encoding: there is no encoding 'utf-99'"),
        (("--timezone", "Mars/Base"), "--timezone: there is no time zone 'Mars/Base'"),
        (("--timezone", "../etc"), "--timezone: there is no time zone"),
        (("--bad-rows-max", "half"), "--bad-rows-max: 'half' is no share"),
    ],
)
def test_options_that_cannot_be_meant_are_wrong_usage(
    run: Run, tmp_path: Path, command: str, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "a.csv").write_text(HEADER + rows(10))
    code, _, error = run(command, "a.csv", *options)
    assert code == 2
    words = " ".join(error.replace("│", " ").split())
    assert said in words


def test_replay_takes_the_files_of_others(run: Run, tmp_path: Path) -> None:
    text = "ts;visitorid;itemid;event\n2026-11-28 10:03:00;ñ;7;view\n2026-11-28 10:04:00;u;8;view\n"
    (tmp_path / "events.txt").write_bytes(text.encode("cp1252"))
    columns = "user=visitorid,item=itemid,timestamp=ts,event_type=event"
    code, shown, error = run(
        "replay", "events.txt", "--columns", columns, "--encoding", "cp1252", "--timezone", "Europe/Berlin"
    )
    assert (code, error) == (0, "")
    assert "read as cp1252" in shown
    assert "columns are separated by semicolons" in shown
    first, second = published(tmp_path / "data")
    del first["event_id"]
    assert first == {"user_id": "ñ", "item_id": "7", "timestamp": 1795856580, "event_type": "view"}
    assert second["user_id"] == "u"


def test_replay_after_the_quote_is_closed_publishes_everything_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEADER + rows(999) + 'u1,"i1,1700000999\n' + rows(1_000, 1_000))
    assert run("replay", "a.csv")[0] == 1
    path.write_text(HEADER + rows(999) + "u1,i1,1700000999\n" + rows(1_000, 1_000))
    assert run("replay", "a.csv")[0] == 0
    found = published(tmp_path / "data")
    assert len(found) == len({row["event_id"] for row in found}) == 2_000


@pytest.mark.parametrize("options", [(), ("--restart",)])
def test_a_fault_far_down_is_found_before_the_first_row_is_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr("stream.event_files.tally.CHECKED_ROWS_MAX", 100)
    (tmp_path / "a.csv").write_text(HEADER + rows(999) + 'u1,"i1,1700000999\n' + rows(1_000, 1_000))
    code, _, error = run("replay", "a.csv", *options)
    assert (code, error.count("\n")) == (1, 1)
    assert published(tmp_path / "data") == []


def test_a_fault_that_comes_while_rows_are_published_loses_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("online.commands.replay_run.check_rows", lambda *_, **__: RowTally())
    monkeypatch.setattr("online.commands.replay._UNACKNOWLEDGED_ROWS_MAX", 50)
    path = tmp_path / "a.csv"
    path.write_text(HEADER + rows(999) + 'u1,"i1,1700000999\n' + rows(1_000, 1_000))
    code, _, error = run("replay", "a.csv")
    assert (code, error.count("\n")) == (1, 1)
    assert "line 1,001: the quote that opens here" in error
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXTCLICK_DATA_DIR", str(tmp_path / "data"))
    path.write_text(HEADER + rows(999) + "u1,i1,1700000999\n" + rows(1_000, 1_000))
    code, shown, _ = run("replay", "a.csv")
    assert code == 0
    assert "1,001 events published" in shown
    found = published(tmp_path / "data")
    assert len(found) == len({row["event_id"] for row in found}) == 2_000


def test_bad_rows_beyond_those_looked_at_first_end_with_exit_status_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.event_files.tally.CHECKED_ROWS_MAX", 50)
    (tmp_path / "a.csv").write_text(HEADER + rows(100) + ",i,5\n" * 20)
    code, shown, error = run("replay", "a.csv")
    assert code == 1
    assert "dead letters: 20 (20 invalid-user_id)" in shown
    assert "20 of 120 rows (16.7%) cannot be read as clicks; they are published, and will be dead letters" in error
    assert len(published(tmp_path / "data")) == 120


def test_a_limit_of_bad_rows_can_be_set(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + rows(90) + ",i,5\n" * 10)
    assert run("replay", "a.csv", "--bad-rows-max", "10%")[0] == 0
    assert run("backtest", "a.csv", "--bad-rows-max", "0.1")[0] == 0
    (tmp_path / "b.csv").write_text(HEADER + ",i,5\n" * 10)
    assert run("replay", "b.csv", "--bad-rows-max", "99%")[0] == 1
    code, _, error = run("backtest", "b.csv", "--bad-rows-max", "100%")
    assert (code, error.count("\n")) == (1, 1)
    assert "no click that can be read" in error


def test_replay_of_a_file_that_grew_and_of_one_that_changed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEADER + rows(100))
    assert run("replay", "a.csv")[0] == 0
    path.write_text(HEADER + rows(130))
    code, shown, _ = run("replay", "a.csv")
    assert code == 0
    assert "goes on after 100 rows" in shown
    assert "30 events published" in shown
    path.write_text(HEADER + "x,y,5\n" + rows(129, 1))
    code, _, error = run("replay", "a.csv")
    assert (code, error.count("\n")) == (1, 1)
    assert "row 1 differs from what was published; --restart publishes all rows" in error
    assert run("replay", "a.csv", "--restart")[0] == 0
    assert len(published(tmp_path / "data")) == 260


def test_what_was_bad_before_is_not_held_against_what_is_new(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEADER + rows(90) + ",i,5\n" * 10)
    assert run("replay", "a.csv", "--bad-rows-max", "10%")[0] == 0
    path.write_text(HEADER + rows(90) + ",i,5\n" * 10 + rows(10, 100))
    assert run("replay", "a.csv")[0] == 0
    path.write_text(HEADER + rows(90) + ",i,5\n" * 10 + rows(10, 100) + ",i,5\n")
    assert run("replay", "a.csv")[0] == 1


def test_standard_input_is_replayed_and_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (50, 80):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((HEADER + rows(n)).encode())))
        code, shown, error = run("replay", "-")
        assert (code, error) == (0, "")
    assert "standard input: 30 events published" in shown
    assert len(published(tmp_path / "data")) == 80


def test_rows_out_of_order_are_reported_and_can_be_sorted(run: Run, tmp_path: Path) -> None:
    lines = rows(200).splitlines(keepends=True)
    (tmp_path / "a.csv").write_text(HEADER + "".join(lines[100:] + lines[:100]))
    told = "not in order of time: 100 of 200 clicks (50%) are earlier than one before them, by up to 3.3 minutes"
    code, shown, _ = run("backtest", "a.csv", "--json", "out.json")
    assert code == 0
    assert f"{told}: these figures are NOT by time (--sort sorts)" in shown
    unsorted = json.loads(Path("out.json").read_text())
    assert (unsorted["backward"], unsorted["sorted"]) == (100, False)
    code, shown, _ = run("backtest", "a.csv", "--sort", "--json", "out.json")
    assert f"{told}: sorted by time first" in shown
    found = json.loads(Path("out.json").read_text())
    assert (found["backward"], found["sorted"]) == (100, True)
    (tmp_path / "b.csv").write_text(HEADER + rows(200))
    code, shown, _ = run("backtest", "b.csv", "--json", "out.json")
    assert "order of time" not in shown
    assert json.loads(Path("out.json").read_text())["methods"] == found["methods"]
    assert told in run("replay", "a.csv")[1]


def test_sorting_is_by_time_and_stable(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "a,1,9\nb,2,5\nc,3,9\nd,4,5\n")
    clicks = read_clicks(EventFile(path), load_settings(), sort=True).clicks
    assert [click.user_id for click in clicks] == ["b", "d", "a", "c"]
    clicks = read_clicks(EventFile(path), load_settings(), 3, sort=True).clicks
    assert [click.user_id for click in clicks] == ["b", "a", "c"]
