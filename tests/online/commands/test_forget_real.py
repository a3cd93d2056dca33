"""Forgetting on Apache Kafka and redis-server, while the worker runs, and again from the beginning of the topic."""

import pytest

from online.commands.dead_letters import run_dead_letters
from online.commands.forget import forget
from online.config.settings import Settings
from online.worker.connections import open_lists
from stream.user_ids import user_ids_in
from tests.online.commands.test_forget import BROKEN, WAIT_S, clicks, publish, values
from tests.online.conftest import SMALL, worker_thread

LONG = "somebody-with-a-long-name-" * 6


@pytest.fixture
def settings(tmp_path, kafka_broker, redis_server):
    where = {"kafka_bootstrap_servers": kafka_broker.bootstrap_servers, "redis_url": redis_server.url}
    topics = {
        name: f"{tmp_path.name}-{name.replace('_', '.')}" for name in ("clicks_topic", "items_topic", "events_topic")
    }
    topics |= {"dead_letters_topic": f"{tmp_path.name}.dead", "consumer_group": tmp_path.name}
    quick = {"checkpoint_interval_s": 0.5, "status_interval_s": 0.0, "forget_checkpoints_s": 1.0, "topic_partitions": 3}
    return Settings(**{**SMALL, "data_dir": tmp_path / "data", **where, **topics, **quick})


@pytest.mark.real
def test_forgotten_live_and_again_when_all_is_read_from_the_beginning(settings, tmp_path):
    publish(settings, clicks(), BROKEN)
    with worker_thread(settings):
        proof = forget(settings, "u1", timeout_s=WAIT_S)
        assert proof.complete, proof.as_dict()
        assert any("memory" in name for name in proof.found)
        assert "8 messages about the user on the topic" in proof.clicks
        assert "retention.ms is 604,800,000" in proof.clicks
        assert "u1" not in set(open_lists(settings).users())
        letters = values(settings, settings.dead_letters_topic)
        assert sorted(letters) == [b"{", b'{"user_id": "u11"}']
        assert any(b"forgotten" in value for value in values(settings, settings.events_topic))
    anew = settings.model_copy(update={"data_dir": tmp_path / "anew", "consumer_group": f"{tmp_path.name}-anew"})
    with worker_thread(anew):  # knows nothing, and reads the clicks that Kafka still has
        again = forget(anew, "u11", timeout_s=WAIT_S)
        assert again.complete, again.as_dict()
        lists = open_lists(anew)
        assert {"u1", "u11"}.isdisjoint(lists.users())
        assert not any(user_ids_in(None, value) & {"u1", "u11"} for value in values(anew, anew.dead_letters_topic))


@pytest.mark.real
def test_a_click_that_was_too_long_is_redriven_and_learned_under_a_higher_limit(settings, capsys):
    from rich.console import Console  # noqa: PLC0415

    publish(settings, clicks(("u11",)))
    strict = settings.model_copy(update={"message_bytes_max": 200})  # a longer click is a dead letter
    long = clicks((LONG,), 2)
    publish(strict, long)
    with worker_thread(strict):
        assert forget(strict, "u1", timeout_s=WAIT_S).complete
    assert len(values(settings, settings.dead_letters_topic)) == 2
    options = {"reason": "too-large", "topic": None, "since": "1h", "limit": 10, "as_json": True, "send": True}
    for sent in (2, 0):
        run_dead_letters(Console(), settings, **options, repaired=None, again=False, dry_run=False)
        assert f'"sent": {sent}' in capsys.readouterr().out
    with worker_thread(settings):
        assert forget(settings, "u1", timeout_s=WAIT_S).complete
        assert LONG in set(open_lists(settings).users())
