"""Lists that are asked for: from the worker where it answers in time, else what is stored, and never an error."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fakeredis
import httpx
import pytest
from fastapi.testclient import TestClient

from online.api.app import create_app
from online.api.questions import RankRequest
from online.api.serve import Api
from online.config.settings import Settings
from online.worker.connections import open_producer
from stream.events import encode
from stream.lists import Lists, TopList
from stream.questions import QUESTIONS_KEY, QuestionQueue, WireAnswer, partition_of_key
from tests.online.conftest import worker_thread

SETTINGS = Settings(api_port=0, list_size=20, ask_timeout_ms=2_000)
QUICK = SETTINGS.model_copy(update={"ask_timeout_ms": 50})
WRITTEN = TopList(
    items=["a", "b", "c", "d"], scores=[0.4, 0.3, 0.2, 0.1], version=3, offset="0:1", clicked_at=1,
    written_at=int(time.time() * 1_000) - 500, source="personal",
)  # fmt: skip


def one_item(wire):
    return WireAnswer(id=wire.id, items=["x"], scores=[0.9], at=5.0)


class FakeWorker:
    """Answers with what `answer` returns of each question; None: never."""

    def __init__(
        self, server, name=None, answer=lambda wire: WireAnswer(id=wire.id, items=["x"], scores=[0.9], at=5.0)
    ):
        self.queue = QuestionQueue(fakeredis.FakeRedis(server=server), name)
        self.answer, self.asked = answer, []
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._closing:
            taken = self.queue.take(0.1)
            self.asked += taken
            answers = [(wire.asker, answer) for wire in taken if (answer := self.answer(wire)) is not None]
            if answers:
                self.queue.answer(answers)

    def close(self):
        self._closing = True
        self._thread.join()


@pytest.fixture
def server():
    return fakeredis.FakeServer()


@pytest.fixture
def lists(server):
    lists = Lists(fakeredis.FakeRedis(server=server), ttl_s=60)
    lists.write({"ada": WRITTEN}, WRITTEN.model_copy(update={"items": ["p", "q"], "scores": [0.6, 0.4]}))
    lists.write_status({"state": "running"}, 60)
    return lists


@pytest.fixture
def new_api(lists):
    apis = []

    def make(settings=SETTINGS):
        app = create_app(settings, lists)
        apis.append(app)
        return TestClient(app, raise_server_exceptions=False)

    yield make
    for app in apis:
        app.state.ranking.asker.close()


@pytest.fixture
def new_worker(server):
    workers = []

    def make(*given, **others):
        workers.append(FakeWorker(server, *given, **others))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


# Asked


def test_a_question_reaches_the_worker_whole_and_its_answer_comes_back(new_api, new_worker):
    worker = new_worker(
        answer=lambda wire: WireAnswer(
            id=wire.id, items=["x", "y"], scores=[0.7, 0.1], version=4, at=9.5, known=True, widened=True,
            dropped={"filter": 3},
        )
    )  # fmt: skip
    body = {
        "user_id": "ada", "recent": ["i", {"item_id": "j", "timestamp": 1_700_000_000_500}], "candidates": ["x", "y"],
        "at": "2024-11-22T00:00:00Z", "k": 40, "exclude": ["z"], "where": "price <= 20", "diversity": 0.5,
        "max_per_tag": 2, "explain": True, "request_id": "r-1", "objective": "p_click ** 2",
    }  # fmt: skip
    answer = new_api().post("/rank", json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "user_id": "ada", "items": ["x", "y"], "scores": [0.7, 0.1], "source": "asked", "version": 4, "at": 9.5,
        "known": True, "widened": True, "filtered": True, "dropped": {"filter": 3}, "explanations": None, "age_ms": 0,
        "request_id": "r-1", "explored": False, "propensities": None,
    }  # fmt: skip
    (wire,) = worker.asked
    expected = body | {"recent": [("i", None), ("j", 1_700_000_000.5)], "at": 1_732_233_600.0}
    assert {name: getattr(wire, name) for name in body} == expected


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/recommend/ada?fresh=true&k=3", {"kind": "rank", "user_id": "ada", "k": 3}),
        ("/recommend/ada?where=price<3", {"where": "price<3"}),
        ("/recommend/ada?exclude=a,1&exclude=b", {"exclude": ["a,1", "b"]}),
        ("/recommend/ada?diversity=0.25", {"diversity": 0.25}),
        ("/recommend/ada?objective=log(p_click)", {"kind": "rank", "objective": "log(p_click)"}),
        ("/popular?k=2&exclude=a", {"kind": "popular", "user_id": None, "k": 2, "exclude": ["a"]}),
        ("/trending?where=available", {"kind": "trending", "where": "available"}),
        ("/latest", {"kind": "latest", "k": 10}),
    ],
)
def test_lists_can_be_asked_for_by_address_alone(new_api, new_worker, path, fields):
    worker = new_worker()
    body = new_api().get(path).json()
    assert (body["source"], body["items"]) == ("asked", ["x"])
    assert {name: getattr(worker.asked[0], name) for name in fields} == fields


def test_a_plain_list_is_read_from_redis_as_ever(new_api, new_worker):
    worker = new_worker()
    body = new_api().get("/recommend/ada?k=2").json()
    assert (body["items"], body["source"], body["offset"]) == (["a", "b"], "personal", "0:1")
    assert worker.asked == []


def test_the_owner_of_the_users_partition_is_asked(new_api, new_worker, server):
    fakeredis.FakeRedis(server=server).delete("nextclick:status")
    for name, owned in (("w1", [0]), ("w2", [1])):
        named = Lists(fakeredis.FakeRedis(server=server), ttl_s=60, worker=name)
        named.write_status({"state": "running", "group": {"partitions": [0, 1], "owned": owned}}, 60)
    workers = {0: new_worker("w1"), 1: new_worker("w2")}
    api = new_api()
    for user in map(str, range(8)):
        assert api.post("/rank", json={"user_id": user}).json()["source"] == "asked"
        assert workers[partition_of_key(user.encode(), 2)].asked[-1].user_id == user


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        ("p_click *", "objective: at character 10: expected a number"),
        ("p_like", "objective: at character 1: nothing is called 'p_like'; there are p_click, p_buy, value, worth"),
    ],
)
def test_a_wrong_objective_is_refused_with_one_line(new_api, new_worker, objective, line):
    new_worker()
    api = new_api(SETTINGS.model_copy(update={"event_weights": "buy=5"}))
    for answer in (
        api.post("/rank", json={"user_id": "ada", "objective": objective}),
        api.get("/recommend/ada", params={"objective": objective}),
    ):
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(line)
    assert api.post("/rank", json={"user_id": "ada", "objective": "p_click * p_buy"}).json()["source"] == "asked"


def test_without_weights_a_request_is_told_what_gives_more_names(new_api):
    answer = new_api().post("/rank", json={"objective": "p_buy"})
    assert answer.json()["detail"] == (
        "objective: at character 1: nothing is called 'p_buy'; there are p_click (NEXTCLICK_EVENT_WEIGHTS gives more)"
    )


# Not asked


def test_a_stored_list_says_that_it_does_not_go_by_the_requests_objective(new_api, new_worker):
    new_worker(answer=lambda _: None)
    body = new_api(QUICK).post("/rank", json={"user_id": "ada", "objective": "p_click ** 2"}).json()
    assert (body["source"], body["items"], body["filtered"]) == ("stored", ["a", "b", "c", "d"], False)


def test_a_worker_that_answers_too_late_or_wrongly_costs_no_list(new_api, new_worker):
    api = new_api(QUICK)
    new_worker(answer=lambda _: None)
    body = api.post("/rank", json={"user_id": "ada", "exclude": ["b", "z"], "k": 2}).json()
    assert (body["source"], body["items"], body["scores"], body["dropped"]) == (
        "stored", ["a", "c"], [0.4, 0.2], {"excluded": 1},
    )  # fmt: skip
    assert body["filtered"]
    assert body["age_ms"] >= 500
    assert api.post("/rank", json={"user_id": "stranger"}).json()["source"] == "popular"
    assert api.get("/trending").json()["items"] == ["p", "q"]


def test_an_internal_error_of_the_worker_costs_no_list(new_api, new_worker):
    new_worker(answer=lambda wire: WireAnswer(id=wire.id, error="internal error: KeyError"))
    assert new_api().post("/rank", json={"user_id": "ada"}).json()["source"] == "stored"


def test_what_the_worker_refuses_is_the_requests_fault(new_api, new_worker):
    new_worker(answer=lambda wire: WireAnswer(id=wire.id, error="where: no item has it", refused=True))
    answer = new_api().post("/rank", json={"where": "colour = 'red'"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "where: no item has it")


def test_without_a_worker_nobody_waits_and_a_filter_gives_no_wrong_items(new_api, server):
    fakeredis.FakeRedis(server=server).delete("nextclick:status")
    api = new_api(SETTINGS.model_copy(update={"ask_timeout_ms": 60_000}))
    body = api.post("/rank", json={"user_id": "ada", "where": "price < 3"}).json()
    assert (body["source"], body["items"], body["filtered"]) == ("stored", [], False)
    body = api.post("/rank", json={"user_id": "ada", "candidates": ["z", "c", "a", "z", "y"], "exclude": ["y"]}).json()
    assert (body["items"], body["scores"]) == (["a", "c", "z"], [0.4, 0.2, 0.0])
    assert fakeredis.FakeRedis(server=server).llen(QUESTIONS_KEY) == 0


def test_a_full_queue_gives_the_stored_list_at_once(new_api, server):
    redis = fakeredis.FakeRedis(server=server)
    redis.rpush(QUESTIONS_KEY, *map(str, range(5)))
    api = new_api(SETTINGS.model_copy(update={"ask_timeout_ms": 60_000, "ask_waiting_max": 5}))
    assert api.post("/rank", json={"user_id": "ada"}).json()["source"] == "stored"
    assert redis.lrange(QUESTIONS_KEY, 0, -1) == [b"0", b"1", b"2", b"3", b"4"]


def test_nothing_learned_is_said(server):
    app = create_app(QUICK, Lists(fakeredis.FakeRedis(server=server), ttl_s=60))
    with TestClient(app) as api:
        answer = api.post("/rank", json={})
    assert answer.status_code == 503
    assert "nothing has been learned yet" in answer.json()["detail"]
    app.state.ranking.asker.close()


# Bad input


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"foo": 1}, "foo: there is no such field"),
        ({"k": 0}, "k: Input should be greater than or equal to 1"),
        ({"k": 21}, "k: at most 20 without candidates (NEXTCLICK_LIST_SIZE)"),
        ({"k": 1_001, "candidates": ["a"]}, "k: Input should be less than or equal to 1000"),
        ({"k": "3"}, "k: Input should be a valid integer"),
        ({"k": True}, "k: Input should be a valid integer"),
        ({"user_id": "x" * 300}, "user_id: an id has 1 to 256 bytes, this one has 300"),
        ({"user_id": ""}, "user_id: an id has 1 to 256 bytes, this one has 0"),
        ({"user_id": 3}, "user_id: an id is text"),
        ({"candidates": ["a"] * 10_000}, "candidates: List should have at most 1000 items"),
        ({"candidates": []}, "candidates: name at least one item, or leave them out"),
        ({"candidates": ["a", "b" * 300]}, "candidates[1]: an id has 1 to 256 bytes, this one has 300"),
        ({"recent": [3]}, "recent[0]: Input should be"),
        ({"recent": [{"item_id": "a", "when": 3}]}, "recent[0].when: there is no such field"),
        ({"recent": ["a"] * 257}, "recent: List should have at most 256 items"),
        ({"where": "price <"}, "where: at character 8: expected a number"),
        ({"where": "(" * 5_000}, "where: "),
        ({"at": "yesterday"}, "at: is no ISO 8601 time"),
        ({"at": -5}, "at: "),
        ({"at": 4_000_000_000}, "at: "),
        ({"diversity": 2}, "diversity: Input should be less than or equal to 1"),
        ({"exclude": "a"}, "exclude: Input should be a valid array"),
        ({"request_id": "r" * 201}, "request_id: String should have at most 200 characters"),
        ([], "the body is no JSON object"),
        ({str(n): n for n in range(500)}, "; and 497 more"),
    ],
)
def test_a_wrong_question_is_answered_by_one_line_that_names_the_field(new_api, body, line):
    answer = new_api().post("/rank", json=body)
    assert answer.status_code == 422
    assert line in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 1_000
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b'{"user_id": "\\ud800"}', "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"{}", "text/plain", 415),
        (b" " * 2_000_000, "application/json", 413),
        (b'{"at": NaN}', "application/json", 422),
        (b'{"at": 1e999}', "application/json", 422),
    ],
)
def test_what_is_no_question_is_refused(new_api, content, kind, status):
    answer = new_api().post("/rank", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/popular?k=0", "k: "),
        ("/latest?k=21", "k: "),
        ("/trending?where=price<", "where: at character 7"),
        ("/recommend/ada?fresh=maybe", "fresh: "),
        ("/recommend/ada?diversity=7", "diversity: "),
        ("/recommend/ada?where=", "where: "),
        (f"/recommend/ada?exclude={'x' * 300}", "exclude: an id has 1 to 256 bytes, this one has 300"),
    ],
)
def test_wrong_parameters_are_named(new_api, path, line):
    answer = new_api().get(path)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(line)


def test_the_description_is_of_what_is_taken_and_answered(new_api):
    spec = new_api().get("/openapi.json").json()
    schema = spec["paths"]["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(RankRequest.model_fields)
    assert schema["additionalProperties"] is False
    assert "$ref" not in json.dumps(schema)
    answer = spec["paths"]["/v1/rank"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert answer.endswith("/Ranked")
    assert {"/v1/popular", "/v1/trending", "/v1/latest", "/v1/recommend/{user}"} <= {
        path.replace(":text", "") for path in spec["paths"]
    }


# A real worker


def test_a_thousand_questions_at_once_get_no_error(small, tmp_path, free_port, town_clicks):
    settings = small(data_dir=tmp_path / "data", embedded_redis_port=free_port, api_port=0, status_interval_s=0.05)
    producer = open_producer(settings)
    for click in town_clicks[:120]:
        producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
    producer.close()

    async def all_at_once(url, count):
        free = asyncio.Semaphore(100)  # httpx takes long to look through more that wait

        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=100), timeout=60) as client:

            async def one(user):
                async with free:
                    return await client.post("/rank", json={"user_id": user})

            return await asyncio.gather(*(one(town_clicks[n % 120].user_id) for n in range(count)))

    with worker_thread(settings) as lists:
        deadline = time.monotonic() + 60
        while (lists.status() or {}).get("learned", 0) < 120:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        api = Api(settings.model_copy(update={"ask_timeout_ms": 5_000}), lists).start()
        try:
            body = httpx.post(f"{api.url}/rank", json={"user_id": town_clicks[0].user_id, "k": 3}).json()
            assert (body["source"], body["known"], len(body["items"])) == ("asked", True, 3)
            with ThreadPoolExecutor(1) as pool:
                answers = pool.submit(lambda: asyncio.run(all_at_once(api.url, 1_000))).result()
            assert {answer.status_code for answer in answers} == {200}
            sources = [answer.json()["source"] for answer in answers]
            assert set(sources) <= {"asked", "stored"}
            assert "asked" in sources
        finally:
            api.close()
