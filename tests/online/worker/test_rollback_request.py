"""A rollback is asked for from anywhere, done by the worker, and said in one line, whatever comes of it."""

import json
import threading
import time
from functools import partial

import pytest
from rich.console import Console

import online.cli
from online.commands.views import figures_line
from online.lifecycle.versions import VersionError, Versions
from online.worker.checkpoint import CheckpointError
from online.worker.requests import answer_request
from online.worker.rollback_request import RollbackError, ask_rollback, rollback
from stream.embedded_redis import EmbeddedRedis
from stream.lists import Lists, ListsError, connect


@pytest.fixture
def lists():
    with EmbeddedRedis() as server:
        yield Lists(connect(server.url), ttl_s=60)


def answer_rollback(lists, roll_back):
    answer_request(lists, {"rollback": rollback(roll_back)})


class Worker:
    """Answers in a thread of its own, as a worker does between two turns."""

    def __init__(self, lists, roll_back):
        self.lists, self.roll_back, self.stop = lists, roll_back, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stop.is_set():
            answer_rollback(self.lists, self.roll_back)
            time.sleep(0.005)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def test_the_worker_does_it_and_says_the_new_number(lists):
    with Worker(lists, lambda to: to + 10):
        assert ask_rollback(lists, 3, 30.0) == {"version": 13, "parent": 3}
        assert ask_rollback(lists, 4, 30.0) == {"version": 14, "parent": 4}


@pytest.mark.parametrize("error", [VersionError("there is no version 3"), CheckpointError("checkpoint 9 is broken")])
def test_a_rollback_that_is_refused_answers_with_the_reason(lists, error):
    def refuse(_):
        raise error

    with Worker(lists, refuse), pytest.raises(RollbackError) as raised:
        ask_rollback(lists, 3, 30.0)
    assert str(raised.value) == str(error)


def test_a_request_that_no_worker_takes_is_withdrawn(lists):
    with pytest.raises(RollbackError, match=r"no worker took the request within 0.01 s.*nextclick status"):
        ask_rollback(lists, 3, 0.01)
    assert lists.take_request() is None  # a worker that comes later must not do it


def test_a_worker_that_dies_during_the_request_is_reported(lists, monkeypatch):
    take = lists.withdraw_request
    monkeypatch.setattr(lists, "withdraw_request", lambda _: (lists.take_request(), take())[1])
    with pytest.raises(RollbackError, match=r"took the request but has not answered within 0.01 s: see `nextclick ver"):
        ask_rollback(lists, 3, 0.01)


def test_two_at_once_do_not_overwrite_each_other(lists):
    assert lists.ask({"id": "first", "rollback": 2}, ttl_s=30)
    with pytest.raises(RollbackError, match="another request to answer first"):
        ask_rollback(lists, 3, 1.0)
    assert lists.take_request() == {"id": "first", "rollback": 2}


@pytest.mark.parametrize("request_", [{"id": "a"}, {"id": "a", "rollback": "two"}, {"id": "a", "rollback": None}])
def test_what_the_worker_does_not_know_is_answered_too(lists, request_):
    lists.ask(request_, ttl_s=30)
    answer_rollback(lists, lambda _: pytest.fail("nothing is to be rolled back"))
    assert "does not know this request" in lists.answer_to("a")["error"]


def test_an_unavailable_redis_does_not_stop_the_worker(lists, monkeypatch):
    def away():
        raise ListsError("no Redis answers")

    monkeypatch.setattr(lists, "take_request", away)
    answer_rollback(lists, lambda _: pytest.fail("nothing is to be rolled back"))


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, command, lists):
    """Runs `nextclick versions` in this process -> exit status, standard output, standard error."""
    monkeypatch.setattr(online.cli, "out", Console(width=200, highlight=False))
    monkeypatch.setenv("NEXTCLICK_REDIS_URL", lists.address)
    return partial(command, "versions")


@pytest.fixture
def versions():
    found = Versions(3, 5, at_ms=1_700_000_000_000)
    found.saving(1)
    found.publish(
        "fine-tuned (by the clock)", at_ms=int(1000 * time.time()) - 5 * 3_600_000, learned=1_234, figures={"a": 0.5}
    )
    found.saving(2)
    found.roll_back(1, "asked for [red]\x1b", at_ms=int(1000 * time.time()), learned=2_000)
    return found


def test_versions_are_shown_with_where_they_come_from(run, lists, versions):
    code, _, error = run()
    assert code == 1
    assert error.startswith("nextclick: no worker reports in Redis")
    lists.write_status({"versions": versions.as_dicts()}, 30)
    code, shown, _ = run()
    assert code == 0
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert [row[1] for row in rows] == ["kept", "rolled", "live"]
    for text in ("1,234", "5 h ago", "fine-tuned (by the clock)", "a 0.5", "asked for [red]\\x1b"):
        assert text in shown
    assert json.loads(run("--json")[1]) == json.loads(json.dumps(versions.as_dicts()))


def test_an_older_worker_that_says_nothing_of_versions_is_no_error(run, lists):
    lists.write_status({"state": "running"}, 30)
    assert run()[0] == 0
    assert json.loads(run("--json")[1]) == []


def test_a_rollback_says_the_new_number_or_why_not(run, lists):
    with Worker(lists, lambda _: 9):
        assert run("--rollback", "2") == (0, "rolled back: version 9 makes the lists now, with the weights of 2\n", "")
        assert json.loads(run("--rollback", "2", "--json")[1]) == {"version": 9, "parent": 2}
    code, shown, error = run("--rollback", "2", "--timeout", "1")
    assert (code, shown) == (1, "")
    assert error.startswith("nextclick: no worker took the request within 1 s")
    assert run("--rollback", "0")[0] == 2


def test_figures_fit_in_a_line():
    figures = {"ndcg": 0.123456, "interval": [-0.1, 0.25], "guessing": {"first": 2.0}, "none": None, "odd\n": "x\x07"}
    assert figures_line(figures) == "ndcg 0.1235, interval -0.1…0.25, guessing (first 2), odd\\n x\\x07"
