"""`nextclick explain` and `nextclick backtest --diversity`, from the command line."""

import json
import sys
import threading

import fakeredis
import numpy as np
import pytest
from rich.console import Console

import online.cli
from online.commands.explain import ExplainError, explain_from_checkpoint, explain_from_worker
from online.commands.explain_views import explanation_view, explanations_view
from online.commands.newest_checkpoint import load_newest
from online.config.settings import Settings
from online.learner.learner import Learner
from online.worker.asking import Asking
from online.worker.checkpoint import CheckpointError, Checkpoints
from online.worker.loop_state import shape_of
from stream.items import Item
from stream.lists import Lists, ListsError
from stream.questions import QuestionQueue
from tests.online.learner.conftest import learn, ring


def saved(learner, settings, folder=None):
    arrays, state = learner.to_state()
    arrays["seen"] = np.zeros(3, np.uint64)
    checkpoints = Checkpoints(folder or settings.checkpoints_dir, 3)
    checkpoints.save(arrays, {"learner": state, "shape": shape_of(settings)})


@pytest.fixture
def settings(small) -> Settings:
    """Whose data folder holds a checkpoint."""
    settings = small()
    learner = Learner(settings)
    learn(learner, ring(300))
    learner.put_items([Item(item_id="i7", title="[red]Kettle\x1b[31m")])
    saved(learner, settings)
    return settings


def shown(view):
    console = Console(width=120, record=True)
    console.print(view)
    return console.export_text()


def test_a_list_is_explained_from_the_newest_checkpoint(settings):
    found = explain_from_checkpoint(settings, "1", None, 5)
    assert found["known"]
    assert found["checkpoint"] == 1
    assert len(found["explanations"]) == 5
    json.dumps(found)
    text = shown(explanations_view(found))
    for one in found["explanations"]:
        assert one["item_id"] in text
        assert all(f"{reason['contribution']:+.2f}" in text for reason in one["reasons"])


def test_any_item_is_explained_with_its_sum(settings):
    for item in ("i7", "i30"):
        found = explain_from_checkpoint(settings, "1", item, 5)
        (one,) = found["explanations"]
        assert one["scored_by"] != "nothing"
        text = shown(explanation_view(found))
        assert f"{one['difference']:+.3f}" in text
        assert "\x1b" not in text
    assert "[red]Kettle\\x1b[31m (i7)" in shown(explanation_view(explain_from_checkpoint(settings, "1", "i7", 5)))


def test_an_unknown_user_gets_a_visitor_s_list(settings):
    found = explain_from_checkpoint(settings, "stranger", None, 3)
    assert not found["known"]
    assert "a visitor's list" in shown(explanations_view(found)).replace("\n", " ")


