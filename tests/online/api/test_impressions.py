"""What is shown is logged with its probabilities, off the request's path, and sites can say it themselves."""

import contextlib
import json
import logging
import threading
import time

import fakeredis
import httpx
import pytest
from fastapi.testclient import TestClient

from online.api.app import create_app
from online.api.impressions import RECORDS_MAX, ImpressionLog, impression_of
from online.api.serve import Api
from online.config.settings import Settings
from online.worker.connections import open_producer, open_reader
from stream.events import Click, encode
from stream.impressions import Impression, parse
from stream.lists import Lists, TopList
from stream.questions import QuestionQueue, WireAnswer
from stream.source import SourceError, UnavailableError
from tests.online.conftest import worker_thread

SETTINGS = Settings(api_port=0, list_size=20, ask_timeout_ms=2_000, api_read_only=False)
TOP = TopList(
    items=["a", "b"], scores=[0.6, 0.4], version=3, offset="0:1", clicked_at=1, written_at=1, source="personal",
)  # fmt: skip
SHOWN = {"user_id": "ada", "timestamp": 1_732_233_600, "items": [{"item_id": "i9", "position": 1, "propensity": 0.5}]}


class Topic:
    """A producer that keeps what was sent; `error` is raised while it is set."""

    def __init__(self):
        self.sent, self.error = [], None

    def send(self, topic, *, key, value):
        if self.error is not None:
            raise self.error
        self.sent.append((topic, key, parse(value)))

    def flush(self):
        pass

    def close(self):
        pass


class Worker:
    """Answers with two items; with propensities where the question explores."""

    def __init__(self, server):
        self.queue, self.asked, self.ends = QuestionQueue(fakeredis.FakeRedis(server=server)), [], False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.ends:
            for wire in self.queue.take(0.05):
                self.asked.append(wire)
                drawn = {"propensities": [0.7, 0.25], "drawn": [False, True]} if wire.explore else {}
                answer = WireAnswer(id=wire.id, items=["x", "y"], scores=[0.7, 0.1], version=4, at=9.5, **drawn)
                self.queue.answer([(wire.asker, answer)])


@pytest.fixture
def lists():
    lists = Lists(fakeredis.FakeRedis(server=fakeredis.FakeServer()), ttl_s=60)
    lists.write({"ada": TOP}, TOP)
    lists.write_status({"state": "running"}, 60)
    return lists


@pytest.fixture
def topic():
    return Topic()


@pytest.fixture
def worker(lists):
    worker = Worker(lists.client.connection_pool.connection_kwargs["server"])
    yield worker
    worker.ends = True
    worker.thread.join()


@pytest.fixture
def new_api(lists, topic):
    apps = []

    def make(**settings):
        apps.append(create_app(SETTINGS.model_copy(update=settings), lists, topic))
        return TestClient(apps[-1], raise_server_exceptions=False)

    yield make
    for app in apps:
        app.state.ranking.close()


def eventually(condition, within_s=10):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counted(api, result):
    lines = api.get("/metrics").text.splitlines()
    name = f'nextclick_impressions_total{{result="{result}"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


# Explored


def test_an_explored_list_says_how_likely_it_was_and_is_logged(new_api, worker, topic):
    api = new_api(explore_temperature=0.5)
    body = api.post("/rank", json={"user_id": "ada", "explore": 0.1, "request_id": "r-1"}).json()
    assert (body["explored"], body["propensities"], body["request_id"]) == (True, [0.7, 0.25], "r-1")
    wire = worker.asked[0]
    assert (wire.explore, wire.temperature, wire.request_id) == (0.1, 0.5, "r-1")
    eventually(lambda: counted(api, "logged") == 1)
    ((name, key, logged),) = topic.sent
    assert (name, key) == ("nextclick.impressions", b"ada")
    assert (logged.request_id, logged.user_id, logged.version, logged.explored) == ("r-1", "ada", 4, True)
    assert logged.policy == "explore=0.1,temperature=0.5"
    assert abs(logged.timestamp - time.time()) < 60
    found = [(one.item_id, one.position, one.propensity, one.explored, one.reward) for one in logged.items]
    assert found == [("x", 1, 0.7, False, None), ("y", 2, 0.25, True, None)]


