"""A replay publishes every row once, whatever interrupts it, and says clearly what it cannot read."""

import datetime
import gzip
import json
import lzma
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.commands.replay import Pace, Replayed, replay
from online.commands.replay_progress import Progress, ReplayError
from stream.event_files import EventFile, EventFileError, Message
from stream.events import BadEvent, Click, parse
from stream.source import SourceError

HEADER = "user,item,timestamp\n"


class Broker:
    """Keeps what was acknowledged; `refuse_after` sends it raises, like a broker that goes away."""

    def __init__(self, refuse_after: int | None = None) -> None:
        self.acknowledged: list[tuple[bytes | None, bytes | None]] = []
        self._sent: list[tuple[bytes | None, bytes | None]] = []
        self.refuse_after = refuse_after

    def send(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        assert (topic, headers) == ("clicks", ())
        if self.refuse_after is not None and len(self.acknowledged) + len(self._sent) >= self.refuse_after:
            raise SourceError("the broker is gone")
        self._sent.append((key, value))

    def flush(self) -> None:
        self.acknowledged += self._sent
        self._sent = []

    def close(self) -> None:
        self.flush()

    def clicks(self) -> list[Click | BadEvent]:
        return [parse(value, now=2e9) for _, value in self.acknowledged]

    def event_ids(self) -> list[str]:
        return [json.loads(value or b"")["event_id"] for _, value in self.acknowledged]


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    pack: Callable[[bytes], bytes] = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


def rows(n: int) -> str:
    return HEADER + "".join(f"u{i % 7},i{i % 11},{1_700_000_000 + i}\n" for i in range(n))


def read(path: Path) -> list[Message]:
    return list(EventFile(path).messages())


def run(path: Path, broker: Broker, *, target: str = "log#clicks", restart: bool = False, **options: Any) -> Replayed:
    file = EventFile(path)
    progress = Progress(path.parent / "replay", file, target)
    if not restart:
        progress.load()
    return replay(file, broker, "clicks", progress, **options)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.xz", "a.CSV"])
def test_csv_is_published_with_ids_as_text(tmp_path: Path, name: str) -> None:
    broker = Broker()
    done = run(write(tmp_path / name, HEADER + "007,0444778,1362062624\nñu, x ,2020-01-01T00:00:00+00:00\n"), broker)
    assert (done.rows, done.published, done.complete, dict(done.broken)) == (2, 2, True, {})
    first, second = broker.clicks()
    assert isinstance(first, Click)
    assert isinstance(second, Click)
    assert (first.user_id, first.item_id, first.timestamp) == ("007", "0444778", 1362062624)
    assert (second.user_id, second.item_id, second.timestamp) == ("ñu", "x", 1577836800)
    assert [key for key, _ in broker.acknowledged] == [b"007", "ñu".encode()]


def test_optional_columns_go_along_in_any_order_and_unknown_ones_do_not(tmp_path: Path) -> None:
    text = "\ufeffrating,colour,event_id,item_id,event_type,Timestamp,user_id\n6.5,red,e1,i,view,5,u\n,,,i,,5,u\n"
    first, second = (json.loads(message.value) for message in read(write(tmp_path / "a.csv", text)))
    assert first == {
        "user_id": "u", "item_id": "i", "timestamp": 5, "event_type": "view", "event_id": "e1", "value": 6.5,
    }  # fmt: skip
    assert second == {"user_id": "u", "item_id": "i", "timestamp": 5, "event_id": second["event_id"]}


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.jsonl.xz"])
def test_json_lines_are_published_under_our_names(tmp_path: Path, name: str) -> None:
    lines = (
        '{"user": 7, "item": "007", "timestamp": 1.5, "rating": 3}\n\n{"user_id": "u", "item_id": 8, "timestamp": 2}\n'
    )
    broker = Broker()
    assert run(write(tmp_path / name, lines), broker).published == 2
    first, second = broker.clicks()
    assert isinstance(first, Click)
    assert isinstance(second, Click)
    assert (first.user_id, first.item_id, first.timestamp, first.value) == ("7", "007", 1.5, 3)
    assert (second.user_id, second.item_id) == ("u", "8")
    assert broker.acknowledged[0][0] == b"7"


def test_parquet_is_published_with_its_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    moment = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    times = pa.array([moment, moment, None], pa.timestamp("us"))
    table = pa.table(
        {"user": pa.array(["a", "b", None]), "item": [1, 2, 3], "timestamp": times, "rating": [1.0, None, 2.0]}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    broker = Broker()
    done = run(tmp_path / "a.parquet", broker)
    assert (done.published, dict(done.broken)) == (3, {"missing-user_id": 1})
    first = broker.clicks()[0]
    assert isinstance(first, Click)
    assert (first.user_id, first.item_id, first.timestamp, first.value) == ("a", "1", 1577836800, 1.0)


def test_parquet_resumes_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    n = 10_000
    table = pa.table({"user_id": [f"u{i}" for i in range(n)], "item_id": ["x"] * n, "timestamp": list(range(n))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3_000)
    file = EventFile(tmp_path / "a.parquet")
    messages = list(file.messages(skip=4_321))
    assert [message.row for message in messages] == list(range(4_322, n + 1))
    assert messages[0].key == b"u4321"
    assert (file.rows, file.fraction) == (n, 1.0)


def test_a_broken_row_is_published_as_it_is_and_counted(tmp_path: Path) -> None:
    body = b",i,5\nu,,5\nu,i,yesterday\nu,i\nu,i,nan\n\xff\xfe,i,5\nu,i,5,extra\n"
    broker = Broker()
    done = run(write(tmp_path / "a.csv", HEADER.encode() + body), broker)
    reasons = [click.reason if isinstance(click, BadEvent) else None for click in broker.clicks()]
    assert reasons == [
        "invalid-user_id", "invalid-item_id", "invalid-timestamp", "missing-timestamp", "invalid-timestamp",
        "invalid-utf8", None,
    ]  # fmt: skip
    assert done.published == 7
    assert sum(done.broken.values()) == 6


def test_a_broken_json_line_is_published_as_it_is(tmp_path: Path) -> None:
    bad = [b"{", b"[1]", b"\xff", b'{"user": "\\ud800", "item": "i", "timestamp": 1}', b'{"user": "u"}']
    good = b'{"user": "u", "item": "i", "timestamp": 1}'
    values = [message.value for message in read(write(tmp_path / "a.jsonl", b"\n".join([good, *bad])))]
    assert values[1:5] == bad[:4]
    assert [isinstance(parse(value), BadEvent) for value in values] == [False, True, True, True, True, True]


def test_publishing_twice_gives_the_same_event_ids_and_equal_rows_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER + "u,i,5\nu,i,5\n")
    broker = Broker()
    run(path, broker)
    run(path, broker, restart=True)
    ids = broker.event_ids()
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]


def test_a_file_that_has_grown_gives_its_old_rows_the_ids_they_had(tmp_path: Path) -> None:
    path, broker = tmp_path / "a.csv", Broker()
    run(write(path, rows(5)), broker)
    ids = broker.event_ids()
    run(write(path, rows(8)), broker, restart=True)
    assert broker.event_ids()[5:10] == ids
    assert len(set(broker.event_ids())) == 8


def test_a_complete_replay_is_not_repeated_unless_asked(tmp_path: Path) -> None:
    path, broker = write(tmp_path / "a.csv", rows(20)), Broker()
    assert run(path, broker).complete
    again = run(path, broker)
    assert again.already_done
    assert (again.rows, again.published) == (20, 0)
    assert run(path, broker, restart=True).published == 20
    assert run(path, broker, target="another broker").published == 20


def test_a_broker_that_fails_leaves_a_replay_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("online.commands.replay._UNACKNOWLEDGED_ROWS_MAX", 10)
    path, broker = write(tmp_path / "a.csv.gz", rows(100)), Broker(refuse_after=57)
    with pytest.raises(SourceError):
        run(path, broker)
    assert len(broker.acknowledged) == 50
    broker = Broker()
    done = run(path, broker)
    assert (done.resumed_at, done.published, done.rows) == (50, 50, 100)
    assert broker.acknowledged[0][0] == b"u1"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_interruptions_publish_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("r") / "a.csv", rows(60))
    broker = Broker()
    for limit in data.draw(st.lists(st.integers(1, 60), max_size=5)):
        run(path, broker, limit=limit)
    assert run(path, broker).complete
    assert len(broker.acknowledged) == 60
    assert len(set(broker.event_ids())) == 60