@pytest.fixture
def worker(settings, monkeypatch):
    """A worker that answers questions through a Redis that the command finds."""
    client = fakeredis.FakeRedis()
    lists = Lists(client, ttl_s=60)
    lists.write_status({"state": "running"}, 60)
    monkeypatch.setattr(online.commands.explain, "open_lists", lambda _: lists)
    _, learner, _ = load_newest(settings)
    asking = Asking(settings, learner, QuestionQueue(client))
    asking.start()
    stop = threading.Event()

    def run():
        while not stop.is_set():
            asking.step(idle=True)
            stop.wait(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    yield lists
    stop.set()
    thread.join()
    asking.close()


@pytest.mark.usefixtures("worker")
def test_the_running_worker_explains_first(settings):
    found = explain_from_worker(settings, "1", None, 4)
    assert (found["known"], found["checkpoint"], len(found["explanations"])) == (True, None, 4)
    text = shown(explanations_view(found))
    assert "from the running worker" in text
    assert all(one["item_id"] in text for one in found["explanations"])
    found = explain_from_worker(settings, "1", "i7", 4)
    assert "Kettle\\x1b[31m (i7)" in shown(explanation_view(found))
    json.dumps(found)
    with pytest.raises(ExplainError, match="nothing is known of item nowhere"):
        explain_from_worker(settings, "1", "nowhere", 4)


def test_without_a_worker_or_a_redis_the_checkpoint_has_to_do(settings, monkeypatch):
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    monkeypatch.setattr(online.commands.explain, "open_lists", lambda _: lists)
    assert explain_from_worker(settings, "1", None, 4) is None
    lists.write_status({"state": "running"}, 60)  # of a worker that does not answer
    monkeypatch.setattr(online.commands.explain, "ANSWER_S_MAX", 0.05)
    assert explain_from_worker(settings, "1", None, 4) is None

    def refuse(_):
        raise ListsError("no Redis answers")

    monkeypatch.setattr(online.commands.explain, "open_lists", refuse)
    assert explain_from_worker(settings, "1", None, 4) is None


def test_reading_leaves_the_folder_as_it_is(settings):
    half = settings.checkpoints_dir / "writing-2"
    half.mkdir()
    before = sorted(str(path) for path in settings.data_dir.rglob("*"))
    explain_from_checkpoint(settings, "1", None, 3)
    assert sorted(str(path) for path in settings.data_dir.rglob("*")) == before  # a worker may be writing it


def test_of_several_workers_the_newest_checkpoint_counts(settings):
    learner = Learner(settings)
    learn(learner, ring(40, users=1))
    folder = settings.data_dir / "worker-2" / settings.checkpoints_dir.name
    saved(learner, settings, folder)
    saved(learner, settings, folder)
    assert explain_from_checkpoint(settings, "0", None, 3)["checkpoint"] == 2


def test_what_cannot_be_explained_is_one_line(settings, small, tmp_path):
    with pytest.raises(ExplainError, match="nothing is known of item nowhere"):
        explain_from_checkpoint(settings, "1", "nowhere", 3)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        explain_from_checkpoint(small(data_dir=tmp_path / "empty"), "1", None, 3)
    with pytest.raises(CheckpointError, match="NEXTCLICK_WIDTH=8"):
        explain_from_checkpoint(small(width=16), "1", None, 3)


@pytest.mark.parametrize("text", ["0,1.5", "a", "", "nan", "-1"])
def test_a_wrong_diversity_is_one_line(monkeypatch, capsys, tmp_path, text):
    file = tmp_path / "clicks.csv"
    file.write_text("user,item,timestamp\n" + "".join(f"u{n % 3},i{n % 5},{1_600_000_000 + n}\n" for n in range(60)))
    monkeypatch.setattr(sys, "argv", ["nextclick", "backtest", str(file), "--diversity", text])
    with pytest.raises(SystemExit) as end:
        online.cli.main()
    assert end.value.code == 1
    assert "--diversity: numbers from 0 to 1" in capsys.readouterr().err


def test_a_backtest_shows_the_trade_of_diversity(monkeypatch, tmp_path):
    file, figures = tmp_path / "clicks.csv", tmp_path / "figures.json"
    rows = [f"u{n % 3},i{(n * n) % 17},{1_600_000_000 + n}\n" for n in range(120)]
    file.write_text("user,item,timestamp\n" + "".join(rows))
    arguments = ["--diversity", "0.5,0", "--json", str(figures), "--plots", str(tmp_path / "plots")]
    monkeypatch.setenv("NEXTCLICK_LAYERS", "lsh")
    monkeypatch.setattr(online.cli, "out", Console(width=200, record=True))
    monkeypatch.setattr(sys, "argv", ["nextclick", "backtest", str(file), "--methods", "nextclick", *arguments])
    with pytest.raises(SystemExit) as end:
        online.cli.main()
    assert end.value.code == 0
    found = json.loads(figures.read_text())
    assert [one["diversity"] for one in found["diversity"]] == [0, 0.5]
    assert found["diversity"][0]["ndcg@10"] == pytest.approx(found["methods"]["nextclick"]["ndcg@10"], abs=0.02)
    text = online.cli.out.export_text()
    assert "similarity" in text
    assert "coverage" in text
    assert (tmp_path / "plots" / "diversity.png").stat().st_size > 1_000
