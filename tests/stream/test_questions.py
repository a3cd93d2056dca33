"""Questions and answers cross Redis whole and in order, a queue is bounded, and each user's owner is found."""

import time

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import DefaultPartitioner
from kafka.partitioner.default import murmur2 as kafkas
from pydantic import ValidationError

from stream.lists import Lists, connect
from stream.questions import (
    QUESTIONS_KEY,
    QuestionQueue,
    Routes,
    WireAnswer,
    WireQuestion,
    murmur2,
    partition_of_key,
    questions_key,
)


@pytest.fixture
def client():
    return fakeredis.FakeRedis()


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.real)])
def any_client(request):
    if request.param == "embedded":
        return fakeredis.FakeRedis()
    client = connect(request.getfixturevalue("redis_server").url)
    client.flushall()
    return client


def question(number=1, **fields):
    return WireQuestion(id=number, asker="me", asked_at=time.time(), timeout_ms=100, **fields)


@given(st.binary(max_size=300))
def test_a_key_has_the_hash_that_kafkas_clients_give_it(key):
    assert murmur2(key) == kafkas(key)


@given(st.text(min_size=1, max_size=50), st.integers(1, 50))
def test_a_user_has_the_partition_that_the_producer_chooses(user, partitions):
    class Cluster:
        def topics(self):
            return {"clicks"}

        def partitions_for_topic(self, _):
            return set(range(partitions))

        available_partitions_for_topic = partitions_for_topic

    key = user.encode("utf-8", "replace")
    chosen = DefaultPartitioner().partition("clicks", user, key, None, None, Cluster())
    assert partition_of_key(key, partitions) == chosen


def check_round_trip(client):
    asker, worker = QuestionQueue(client), QuestionQueue(client, "w1")
    asked = [question(n, user_id=f"u{n}", recent=[("i", None), ("j", 2.5)], where="a = 'ü'") for n in range(3)]
    assert asker.put([("w1", one) for one in asked], 10) == [True] * 3
    assert worker.take(0.5) == asked
    assert QuestionQueue(client).take(0.01) == []
    answers = [WireAnswer(id=n, items=["ü"], scores=[0.5], dropped={"filter": 2}) for n in range(3)]
    worker.answer([("me", answers[0]), ("you", answers[1]), ("me", answers[2])])
    assert asker.answers("me", 0.5) == [answers[0], answers[2]]
    assert asker.answers("you", 0.5) == [answers[1]]
    assert asker.put([("w1", one) for one in asked], 2) == [True, True, False]
    assert worker.take(0.5) == asked[:2]
    asker.put([(None, question(9))], 5)
    assert 0 < client.pttl(QUESTIONS_KEY) <= 1_000  # nothing of a user stays


def test_questions_and_answers_cross_redis(any_client):
    check_round_trip(any_client)


@pytest.mark.real
def test_they_cross_a_cluster(redis_cluster):
    check_round_trip(connect(redis_cluster.url))


def test_what_is_no_question_is_left_out_and_harms_no_other(client):
    client.rpush(QUESTIONS_KEY, b"\xff", b"[]", b'{"id": 1}', question(2).model_dump_json(), b"x" * 100_000)
    taken = QuestionQueue(client).take(0.1)
    assert [one and one.id for one in taken] == [None, None, None, 2, None]


@pytest.mark.parametrize(
    "fields",
    [{"k": 0}, {"k": "3"}, {"foo": 1}, {"candidates": ["i"] * 1_001}, {"diversity": 2.0}, {"at": float("nan")}],
)
def test_a_question_is_read_strictly(fields):
    with pytest.raises(ValidationError):
        question(**fields)


def test_queues_are_no_obstacle_where_a_users_traces_are_looked_for(client):
    QuestionQueue(client).put([(None, question(user_id="ada"))], 5)
    assert Lists(client, ttl_s=9).keys_naming("ada") == 0


def test_the_owner_of_a_users_partition_is_asked_and_any_worker_for_a_visitor():
    routes = Routes({0: "a", 1: "b", 2: None})
    users = [f"u{n}" for n in range(50)]
    for user in users:
        owner = {0: "a", 1: "b"}.get(partition_of_key(user.encode(), 3))
        if owner is None:
            with pytest.raises(LookupError):
                routes.worker_for(user)
        else:
            assert routes.worker_for(user) == owner
    assert {routes.worker_for(None) for _ in range(4)} == {"a", "b"}
    assert Routes({}).worker_for("ada") is None
    with pytest.raises(LookupError):
        Routes({0: None}).worker_for(None)
    assert questions_key(None) == "nextclick:questions"
    assert questions_key("a") == "nextclick:questions:a"
