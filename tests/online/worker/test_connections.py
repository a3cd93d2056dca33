"""Which parts stand at the edges, and what is said when one of them is not there."""

import socket
import threading

import pytest

from online.config.settings import Settings
from online.worker.connections import open_lists, open_producer, open_reader, open_source, prepare_topics
from stream.embedded_redis import EmbeddedRedis
from stream.lists import ListsError
from stream.log import LogProducer
from stream.log_file import Log
from stream.merge import MergedSource
from stream.readers import LogReader
from stream.source import Partition, SourceError


@pytest.fixture
def embedded(tmp_path, free_port):
    return Settings(data_dir=tmp_path / "data", embedded_redis_port=free_port)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_broker_the_embedded_log_stands_in(embedded):
    prepare_topics(embedded)
    prepare_topics(embedded)  # nothing to do, and no harm
    producer = open_producer(embedded)
    source = open_source(embedded, ["clicks"], "group")
    reader = open_reader(embedded, "clicks")
    assert [type(part) for part in (producer, source, reader)] == [LogProducer, MergedSource, LogReader]
    producer.send("clicks", key=b"u", value=b"1")
    producer.flush()
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    assert [record.value for record in source.poll(max_records=5, timeout_s=0)] == [b"1"]
    assert reader.ends() == {Partition("clicks", 0): 1}
    assert open_reader(embedded, "clicks.dead").ends() == {Partition("clicks.dead", 0): 0}
    for part in (producer, source, reader):
        part.close()


def test_topics_that_are_there_stay_as_they_are(embedded):
    Log(embedded.log_path).ensure_topics({"clicks": 3})
    prepare_topics(embedded)
    assert len(open_reader(embedded, "clicks").ends()) == 3


def test_the_log_keeps_as_many_messages_as_the_setting_says(tmp_path):
    settings = Settings(data_dir=tmp_path, log_records_max=5)
    producer = open_producer(settings)
    for number in range(20):
        producer.send("clicks", key=None, value=b"%d" % number)
    producer.close()
    assert [record.value for record in open_reader(settings, "clicks").read()] == [b"%d" % n for n in range(15, 20)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    settings = Settings(data_dir=tmp_path / "file")
    for opening in (lambda: prepare_topics(settings), lambda: open_producer(settings)):
        with pytest.raises(SourceError) as error:
            opening()
        assert str(tmp_path / "file") in one_line(error)


def test_a_broker_that_is_not_there_is_named(tmp_path, free_port):
    settings = Settings(data_dir=tmp_path, kafka_bootstrap_servers=f"127.0.0.1:{free_port}")
    with pytest.raises(SourceError) as error:
        prepare_topics(settings)
    assert f"127.0.0.1:{free_port}" in one_line(error)


def test_lists_are_in_the_embedded_redis_that_a_worker_serves(embedded):
    with pytest.raises(ListsError) as error:
        open_lists(embedded)
    assert one_line(error) == (
        f"the embedded Redis does not answer on 127.0.0.1:{embedded.embedded_redis_port}: "
        "start `nextclick worker` or `nextclick demo`, or set NEXTCLICK_REDIS_URL"
    )
    with EmbeddedRedis(embedded.embedded_redis_port):
        lists = open_lists(embedded)
        lists.write_status({"state": "running"}, 30)
        assert open_lists(embedded).status() == {"state": "running"}


def test_a_redis_that_is_named_is_asked_before_it_is_used(tmp_path, free_port):
    settings = Settings(data_dir=tmp_path, redis_url=f"redis://user:hunter2@127.0.0.1:{free_port}/0")
    with pytest.raises(ListsError) as error:
        open_lists(settings)
    assert f"127.0.0.1:{free_port}" in one_line(error)
    assert "NEXTCLICK_REDIS_URL" in one_line(error)
    assert "hunter2" not in one_line(error)


def test_a_redis_that_refuses_the_password_says_so(tmp_path):
    """A server that answers everything as Redis answers a wrong password."""
    server = socket.create_server(("127.0.0.1", 0))

    def refuse():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                while connection.recv(4_096):
                    connection.sendall(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")

    threading.Thread(target=refuse, daemon=True).start()
    settings = Settings(data_dir=tmp_path, redis_url=f"redis://u:hunter2@127.0.0.1:{server.getsockname()[1]}/0")
    with pytest.raises(ListsError, match="refuses") as error:
        open_lists(settings)
    server.close()
    assert "hunter2" not in one_line(error)


def test_many_workers_need_kafka(embedded):
    many = embedded.model_copy(update={"workers": "many"})
    prepare_topics(many)
    with pytest.raises(SourceError, match="many workers need Kafka, set NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS"):
        open_source(many, ["clicks"], "group")


def test_a_static_member_needs_a_name(embedded):
    many = embedded.model_copy(update={"workers": "many", "static_membership": True})
    with pytest.raises(SourceError, match="NEXTCLICK_WORKER_NAME"):
        open_source(many, ["clicks"], "group")
