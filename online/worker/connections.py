"""Opens the connections of the worker and the commands: settings become a URL and options.

Whatever opens one raises SettingsError too, where a certificate or key cannot be used.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from online.config.clients import kafka_options, redis_options
from online.config.settings import Settings
from online.worker.event_time import event_time
from online.worker.items_feed import ItemsFeed
from stream.broker import ACKNOWLEDGE_S_MAX, Broker, BrokerOptions, Eraser, Topic, open_broker
from stream.lists import Lists, ListsError, connect
from stream.merge import MergedSource
from stream.notices import NoticeWriter
from stream.origin import Origin
from stream.source import OnGone, Producer, Source, SourceError, TopicReader, warn_of
from stream.tail import TopicTail

_WEIGHTS_RETENTION_S = 86_400.0


def broker_url(settings: Settings) -> str:
    """Returns the broker's URL: Kafka if the settings name its servers, else the embedded log."""
    servers = settings.kafka_bootstrap_servers
    return f"log://{quote(str(settings.log_path))}" if servers is None else f"kafka://{servers}"


def named_broker(settings: Settings) -> Broker:
    """Returns the broker for its name and address only: no certificate is read."""
    return open_broker(broker_url(settings))


def broker_of(settings: Settings) -> Broker:
    """Returns the broker, with the present certificates and passwords. It does not connect yet."""
    options = BrokerOptions(client=kafka_options(settings), records_max=settings.log_records_max)
    return open_broker(broker_url(settings), options)


def needed_topics(settings: Settings) -> list[Topic]:
    """Returns the topics that these settings need."""
    topics = [
        Topic(settings.clicks_topic, settings.topic_partitions),
        Topic(settings.items_topic, compacted=True),
        Topic(settings.dead_letters_topic),
        Topic(settings.events_topic),
        Topic(settings.feedback_topic),
        Topic(settings.impressions_topic, retention_s=settings.impressions_retention_s),
    ]
    if settings.users_topic is not None:
        topics.append(Topic(settings.users_topic, compacted=True))
    if settings.workers == "many":
        topics += [
            Topic(settings.control_topic, single=True),
            Topic(settings.weights_topic, retention_s=_WEIGHTS_RETENTION_S, single=True),
        ]
    return topics


def prepare_topics(settings: Settings) -> None:
    """Creates missing topics; existing ones stay as they are. Raises SourceError."""
    broker_of(settings).ensure_topics(needed_topics(settings), create=settings.create_topics)


def open_items(settings: Settings) -> ItemsFeed:
    """Opens the feed of the items topic, without a consumer group. Raises SourceError."""
    broker_of(settings).compact(settings.items_topic)
    reader = open_reader(settings, settings.items_topic)
    return ItemsFeed(reader, records_max=settings.items_records_max, interval_s=settings.items_interval_s)


def open_feedback(settings: Settings) -> ItemsFeed:
    """Opens the feed of the feedback topic, without a consumer group. Raises SourceError."""
    return ItemsFeed(
        open_reader(settings, settings.feedback_topic),
        records_max=settings.feedback_records_max,
        interval_s=settings.feedback_interval_s,
        what="hidden items",
    )


def open_users(settings: Settings, topic: str) -> ItemsFeed:
    """Opens the feed of the users topic, without a consumer group. Raises SourceError."""
    broker_of(settings).compact(topic)
    return ItemsFeed(
        open_reader(settings, topic),
        records_max=settings.users_records_max,
        interval_s=settings.users_interval_s,
        what="users' attributes",
    )


def open_impressions(settings: Settings) -> ItemsFeed:
    """Opens the feed of the topic of impressions, without a consumer group. Raises SourceError."""
    return ItemsFeed(
        open_reader(settings, settings.impressions_topic),
        records_max=settings.impressions_records_max,
        interval_s=settings.impressions_interval_s,
        what="lists that were shown",
    )


def open_source(settings: Settings, topics: Sequence[str], group: str) -> Source:
    """Opens a reader of topics as a member of a consumer group, merged by event time. Raises SourceError.

    With many workers it reads a single topic whole, and owns the partitions that the group gives it.
    """
    broker = broker_of(settings)
    if settings.workers == "one":
        source = broker.source(topics, group)
    else:
        (topic,) = topics
        source = broker.shared_source(
            topic,
            settings.control_topic,
            group,
            instance_id=_instance_id(settings),
            session_timeout_s=settings.session_timeout_s,
        )
    return MergedSource(source, event_time(settings), wait_s=settings.merge_wait_s)


def open_tail(settings: Settings, topic: str, start: int | None, *, on_gone: OnGone = warn_of) -> TopicTail:
    """Opens a follower of a topic of one partition, from an offset; None: the earliest. Raises SourceError."""
    return broker_of(settings).tail(topic, start, on_gone=on_gone)


def _instance_id(settings: Settings) -> str | None:
    if settings.static_membership and settings.worker_name is None:
        raise SourceError("NEXTCLICK_STATIC_MEMBERSHIP needs a NEXTCLICK_WORKER_NAME, another one for each worker")
    return settings.worker_name if settings.static_membership else None


def stream_origin(settings: Settings) -> Origin:
    """Returns which stream this is, and the group's committed offsets. Raises SourceError."""
    return broker_of(settings).origin(settings.consumer_group)


def open_reader(settings: Settings, topic: str) -> TopicReader:
    """Opens a reader of one topic, without a consumer group. Raises SourceError."""
    return broker_of(settings).reader(topic)


def open_eraser(settings: Settings) -> Eraser:
    """Opens an eraser of records."""
    return broker_of(settings).eraser()


def topic_retention_ms(settings: Settings, topic: str) -> int | None:
    """Returns how long a topic's records are kept, in ms; None: for ever, or it is not known. Raises SourceError."""
    return broker_of(settings).retention_ms(topic)


def open_producer(settings: Settings, *, acknowledge_s_max: float = ACKNOWLEDGE_S_MAX) -> Producer:
    """Opens a producer; records without an acknowledgement within that time have failed. Raises SourceError."""
    return broker_of(settings).producer(acknowledge_s_max=acknowledge_s_max)


def open_notices(settings: Settings) -> NoticeWriter:
    """Opens a writer of notices to the events topic, in a thread of its own."""
    # Certificates are read now: the thread could not stop the start.
    connect = broker_of(settings).producer
    return NoticeWriter(connect, settings.events_topic, waiting_max=settings.notices_waiting_max)


def open_lists(settings: Settings, *, there: bool = True, worker: str | None = None, fenced: bool = False) -> Lists:
    """The lists in Redis, or in the embedded Redis that a worker or a demo serves. Raises ListsError.

    `there`: false where it may be unavailable as yet. `worker`, `fenced`: as Lists has them.
    """
    limits: dict[str, Any] = {"ttl_s": settings.list_ttl_s, "value_bytes_max": settings.redis_value_bytes_max}
    limits |= {"worker": worker, "fenced": fenced}
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
