"""A command asks one worker or all of them, and says of each what became of it."""

import threading
import time
from contextlib import ExitStack

import pytest

from online.worker.ask import RequestError, ask_worker, ask_workers
from online.worker.requests import answer_request
from stream.embedded_redis import EmbeddedRedis
from stream.lists import Lists, connect


@pytest.fixture
def url():
    with EmbeddedRedis() as server:
        yield server.url


class Worker:
    """Answers in a thread of its own, as a worker does between two turns."""

    def __init__(self, url, name):
        self.lists, self.stop = Lists(connect(url), ttl_s=60, worker=name), threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stop.is_set():
            answer_request(self.lists, {"say": lambda request: {"said": [self.lists.worker, request["say"]]}})
            time.sleep(0.005)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


@pytest.fixture
def workers(url):
    """Starts workers by name."""
    with ExitStack() as stack:
        yield lambda *names: [stack.enter_context(Worker(url, name)) for name in names]


@pytest.fixture
def lists(url):
    return Lists(connect(url), ttl_s=60)


def test_all_workers_answer_the_same_request(lists, workers):
    workers("w-1", "w-2", "w-3")
    done = ask_workers(lists, {"say": 7}, 30.0, "nextclick status", ["w-1", "w-2", "w-3"])
    assert done.answers == {name: {"said": [name, 7]} for name in ("w-1", "w-2", "w-3")}
    assert done.errors == {}


def test_who_has_not_answered_is_named_and_no_request_is_left_behind(lists, workers):
    workers("w-1")
    lists.ask({"id": "other"}, 30, "w-busy")
    done = ask_workers(lists, {"say": 7}, 0.3, "nextclick status", ["w-1", "w-gone", "w-busy"])
    assert set(done.answers) == {"w-1"}
    assert "worker w-gone did not take the request" in done.errors["w-gone"]
    assert "worker w-busy has another request to answer first" in done.errors["w-busy"]
    assert lists.take_request("w-gone") is None
    assert lists.take_request("w-busy") == {"id": "other"}


def test_a_worker_that_took_the_request_and_is_silent_is_named(lists, url):
    silent = Lists(connect(url), ttl_s=60, worker="w-1")
    thread = threading.Timer(0.1, silent.take_request)
    thread.start()
    done = ask_workers(lists, {"say": 7}, 0.5, "nextclick status", ["w-1"])
    thread.join()
    assert "worker w-1 took the request but has not answered" in done.errors["w-1"]


def test_one_worker_of_several_is_asked_alone(lists, workers):
    workers("w-1", "w-2")
    assert ask_worker(lists, {"say": 1}, 30.0, "nextclick status", "w-2") == {"said": ["w-2", 1]}
    with pytest.raises(RequestError, match="does not know this request"):
        ask_worker(lists, {"sing": 1}, 30.0, "nextclick status", "w-1")
