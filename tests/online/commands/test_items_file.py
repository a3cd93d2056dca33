"""`nextclick items` publishes a file of items, once for each row that is one, and says what it left out."""

import re
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from online.cli import app, main
from online.commands.items_file import publish_items
from online.config.settings import load_settings
from online.worker.connections import open_reader
from stream.item_files import ItemFile
from stream.items import Item, parse
from stream.source import SourceError

CSV = "id,title,tags,price\ni1,Tea,a|b,1.5\ni2,Cup,,2\n,Pot,,3\ni1,Green tea,a,4\n"


class Broker:
    """Keeps what was acknowledged."""

    def __init__(self, refuse_after: int = 1_000_000) -> None:
        self.acknowledged: list[tuple[str, bytes | None, bytes | None]] = []
        self._sent: list[tuple[str, bytes | None, bytes | None]] = []
        self._refuse_after = refuse_after

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        assert (headers, partition) == ((), None)
        if len(self._sent) == self._refuse_after:
            raise SourceError("the broker is gone")
        self._sent.append((topic, key, value))

    def flush(self) -> None:
        self.acknowledged += self._sent
        self._sent = []

    def close(self) -> None:
        self.flush()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "items.csv").write_text(CSV)
    return tmp_path / "items.csv"


def test_each_row_becomes_a_record_keyed_by_its_item(path: Path) -> None:
    broker = Broker()
    tally = publish_items(ItemFile(path), broker, "things")
    assert (tally.rows, tally.items, tally.repeated) == (4, 3, 1)
    assert {topic for topic, _, _ in broker.acknowledged} == {"things"}
    assert [key for _, key, _ in broker.acknowledged] == [b"i1", b"i2", b"i1"]
    item = parse(*broker.acknowledged[-1][1:])
    assert item == Item(item_id="i1", title="Green tea", tags=("a",), attributes={"price": 4.0})


def test_it_stops_when_it_is_told_and_when_the_broker_refuses(path: Path) -> None:
    stop, broker = threading.Event(), Broker()
    stop.set()
    assert publish_items(ItemFile(path), broker, "items", stop=stop.is_set).rows == 0
    with pytest.raises(SourceError):
        publish_items(ItemFile(path), Broker(refuse_after=2), "items")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["items", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_dry_run_shows_what_was_guessed_and_publishes_nothing(path: Path, tmp_path: Path) -> None:
    shown = run(str(path), "--dry-run", "--bad-rows-max", "50%", "--data-dir", str(tmp_path / "data"))
    assert "tags: column 'tags', separated by '|'" in shown
    assert "attributes: price (number)" in shown
    assert 'i1: {"price": 1.5, "title": "Tea", "tags": ["a", "b"]}' in shown
    assert "3 of the first 4 rows are items; nothing was published" in shown
    assert "line 4: id is missing" in shown
    assert not (tmp_path / "data").exists()


def test_the_embedded_log_has_the_records(path: Path, tmp_path: Path) -> None:
    for _ in range(2):  # twice is harmless
        shown = run(str(path), "--bad-rows-max", "0.3", "--only", "", "--data-dir", str(tmp_path / "data"))
    assert re.search(r"3 items published to topic items \(.*\) in ", shown)
    assert "left out, not readable as items: 1 invalid-id" in shown
    settings = load_settings(data_dir=tmp_path / "data")
    with closing(open_reader(settings, settings.items_topic)) as reader:
        records = [parse(record.key, record.value) for record in reader.read()]
    assert records[:3] == records[3:]
    assert records[0] == Item(item_id="i1", title="Tea", tags=("a", "b"))


def test_too_many_bad_rows_are_refused_before_the_first_is_published(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["nextclick", "items", str(path), "--data-dir", str(tmp_path / "data")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert re.search(
        r"1 of 4 rows \(25%\) cannot be read as items; nothing was published: 1 invalid-id; line 4: id is missing",
        capsys.readouterr().err,
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--columns", "price=x"], "--columns"),
        (["--bad-rows-max", "many"], "no share"),
        (["--delimiter", "x"], "--delimiter"),
    ],
)
def test_options_that_cannot_be_meant_are_wrong_usage(path: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["items", str(path), *arguments])
    assert done.exit_code == 2
    assert words in done.output
