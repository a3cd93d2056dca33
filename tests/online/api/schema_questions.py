"""Asks an API everything that its /openapi.json allows and forbids, with schemathesis.

Importing schemathesis changes strategies of hypothesis for the whole process: tests of merging, which take seconds, did
not come to an end in it. So this module is imported by the one test that needs it, when it runs.
"""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.engine import events, from_schema

from benchmarks._servers import free_port
from online.api.app import create_app
from online.api.keys import make_key
from online.config.settings import Settings
from stream.events import FORGET
from stream.item_records import ItemRecord
from stream.lists import Lists, TopList, connect

KEY, ENTRY = make_key("shop")
EXAMPLES = 6  # of each operation and phase
DELAY_S = 0.005

# What the description's formats of text mean.
_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
schemathesis.openapi.format("id", _text.filter(lambda text: text not in (".", "..")))
schemathesis.openapi.format(
    "filter", st.sampled_from(["price < 3", "tags any ('a', 'b')", "available", "not brand = 'x'"])
)
schemathesis.openapi.format("objective", st.sampled_from(["p_click", "log(p_click) + 1", "min(p_click, 0.5) ** 2"]))
schemathesis.openapi.format("number", st.floats(-1e9, 1e9).map(str))
schemathesis.openapi.format("moment", st.sampled_from(["2024-11-22T00:00:00Z", "1732233600.25", "1732233600250"]))
schemathesis.openapi.format("event-type", st.text("abc-.", min_size=1, max_size=20).filter(lambda t: t != FORGET))


#: Details of 422 for what the schema allows. It cannot state rules of two query parameters together, of two records of
#: one list, of the present time, of bytes of UTF-8, or what a format means.
BEYOND_SCHEMA = re.compile(
    r'"detail": "(explore: it does not go with|.*stands twice in the list|.*ahead of this machine.s clock'
    r"|objective: at character|.*it looks like a date|.*is no ISO 8601 time"
    r"|k: at most [0-9]+ without candidates|.* bytes, it has)"
)

ONLY_FORMAT = re.compile(r"Invalid component:[^\n]*(?<=violates )`format`[^\n]*\s*$")


class Taking:
    """A producer that takes everything."""

    def send(self, *_: Any, **__: Any) -> None: ...
    def flush(self) -> None: ...


@contextmanager
def delaying(port: int) -> Iterator[int]:
    """A port that leads to another one of this machine, and passes each piece on a little later."""
    ends: list[socket.socket] = []

    def pipe(source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(65_536):
                time.sleep(DELAY_S)
                target.sendall(piece)
        except OSError:
            pass
        finally:
            target.close()

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            ends.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pipe, args=pair, daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for end in ends:
        end.close()


@contextmanager
def lists_of(kind: str, redis_server: Any) -> Iterator[Lists]:
    """Lists in a Redis that is up, slow or away."""
    top = TopList(
        items=["a", "b"], scores=[0.5, 0.1], version=1, offset="0:1", clicked_at=1, written_at=1, source="popular"
    )
    there = Lists(connect(redis_server.url), ttl_s=600)
    there.write({"ada": top}, top)
    there.items.write({"a": ItemRecord(title="A kettle", attributes={"price": 2.0})})
    if kind == "up":
        yield there
    elif kind == "away":
        yield Lists(connect(f"redis://127.0.0.1:{free_port()}/0"), ttl_s=600)
    else:
        with delaying(redis_server.port) as port:
            yield Lists(connect(f"redis://127.0.0.1:{port}/0"), ttl_s=600)


def failures(event: events.ScenarioFinished) -> Iterator[str]:
    """What a scenario has found."""
    for case, checks in event.recorder.checks.items():
        response = event.recorder.interactions[case].response
        for check in checks:
            if check.failure_info is None:
                continue
            answered = "" if response is None else response.content.decode()
            if check.name == "positive_data_acceptance" and BEYOND_SCHEMA.search(answered):
                continue
            # It takes any text for one that violates a format of ours, though nearly every text is an id.
            if check.name == "negative_data_rejection" and ONLY_FORMAT.search(str(check.failure_info.failure)):
                continue
            what = f"{check.failure_info.failure} {answered} {check.failure_info.code_sample}"
            yield f"{event.label}: {check.name}: {what}"


def ask_everything(lists: Lists, *, read_only: bool, keyed: bool) -> None:
    """Fails where an answer is not as described. `keyed`: whether the API has keys."""
    settings = Settings(api_read_only=read_only, api_keys=(ENTRY,) if keyed else (), ask_timeout_ms=10)
    app = create_app(settings, lists, None if read_only else Taking())
    headers = {"X-API-Key": KEY} if keyed else {}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    schema.config.update(headers=headers or None, continue_on_failure=True)
    # A made-up Authorization beside the right X-API-Key would be let in, and rightly: one of the two is enough.
    schema.config.generation.update(
        max_examples=EXAMPLES,
        deterministic=True,
        modes=list(GenerationMode),
        no_shrink=True,
        with_security_parameters=False,
    )
    # 503 is described: no worker answers for a user here, and Redis may be away.
    schema.config.checks.not_a_server_error.expected_statuses = ["2xx", "3xx", "4xx", "503"]
    found, asked = [], 0
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            found.append(str(event.info if isinstance(event, events.NonFatalError) else event.exception))
        if isinstance(event, events.ScenarioFinished):
            asked += len(event.recorder.cases)
            found += failures(event)
    assert asked > 200
    assert not found, "\n\n".join(dict.fromkeys(found))
