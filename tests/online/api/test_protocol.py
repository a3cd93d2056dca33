"""Whatever other clients do with their connections, a good request is answered within seconds."""

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import fakeredis
import httpx
import pytest

from online.api.serve import Api
from online.config.settings import Settings
from stream.lists import Lists

SECONDS = 30.0  # on a busy machine
POST = b"POST /click HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
Started = Callable[..., tuple[Api, Callable[[], socket.socket]]]


@pytest.fixture
def started() -> Iterator[Started]:
    with ExitStack() as ends:

        def start(**limits: Any) -> tuple[Api, Callable[[], socket.socket]]:
            fields = {"api_port": 0, "api_read_only": False, **limits}
            api = Api(Settings(**fields), Lists(fakeredis.FakeRedis(), ttl_s=60), Taking()).start()
            ends.callback(api.close)
            host, port = api.url.removeprefix("http://").split(":")

            def connect() -> socket.socket:
                connection = ends.enter_context(socket.create_connection((host, int(port)), timeout=SECONDS))
                connection.settimeout(SECONDS)
                return connection

            return api, connect

        yield start


class Taking:
    """A producer that takes everything, and may be slow."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()

    def send(self, *_: Any, **__: Any) -> None: ...
    def flush(self) -> None:
        self.go_on.wait(SECONDS)

    def close(self) -> None: ...


def problem(status: int, detail: str) -> dict[str, Any]:
    title = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}[status]
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "error": detail}


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Everything until the other end closes."""
    text = b""
    while piece := connection.recv(65_536):
        text += piece
    head, _, body = text.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_thousand_silent_connections_shut_no_client_out(started: Started) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this system allows {hard} open files; the test needs {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    api, connect = started(api_request_s_max=SECONDS)
    held = [connect() for _ in range(1_100)]
    held[-1].sendall(b"GET /healthz HTTP/1.1\r\n")  # and one that dribbles
    assert httpx.get(f"{api.url}/healthz", timeout=SECONDS).status_code == 200
    assert httpx.post(f"{api.url}/click", json={"user_id": "u", "item_id": "i", "timestamp": 1}).status_code == 202
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        POST + b"Content-Length: 90\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=["silent", "in its headers", "in its body", "in a chunk"],
)
def test_a_request_that_does_not_come_to_its_end_is_ended(started: Started, begun: bytes) -> None:
    _, connect = started(api_request_s_max=0.3)
    connection = connect()
    connection.sendall(begun)
    status, body = answer_of(connection)
    assert status == 408
    assert body == problem(408, "the request did not come in time")


def test_dribbling_does_not_win_time(started: Started) -> None:
    _, connect = started(api_request_s_max=0.5)
    connection = connect()
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < SECONDS:
            connection.sendall(b"X")
            time.sleep(0.05)
    assert time.monotonic() - began < SECONDS


def test_many_requests_on_one_connection_have_a_time_each(started: Started) -> None:
    api, _ = started(api_request_s_max=0.4)
    with httpx.Client(base_url=api.url) as client:
        for _ in range(4):
            assert client.get("/healthz").status_code == 200
            time.sleep(0.2)


def test_an_answer_that_is_not_read_is_given_up(started: Started) -> None:
    api, connect = started(api_request_s_max=0.3)
    connection = connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    asks = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2_000
    connection.setblocking(False)
    sent, began = 0, time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < SECONDS:
            try:
                sent += connection.send(asks[sent % len(asks) :])
            except BlockingIOError:
                time.sleep(0.01)
    assert time.monotonic() - began < SECONDS
    assert httpx.get(f"{api.url}/healthz").status_code == 200


def test_with_all_connections_busy_one_more_is_answered_too_many(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(Taking, "flush", lambda _: go_on.wait(SECONDS))
    _, connect = started(api_connections_max=2)
    click = b'{"user_id": "u", "item_id": "i", "timestamp": 1}'
    request = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(click) + click
    busy = [connect(), connect()]
    for connection in busy:
        connection.sendall(request)
    time.sleep(0.3)
    late = connect()
    late.sendall(request)
    assert answer_of(late) == (503, problem(503, "too many connections: ask again later"))
    go_on.set()
    assert [answer_of(connection)[0] for connection in busy] == [202, 202]


def test_what_is_no_http_is_refused_in_the_same_shape(started: Started) -> None:
    _, connect = started()
    connection = connect()
    connection.sendall(b"EHLO there\r\n\r\n")
    assert answer_of(connection) == (400, problem(400, "invalid HTTP request received"))


def test_the_longest_silent_connection_makes_room_and_is_answered(started: Started) -> None:
    api, connect = started(api_connections_max=2)
    first, second = connect(), connect()
    assert httpx.get(f"{api.url}/healthz").status_code == 200
    assert answer_of(first) == (503, problem(503, "too many connections: ask again later"))
    second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer_of(second) == (200, {"status": "ok"})
