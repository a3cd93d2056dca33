"""A time means the same wherever it comes from: a file, a topic, `POST /click`."""

import csv
import json
from datetime import UTC, datetime

import fakeredis
import pytest
from starlette.testclient import TestClient

from online.api.app import create_app
from online.config.settings import Settings
from online.evaluation.backtest_events import read_clicks
from stream.event_files import EventFile
from stream.events import parse
from stream.lists import Lists
from tests.online.conftest import NOW

START = NOW + 0.25
SPELLINGS = {
    "seconds": lambda at: at,
    "seconds as text": str,
    "milliseconds": lambda at: round(1_000 * at),
    "milliseconds as text": lambda at: str(round(1_000 * at)),
    "microseconds": lambda at: round(1e6 * at),
    "nanoseconds": lambda at: round(1_000 * at) * 10**6,
    "ISO 8601": lambda at: datetime.fromtimestamp(at, UTC).isoformat(),
}
TIMES = [START + 60 * number for number in range(5)]


class Kept:
    def __init__(self):
        self.values = []

    def send(self, topic, *, key, value, **_):  # noqa: ARG002
        self.values.append(value)

    def flush(self):
        pass


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_in_files(tmp_path, spelling, kind):
    path = tmp_path / f"clicks.{kind}"
    rows = [{"user": f"u{n}", "item": "i", "timestamp": SPELLINGS[spelling](at)} for n, at in enumerate(TIMES)]
    with path.open("w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["user", "item", "timestamp"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    read = read_clicks(EventFile(path), Settings())
    assert not read.unreadable
    assert [click.timestamp for click in read.clicks] == TIMES


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_by_post(spelling):
    producer = Kept()
    settings = Settings(api_read_only=False)
    app = create_app(settings, Lists(fakeredis.FakeRedis(), ttl_s=60), producer)
    with TestClient(app) as api:
        for at in TIMES:
            click = {"user_id": "u", "item_id": 17.0, "timestamp": SPELLINGS[spelling](at), "value": "4.0"}
            assert api.post("/click", json=click).status_code == 202
        refused = api.post("/click", json={"user_id": "u", "item_id": "i", "timestamp": 20261128})
    assert [json.loads(value)["timestamp"] for value in producer.values] == TIMES  # what is published is in seconds
    assert [parse(value).timestamp for value in producer.values] == TIMES
    assert refused.status_code == 422
    assert "it looks like a date (YYYYMMDD)" in refused.json()["detail"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_on_the_topic(harness, spelling):
    for number, at in enumerate(TIMES):
        message = {"user_id": f"u{number}", "item_id": "i", "timestamp": SPELLINGS[spelling](at)}
        harness.broker.append("clicks", json.dumps(message).encode())
    loop = harness.run()
    assert loop.progress.learned == len(TIMES)
    assert loop.progress.latest_clicked_at_ms == int(1_000 * TIMES[-1])