@pytest.mark.usefixtures("worker")
def test_a_request_without_an_id_gets_one_and_a_visitor_has_no_key(new_api, topic):
    api = new_api(explore=0.2)
    one, other = (api.post("/rank", json={}).json()["request_id"] for _ in range(2))
    assert len(one) == len(other) == 32
    assert one != other
    eventually(lambda: len(topic.sent) == 2)
    assert {(key, logged.request_id) for _, key, logged in topic.sent} == {(None, one), (None, other)}


@pytest.mark.parametrize(
    ("setting", "path", "explores"),
    [
        (0.2, "/recommend/ada?fresh=true", 0.2),
        (0.2, "/recommend/ada?fresh=true&explore=0", 0.0),
        (0.0, "/recommend/ada?explore=0.5", 0.5),
        (0.2, "/recommend/ada?diversity=0.5", 0.0),
        (0.2, "/recommend/ada?max_per_tag=1", 0.0),
        (0.2, "/popular", 0.0),
    ],
)
def test_the_setting_holds_unless_the_request_says_otherwise(  # noqa: PLR0917 - fixtures
    new_api, worker, topic, setting, path, explores
):
    api = new_api(explore=setting)
    body = api.get(path).json()
    assert body["source"] == "asked"
    assert worker.asked[0].explore == explores
    assert (body["explored"], body["propensities"] is None) == (explores > 0, explores == 0)
    if explores:
        eventually(lambda: topic.sent)
    assert len(topic.sent) == (explores > 0)