def test_a_stop_ends_with_what_is_acknowledged(tmp_path: Path) -> None:
    path, broker, stop = write(tmp_path / "a.csv", rows(1_000)), Broker(), threading.Event()

    def after_some(done: Replayed) -> None:
        if done.published >= 3:
            stop.set()

    done = run(path, broker, pace=Pace(rate=500), stop=stop, on_progress=after_some)
    assert done.stopped
    assert not done.complete
    assert 3 <= done.rows == len(broker.acknowledged) < 1_000
    assert run(path, broker).complete
    assert len(set(broker.event_ids())) == len(broker.acknowledged) == 1_000


@pytest.mark.parametrize(
    ("pace", "due"),
    [
        (Pace(), [0, 0, 0, 0]),
        (Pace(rate=4), [0, 0.25, 0.5, 0.75]),
        (Pace(speedup=10), [0, 2, 0, 30]),
    ],
)
def test_pace_says_when_each_row_is_due(pace: Pace, due: list[float]) -> None:
    times = [100.0, 120.0, None, 400.0]
    assert [pace.due_s(number, 100.0, timestamp) for number, timestamp in enumerate(times)] == due


def test_damaged_progress_counts_as_none(tmp_path: Path) -> None:
    path, broker = write(tmp_path / "a.csv", rows(5)), Broker()
    run(path, broker)
    (saved,) = (tmp_path / "replay").glob("*.json")
    for damaged in (b"", b"{", b"[]", b'{"rows": null, "complete": 1}'):
        saved.write_bytes(damaged)
        assert run(path, broker).published == 5


