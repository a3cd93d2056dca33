"""`nextclick export`: the files hold what the checkpoint and Redis do, and none of a user who is to be forgotten."""

import time

import pytest
from pyarrow import parquet
from rich.console import Console

from online.commands import export as export_command
from online.commands.export import ExportError, run_export
from online.learner.learner import Learner
from online.worker.checkpoint import Checkpoints
from online.worker.connections import open_lists, open_producer, prepare_topics
from online.worker.loop_state import shape_of
from online.worker.progress import Progress
from stream.embedded_redis import EmbeddedRedis
from stream.events import Forget, encode_forget
from stream.items import Item
from stream.lists import TopList
from stream.source import Partition
from stream.user_ids import digest_of
from tests.online.learner.conftest import click, learn, ring


def top(*items):
    return TopList(
        items=list(items), scores=[1 / (1 + at) for at in range(len(items))], version=2, offset="0:9",
        clicked_at=1, written_at=5_000, source="personal",
    )  # fmt: skip


@pytest.fixture
def learner(small, free_port):
    settings = small(embedded_redis_port=free_port)
    learner = Learner(settings)
    learn(learner, ring(300))
    learn(learner, [click("lone", 3, 700, event_type="buy"), click("gone", 4, 701)])
    learner.put_items([Item(item_id="i3", title="Tea", tags=("a", "b")), Item(item_id="new", title="New")])
    learner.set_available("i3", False)
    arrays, state = learner.to_state()
    progress = Progress(next_offsets={Partition(settings.clicks_topic, 0): 1})
    state = {"learner": state, "shape": shape_of(settings), "progress": progress.to_state()}
    Checkpoints(settings.checkpoints_dir, 3).save(arrays, state)
    prepare_topics(settings)
    producer = open_producer(settings)
    for user in ("lone", "gone"):  # the first one is before what the checkpoint has seen
        value = encode_forget(Forget(user_sha256=digest_of(user), timestamp=time.time()))
        producer.send(settings.clicks_topic, key=None, value=value)
    producer.close()
    with EmbeddedRedis(free_port):
        open_lists(settings).write({"lone": top("i5", "i6"), "gone": top("i1")}, top("i9"))
        yield learner


def exported(learner, folder, **options):
    run_export(Console(quiet=True), learner.settings, folder, **{"force": False} | options)
    return {path.stem: parquet.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


def test_all_that_is_known_is_in_the_files(learner, tmp_path):
    files = exported(learner, tmp_path / "out")
    assert set(files) == {"histories", "lists", "items", "pairs"}
    (mine,) = [row for row in files["histories"] if row["user_id"] == "lone"]
    assert (mine["item_id"], mine["event_type"], mine["timestamp"].timestamp()) == ("i3", "buy", 700.0)
    kept = sum(learner.histories.lengths(learner.histories.find(learner.histories.users())))
    assert len(files["histories"]) == kept - 1  # that of the user who is to be forgotten
    ranks = [(row["user_id"], row["rank"], row["item_id"], row["version"]) for row in files["lists"]]
    assert ranks == [("lone", 1, "i5", 2), ("lone", 2, "i6", 2)]
    items = {row["item_id"]: row for row in files["items"]}
    assert (items["i3"]["title"], items["i3"]["tags"], items["i3"]["available"]) == ("Tea", ["a", "b"], False)
    assert sum(row["clicks"] for row in items.values()) == 302
    assert items["i3"]["last_at"].timestamp() == 700.0
    assert items["i3"]["first_at"] < items["i3"]["last_at"]
    assert (items["new"]["clicks"], items["new"]["first_at"], items["new"]["available"]) == (0, None, True)
    pairs = {(row["item_id"], row["next_item_id"]): row["count"] for row in files["pairs"]}
    assert pairs["i7", "i8"] > 1
    assert not any(row.get("user_id") == "gone" for rows in files.values() for row in rows)


def test_files_are_written_in_groups_of_rows(learner, tmp_path, monkeypatch):
    whole = exported(learner, tmp_path / "whole")
    monkeypatch.setattr(export_command, "GROUP_ROWS", 7)
    assert exported(learner, tmp_path / "parts") == whole
    assert parquet.ParquetFile(tmp_path / "parts" / "histories.parquet").num_row_groups > 10


def test_files_that_are_there_stay_unless_they_are_forced_away(learner, tmp_path):
    (tmp_path / "lists.parquet").write_text("mine")
    with pytest.raises(ExportError, match=r"has lists\.parquet already.*--force"):
        exported(learner, tmp_path)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["lists.parquet"]
    assert len(exported(learner, tmp_path, force=True)["lists"]) == 2
    assert not list(tmp_path.glob(".*"))


def test_what_breaks_off_leaves_no_file(learner, tmp_path, monkeypatch):
    def broken(*_):
        yield "u", "i", 1, "click"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_command, "histories_of", broken)
    with pytest.raises(ExportError, match="No space left"):
        exported(learner, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