def test_a_stored_list_is_not_explored(new_api, topic):  # no worker answers
    body = new_api(explore=0.5, ask_timeout_ms=20).post("/rank", json={"user_id": "ada"}).json()
    assert (body["source"], body["explored"], body["propensities"]) == ("stored", False, None)
    assert topic.sent == []


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"explore": 1.5}, "explore: Input should be less than or equal to 1"),
        ({"explore": -0.1}, "explore: Input should be greater than or equal to 0"),
        ({"explore": "0.1"}, "explore: Input should be a valid number"),
        ({"explore": 0.1, "diversity": 0.2}, "explore: it does not go with diversity or max_per_tag"),
        ({"explore": 0.1, "max_per_tag": 2}, "explore: it does not go with diversity or max_per_tag"),
        ({"request_id": "ä" * 150}, "request_id: it has at most 256 bytes, this one has 300"),
    ],
)
def test_a_wrong_question_is_named(new_api, body, line):
    answer = new_api().post("/rank", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (422, line)


def test_wrong_parameters_are_named(new_api):
    for query, line in (("explore=2", "explore: Input"), ("explore=1&diversity=1", "explore: it does not go with")):
        answer = new_api().get(f"/recommend/ada?{query}")
        assert (answer.status_code, answer.json()["detail"][: len(line)]) == (422, line)


# Which lists are logged


@pytest.mark.usefixtures("worker")
def test_all_lists_can_be_logged_and_those_that_are_certain_have_propensity_1(new_api, topic):
    api = new_api(log_impressions="all")
    api.get("/popular")
    body = api.post("/rank", json={"user_id": "ada"}).json()
    assert body["propensities"] is None
    eventually(lambda: topic.sent)
    ((_, _, logged),) = topic.sent
    assert (logged.request_id, logged.policy, logged.explored) == (body["request_id"], "explore=0", False)
    assert [one.propensity for one in logged.items] == [1.0, 1.0]


@pytest.mark.parametrize("settings", [{"log_impressions": "none"}, {"api_read_only": True}])
@pytest.mark.usefixtures("worker")
def test_none_or_a_read_only_api_logs_nothing(new_api, topic, settings):
    api = new_api(explore=1.0, **settings)
    assert api.post("/rank", json={"user_id": "ada"}).json()["propensities"] == [0.7, 0.25]
    api.app.state.ranking.close()
    assert topic.sent == []


# The log itself


def shown(number):
    return impression_of(
        request_id=f"r{number}", user_id=None, version=1, items=["a"], explore=0.1, temperature=1.0,
        propensities=[0.5], drawn=[True],
    )  # fmt: skip


def test_lists_wait_while_the_broker_is_away_and_those_too_many_are_counted(topic, caplog):
    counts = {"logged": 0, "dropped": 0}
    caplog.set_level(logging.WARNING, "online.api.impressions")
    topic.error = UnavailableError("the broker is away")
    log = ImpressionLog(
        SETTINGS.model_copy(update={"impressions_waiting_max": 3}), topic,
        lambda result, number: counts.update({result: counts[result] + number}),
    )  # fmt: skip
    log.put(shown(0))
    eventually(lambda: "the broker is away" in caplog.text)  # the thread holds the first
    for number in range(1, 6):
        log.put(shown(number))
    assert counts["dropped"] == 2
    assert "impressions are lost" in caplog.text
    topic.error = None
    eventually(lambda: counts["logged"] == 4)
    log.close()
    assert [one.request_id for _, _, one in topic.sent] == ["r0", "r1", "r2", "r3"]


def test_what_the_broker_refuses_or_is_left_at_the_end_is_counted(topic):
    counts = {"logged": 0, "dropped": 0}

    def count(result, number):
        counts[result] += number

    topic.error = SourceError("not allowed")
    log = ImpressionLog(SETTINGS, topic, count)
    log.put(shown(0))
    eventually(lambda: counts["dropped"] == 1)
    topic.error = UnavailableError("away")
    log.put(shown(1))
    log.close()
    eventually(lambda: counts["dropped"] == 2)
    log.close()


# What sites post


def test_a_site_s_record_is_published_under_its_user(new_api, topic):
    api = new_api()
    full = {**SHOWN, "request_id": "r-1", "policy": "mine", "version": 2, "explored": True}
    answer = api.post("/impressions", json=full)
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted", "accepted": 1})
    assert topic.sent == [("nextclick.impressions", b"ada", parse(answer.request.content))]
    assert counted(api, "accepted") == 1


def test_what_a_site_does_not_know_may_be_left_out(new_api, topic):
    items = [{"item_id": 7, "position": 1}, {"item_id": "b", "position": 2, "propensity": None}]
    answer = new_api().post("/impressions", json=[{"timestamp": 1e9, "items": items}, {**SHOWN, "policy": None}])
    assert answer.json() == {"status": "accepted", "accepted": 2}
    (_, key, one), (_, _, other) = topic.sent
    assert isinstance(one, Impression)
    assert (key, one.user_id, one.policy, one.version, one.explored) == (None, None, "unknown", 0, False)
    assert [(item.item_id, item.propensity) for item in one.items] == [("7", None), ("b", None)]
    assert len(one.request_id) == 32
    assert one.request_id != other.request_id


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({**SHOWN, "timestamp": None}, "timestamp: is missing or null"),
        ({**SHOWN, "timestamp": 4_000_000_000}, "timestamp"),
        ({**SHOWN, "items": []}, "items: "),
        ({**SHOWN, "items": [{"item_id": "a"}]}, "items[0].position: is missing or null"),
        ({**SHOWN, "items": [{"item_id": "a", "position": 1, "propensity": 0}]}, "items[0].propensity: "),
        ({**SHOWN, "version": -1}, "version: "),
        ({**SHOWN, "user_id": ""}, "user_id: "),
        ([SHOWN, {**SHOWN, "items": [{"position": 1}]}], "[1].items[0].item_id: is missing or null"),
        ([SHOWN, 3], "[1].an impression is a JSON object"),
        ([], "a list of 1 to 100 impressions is taken, this one has 0"),
        ([SHOWN] * (RECORDS_MAX + 1), "a list of 1 to 100 impressions is taken, this one has 101"),
        ("x", "a JSON object is needed"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_published(new_api, topic, body, line):
    answer = new_api().post("/impressions", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(line)
    assert topic.sent == []


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b'[{"user_id": "\\ud800"}]', "application/json", 422),
        (b"{}", "text/plain", 415),
        (b" " * 2_000_000, "application/json", 413),
    ],
)
def test_what_is_no_json_is_refused(new_api, topic, content, kind, status):
    answer = new_api().post("/impressions", content=content, headers={"content-type": kind})
    assert (answer.status_code, topic.sent) == (status, [])
    assert answer.json()["detail"]