def test_progress_that_cannot_be_saved_is_reported_before_anything_is_published(tmp_path: Path) -> None:
    (tmp_path / "replay").write_text("a file where a folder belongs")
    broker = Broker()
    with pytest.raises(ReplayError, match=r"progress of the replay cannot be kept in .*replay: .*--data-dir"):
        run(write(tmp_path / "a.csv", rows(5)), broker)
    assert broker.acknowledged == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty: it needs user_id or user, item_id or item, timestamp"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.csv", HEADER.encode(), "no rows after its header"),
        ("a.csv", b"user,thing,timestamp\n1,2,3\n", "no column item_id or item: there are 'user, thing, timestamp'"),
        (
            "a.csv",
            b'user,item,timestamp\nu,"i,3\n' + b"x" * 600_000 + b"\n" + b"y" * 600_000,
            "line 2: the quote that opens",
        ),
        ("a.csv", HEADER.encode() + b"x" * 1_100_000, "line 2 is longer than"),
        ("a.csv.gz", gzip.compress(HEADER.encode(), mtime=0)[:20], r"gzip data is damaged \("),
        ("a.csv.gz", gzip.compress(rows(5_000).encode(), mtime=0)[:-3_000], "gzip data is damaged after line"),
        ("a.csv.xz", b"nothing", r"no column user_id .*\(by its name it is xz; by its content it is text\)"),
        ("a.csv.xz", lzma.compress(rows(5_000).encode())[:-100], "xz data is damaged"),
        ("a.jsonl", b"\n", "is empty"),
        ("a.jsonl", b"{]\n", "no JSON object"),
        (
            "a.jsonl",
            b'{"user": 1, "when": 2}\n',
            "no column item_id or item and no column timestamp: there are 'user, when'",
        ),
        ("a.parquet", b"nothing", r"\(by its name it is Parquet; by its content it is text\)"),
        ("a.parquet", b"PAR1nothing", "no readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EventFileError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pack", [gzip.compress, partial(lzma.compress, preset=0)], ids=["gz", "xz"])
def test_a_file_that_unpacks_to_far_more_is_read_in_pieces(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / ("a.csv.gz" if pack is gzip.compress else "a.csv.xz")
    path.write_bytes(pack(HEADER.encode() + bytes(100_000_000)))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(EventFileError, match="line 2 is longer than 1,000,000 bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match="is a folder"):
        EventFile(tmp_path)
    with pytest.raises(EventFileError, match="there is no such file"):
        EventFile(tmp_path / "none.csv")


cell = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=60, deadline=None)
@given(table=st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=8))
def test_any_csv_that_a_writer_makes_is_read_back_as_text(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str, str]]
) -> None:
    def quoted(row: tuple[str, ...]) -> str:
        return ",".join('"' + value.replace('"', '""') + '"' for value in row) + "\n"

    path = write(tmp_path_factory.mktemp("c") / "a.csv", HEADER + "".join(map(quoted, table)))
    read_back = [json.loads(message.value) for message in read(path)]
    assert [(fields["user_id"], fields["item_id"]) for fields in read_back] == [row[:2] for row in table]
    for message in read(path):
        parse(message.value)  # whatever it is, it is a value


def test_reading_needs_the_memory_of_a_row_not_of_the_file(tmp_path: Path) -> None:
    row = "u,i,5," + "x" * 1_000 + "\n"
    path = write(tmp_path / "a.csv.gz", "user,item,timestamp,more\n" + row * 20_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in EventFile(path).messages()) == 20_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2_000_000  # of 20 MB


def test_the_fraction_read_grows_to_one(tmp_path: Path) -> None:
    file = EventFile(write(tmp_path / "a.csv", rows(50_000)))
    fractions = [file.fraction for _ in file.messages()]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert file.fraction == 1.0
