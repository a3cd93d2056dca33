"""Which parts stand at the edges: Kafka and Redis where the settings name them, the embedded ones elsewhere.

Whatever opens one raises SettingsError too, where a certificate or key cannot be used.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from online.config.clients import kafka_options, redis_options
from online.config.settings import Settings
from online.worker.event_time import event_time
from online.worker.items_feed import ItemsFeed
from stream.eraser import Eraser, KafkaEraser, LogEraser, retention_ms
from stream.kafka import ACKNOWLEDGE_S_MAX, KafkaProducer, KafkaSource, ensure_topics
from stream.kafka_group import group_origin
from stream.lists import Lists, ListsError, connect
from stream.log import LogProducer, LogSource
from stream.log_file import Log
from stream.merge import MergedSource
from stream.notices import NoticeWriter
from stream.origin import EMBEDDED, Origin
from stream.readers import KafkaReader, LogReader, TopicReader
from stream.source import PausableSource, Producer, Source

ITEMS_TOPIC = {"cleanup.policy": "compact", "delete.retention.ms": str(7 * 86_400_000)}  # tombstones for a week
LOG_PARTITIONS = 1  # one worker reads them all; a single partition keeps the order of all clicks


def prepare_topics(settings: Settings) -> None:
    """Makes the topics that are missing; those that are there stay as they are. Raises SourceError."""
    if settings.kafka_bootstrap_servers:
        topics = {settings.clicks_topic: settings.topic_partitions, settings.items_topic: 1}
        topics |= {settings.dead_letters_topic: 1, settings.events_topic: 1}
        ensure_topics(
            settings.kafka_bootstrap_servers,
            topics,
            configs={settings.items_topic: ITEMS_TOPIC},
            create=settings.create_topics,
            client_options=kafka_options(settings),
        )
    else:
        topics = dict.fromkeys((settings.items_topic, settings.dead_letters_topic, settings.events_topic), 1)
        topics[settings.clicks_topic] = LOG_PARTITIONS
        with closing(Log(settings.log_path, records_max=settings.log_records_max)) as log:
            log.ensure_topics(topics)


def open_items(settings: Settings) -> ItemsFeed:
    """What the items topic says, read as nobody's member. Raises SourceError.

    Kafka compacts the topic by itself. The embedded log is compacted here, and keeps its latest `log_records_max`
    records as of every topic: what goes before them is in the checkpoint of the worker that has read it.
    """
    if not settings.kafka_bootstrap_servers:
        with closing(Log(settings.log_path)) as log:
            log.compact(settings.items_topic)
    reader = open_reader(settings, settings.items_topic)
    return ItemsFeed(reader, records_max=settings.items_records_max, interval_s=settings.items_interval_s)


def open_source(settings: Settings, topics: Sequence[str], group: str) -> Source:
    """Reads topics as a member of a consumer group, all partitions by event time. Raises SourceError."""
    source: PausableSource
    if settings.kafka_bootstrap_servers:
        options = kafka_options(settings)
        source = KafkaSource(settings.kafka_bootstrap_servers, topics, group, client_options=options)
    else:
        source = LogSource(settings.log_path, topics, group)
    return MergedSource(source, event_time(settings), wait_s=settings.merge_wait_s)


def look_at_stream(settings: Settings) -> Origin:
    """Which stream this is, and what the group has committed there. Raises SourceError."""
    if settings.kafka_bootstrap_servers:
        group, options = settings.consumer_group, kafka_options(settings)
        return group_origin(settings.kafka_bootstrap_servers, group, options)
    with closing(Log(settings.log_path)) as log:
        return Origin(EMBEDDED, log.stored_positions(settings.consumer_group))


def open_reader(settings: Settings, topic: str) -> TopicReader:
    """Reads what a topic holds, as nobody's member. Raises SourceError."""
    if settings.kafka_bootstrap_servers:
        return KafkaReader(settings.kafka_bootstrap_servers, topic, kafka_options(settings))
    return LogReader(settings.log_path, topic)


def open_eraser(settings: Settings) -> Eraser:
    """Takes records out of topics."""
    if settings.kafka_bootstrap_servers:
        return KafkaEraser(settings.kafka_bootstrap_servers, kafka_options(settings))
    return LogEraser(settings.log_path)


def clicks_kept_ms(settings: Settings) -> int | None:
    """How long Kafka keeps clicks, in milliseconds; None: it does not say, or for ever. Raises SourceError."""
    return retention_ms(str(settings.kafka_bootstrap_servers), settings.clicks_topic, kafka_options(settings))


def open_producer(settings: Settings, *, acknowledge_s_max: float = ACKNOWLEDGE_S_MAX) -> Producer:
    """Writes to topics; what Kafka has not acknowledged after that time has failed. Raises SourceError."""
    if settings.kafka_bootstrap_servers:
        servers, options = settings.kafka_bootstrap_servers, kafka_options(settings)
        return KafkaProducer(servers, options, acknowledge_s_max=acknowledge_s_max)
    return LogProducer(settings.log_path, partitions=LOG_PARTITIONS, records_max=settings.log_records_max)


def open_notices(settings: Settings) -> NoticeWriter:
    """Writes notices to the events topic, in a thread, as long as the broker lets it."""
    connect: Callable[[], Producer] = partial(open_producer, settings)
    if settings.kafka_bootstrap_servers:
        # Certificates are read now: in its thread there is nobody to tell that one is gone.
        connect = partial(KafkaProducer, settings.kafka_bootstrap_servers, kafka_options(settings))
    return NoticeWriter(connect, settings.events_topic, waiting_max=settings.notices_waiting_max)


def open_lists(settings: Settings, *, there: bool = True) -> Lists:
    """The lists in Redis, or in the embedded Redis that a worker or a demo serves. Raises ListsError.

    `there`: false where it may be away as yet.
    """
    limits = {"ttl_s": settings.list_ttl_s, "value_bytes_max": settings.redis_value_bytes_max}
    waits: dict[str, Any] = {"connect_s_max": settings.redis_connect_s_max, "answer_s_max": settings.redis_answer_s_max}
    if settings.redis_url is not None:
        lists = Lists(connect(settings.redis_url.get_secret_value(), redis_options(settings), **waits), **limits)
        if there:
            lists.check()
        return lists
    lists = Lists(connect(f"redis://127.0.0.1:{settings.embedded_redis_port}/0", **waits), **limits)
    try:
        if there:
            lists.check()
    except ListsError as error:
        raise type(error)(
            f"the embedded Redis does not answer on 127.0.0.1:{settings.embedded_redis_port}: "
            "start `nextclick worker` or `nextclick demo`, or set NEXTCLICK_REDIS_URL"
        ) from error
    return lists