def test_the_broker_s_absence_is_said(new_api, topic):
    topic.error = UnavailableError("the broker is away")
    answer = new_api().post("/impressions", json=SHOWN)
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "the broker takes nothing now: ask again later; the API's log says why",
    )


def test_read_only_takes_none(new_api, topic):
    assert new_api(api_read_only=True).post("/impressions", json=SHOWN).status_code == 403
    assert topic.sent == []


def test_the_description_is_of_what_is_taken(new_api):
    spec = new_api().get("/openapi.json").json()["paths"]["/v1/impressions"]["post"]
    one, many = spec["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert set(one["properties"]) == set(Impression.model_fields)
    assert many["maxItems"] == RECORDS_MAX
    assert "$ref" not in str(one)


# From a real worker to an evaluation


def test_what_a_worker_draws_is_logged_and_evaluated_in_one_command(small, tmp_path, free_port, town_clicks, command):
    folder = tmp_path / "data"
    settings = small(
        data_dir=folder, embedded_redis_port=free_port, api_port=0, status_interval_s=0.05, api_read_only=False,
        explore=0.5, ask_timeout_ms=10_000, list_size=5,
    )  # fmt: skip
    with contextlib.closing(open_producer(settings)) as producer, worker_thread(settings) as lists:
        for click in town_clicks[:60]:
            producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
        producer.flush()
        eventually(lambda: (lists.status() or {}).get("learned", 0) >= 60, 60)
        with contextlib.closing(Api(settings, lists, producer).start()) as api:
            answers = []
            for number in range(40):
                body = {"user_id": f"new-{number}", "k": 2, "request_id": f"r{number}"}
                answers.append(httpx.post(f"{api.url}/rank", json=body, timeout=30).json())
                assert answers[-1]["source"] == "asked"
            again = httpx.post(f"{api.url}/rank", json=body | {"explore": 0.5}, timeout=30).json()
            assert (again["items"], again["propensities"]) == (answers[-1]["items"], answers[-1]["propensities"])
        now = time.time()
        for number in range(0, 40, 2):
            click = Click(user_id=f"new-{number}", item_id=answers[number]["items"][0], timestamp=now)
            producer.send(settings.clicks_topic, key=b"u", value=encode(click))
    with contextlib.closing(open_reader(settings, settings.impressions_topic)) as reader:
        logged = {record.request_id: record for record in map(parse, (one.value for one in reader.read()))}
    for answer in answers:
        items = logged[answer["request_id"]].items
        assert [one.item_id for one in items] == answer["items"]
        assert [one.propensity for one in items] == answer["propensities"]
    code, shown, _ = command("evaluate-policy", "--topic", "--policy", "uniform", "--json", "--data-dir", str(folder))
    found = json.loads(shown)
    assert (code, found["rows"], found["on_policy"]["value"]) == (0, 80, 0.25)
    assert "1 of 41 lists repeat a request_id: left out" in found["remarks"]
