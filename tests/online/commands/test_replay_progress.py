"""A file that has grown goes on at its first new row; one that was changed before it says so."""

import gzip
import json
import lzma
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.commands import replay_progress as module
from online.commands.replay import Replayed, replay
from online.commands.replay_progress import BLOCKS_MAX, Progress, ReplayError, RowDigests
from stream.event_files import EventFile, Message, ReadOptions, parse_columns

HEADER = "user,item,timestamp\n"


class Broker:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def send(self, *_: object, value: bytes | None, **__: object) -> None:
        self.values.append(value or b"")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def rows(n: int, start: int = 0) -> str:
    return "".join(f"u{i % 7},i{i % 11},{1_700_000_000 + i}\n" for i in range(start, start + n))


def publish(path: Path, broker: Broker, options: ReadOptions | None = None, **given: Any) -> Replayed:
    file = EventFile(path, options or ReadOptions())
    progress = Progress(path.parent / "replay", file, "log#clicks")
    progress.load()
    return replay(file, broker, "clicks", progress, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 5, 5_000])
def test_a_file_that_has_grown_is_published_from_its_first_new_row(tmp_path: Path, n: int) -> None:
    path, broker = tmp_path / "a.csv", Broker()
    for total in (n, n + 1, n + 1, 2 * n + 3_000):
        path.write_text(HEADER + rows(total))
        done = publish(path, broker)
        assert done.rows == len(broker.values) == total
    assert len({json.loads(value)["event_id"] for value in broker.values}) == total


def test_a_file_goes_on_whatever_it_is_called_and_however_it_is_packed(tmp_path: Path) -> None:
    broker = Broker()
    (tmp_path / "a.csv").write_text(HEADER + rows(100))
    publish(tmp_path / "a.csv", broker)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((HEADER + rows(150)).encode()))
    assert publish(tmp_path / "b.csv.gz", broker).published == 50
    (tmp_path / "c").write_bytes(lzma.compress((HEADER + rows(160)).replace(",", ";").encode("utf-16")))
    assert publish(tmp_path / "c", broker).published == 10
    assert publish(tmp_path / "a.csv", broker).already_done
    assert len(broker.values) == 160


def test_a_parquet_file_that_has_grown_goes_on(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    path, broker = tmp_path / "a.parquet", Broker()
    for n in (5_000, 12_345):
        columns = {"user": [f"u{i}" for i in range(n)], "item": [1] * n, "timestamp": list(range(n))}
        parquet.write_table(pa.table(columns), path, row_group_size=n // 2)
        publish(path, broker)
    assert [json.loads(value)["timestamp"] for value in broker.values] == list(range(12_345))


@pytest.mark.parametrize("changed", [0, 1, 50, 99])
def test_a_changed_row_is_refused_and_nothing_is_published(tmp_path: Path, changed: int) -> None:
    path, broker = tmp_path / "a.csv", Broker()
    lines = rows(120).splitlines(keepends=True)
    path.write_text(HEADER + "".join(lines[:100]))
    publish(path, broker)
    lines[changed] = "new,i,5\n"
    path.write_text(HEADER + "".join(lines))
    with pytest.raises(ReplayError, match=rf"row {changed + 1} differs .*; --restart publishes all rows"):
        publish(path, broker)
    assert len(broker.values) == 100


def test_a_row_changed_far_down_a_long_file_is_noticed_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCKS_MAX", 16)
    path, broker = tmp_path / "a.csv", Broker()
    path.write_text(HEADER + rows(1_000))
    publish(path, broker)
    path.write_text(HEADER + rows(699) + "new,i,5\n" + rows(400, 700))
    with pytest.raises(ReplayError, match=r"a row between 641 and 704 differs"):
        publish(path, broker)


def test_a_file_with_fewer_rows_than_were_published_is_refused(tmp_path: Path) -> None:
    path, broker = tmp_path / "a.csv", Broker()
    path.write_text(HEADER + rows(100))
    publish(path, broker)
    path.write_text(HEADER + rows(60))
    with pytest.raises(ReplayError, match="has 60 rows, and 100 were published of it"):
        publish(path, broker)


def test_another_file_in_the_same_place_is_published_and_reported(tmp_path: Path) -> None:
    path, broker = tmp_path / "a.csv", Broker()
    path.write_text(HEADER + rows(50))
    publish(path, broker)
    path.write_text(HEADER + rows(50, 1_000))
    file = EventFile(path)
    progress = Progress(tmp_path / "replay", file, "log#clicks")
    assert progress.load() == 0
    assert "is another file than the one published from there before" in (progress.remark or "")
    assert publish(path, broker).published == 50
    path.write_text(HEADER + rows(60))  # the first one is back, and has grown
    assert publish(path, broker).published == 10


def test_other_columns_are_another_publication(tmp_path: Path) -> None:
    path, broker = tmp_path / "a.csv", Broker()
    path.write_text("user,item,timestamp,who\n" + "u,i,5,v\n" * 10)
    publish(path, broker)
    assert publish(path, broker, ReadOptions(columns=parse_columns("user=who"))).published == 10


def test_progress_of_a_version_before_is_taken_over(tmp_path: Path) -> None:
    path, broker = tmp_path / "a.csv", Broker()
    path.write_text(HEADER + rows(100))
    where = blake2b(b"log#clicks", digest_size=4).hexdigest()
    old = tmp_path / "replay" / f"{EventFile(path).content_id}-{where}.json"
    old.parent.mkdir()
    old.write_text(json.dumps({"file": str(path), "target": "log#clicks", "rows": 70, "complete": False}))
    assert publish(path, broker).published == 30
    assert not old.exists()
    path.write_text(HEADER + rows(110))
    assert publish(path, broker).published == 10


def test_a_restart_that_is_interrupted_goes_on_where_it_ended(tmp_path: Path) -> None:
    path, broker, stop = tmp_path / "a.csv", Broker(), threading.Event()
    path.write_text(HEADER + rows(100))
    publish(path, broker)
    file = EventFile(path)
    fresh = Progress(tmp_path / "replay", file, "log#clicks")
    replay(file, broker, "clicks", fresh, limit=40, stop=stop)  # type: ignore[arg-type]
    assert publish(path, broker).published == 60


def test_what_is_remembered_of_a_file_is_bounded() -> None:
    digests = RowDigests()
    for row in range(1, 5 * BLOCKS_MAX):
        digests.add(Message(row, None, b"x"))
        assert len(digests.blocks) <= BLOCKS_MAX
        assert len(digests.blocks) == -(-digests.rows // digests.spacing)


@settings(max_examples=100, deadline=None)
@given(
    before=st.lists(st.binary(max_size=2), min_size=1, max_size=60),
    after=st.lists(st.binary(max_size=2), max_size=60),
    changed=st.integers(0, 59),
)
def test_digests_tell_a_beginning_from_a_change(before: list[bytes], after: list[bytes], changed: int) -> None:
    def digests(values: list[bytes]) -> RowDigests:
        found = RowDigests()
        for row, value in enumerate(values, 1):
            found.add(Message(row, None, value))
        return found

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "BLOCKS_MAX", 8)
    try:
        assert digests(before + after).differing(digests(before)) is None
        at = changed % len(before)
        other = [*before[:at], before[at] + b"!", *before[at + 1 :]]
        found = digests(other).differing(digests(before))
        assert found is not None
        assert found[0] <= at + 1 <= found[1]
    finally:
        patch.undo()
