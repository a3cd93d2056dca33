"""Looks at Kafka from outside: topics, their settings, offsets, a group's positions. Nothing is written."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from stream.inspection import COMMITTED, SETTINGS, TOPICS, BrokerView, Extent, TopicView
from stream.kafka_consumer import open_consumer
from stream.kafka_errors import connected, source_error
from stream.kafka_group import group_origin
from stream.source import Partition, SourceError

_ASK_MS_MAX = 10_000
_CONSUMER = {
    "group_id": None,
    "enable_auto_commit": False,
    "allow_auto_create_topics": False,
    "metrics_enabled": False,
}


def inspect_kafka(
    bootstrap_servers: str, topics: Collection[str], group: str, client_options: Mapping[str, Any]
) -> BrokerView:
    """Returns what Kafka says of those of the topics that exist, and of the group.

    A part that its user may not see is missing, and `errors` says why. Raises SourceError where no broker answers, or
    none lets us in.
    """
    view = BrokerView()
    admin = connected(KafkaAdminClient, bootstrap_servers, dict(client_options))
    try:
        cluster = _asked(bootstrap_servers, admin.describe_cluster)
        view.cluster, view.brokers = str(cluster.get("cluster_id") or ""), len(cluster.get("brokers") or ())
        with _noted(view, TOPICS, bootstrap_servers):
            there = sorted(set(topics) & set(admin.list_topics()))
            described = admin.describe_topics(there) if there else []
            view.topics = {str(topic["name"]): _topic(topic) for topic in described}
        with _noted(view, SETTINGS, bootstrap_servers):
            for name in view.topics:
                _add_settings(view, admin, name)
        is_there = False
        with _noted(view, COMMITTED, bootstrap_servers):
            # Asking for the offsets of any group makes a new broker create its topic of groups.
            is_there = group in {str(one["group_id"]) for one in admin.list_groups()}
    finally:
        admin.close()
    _add_extents(view, bootstrap_servers, client_options)
    if is_there:
        try:
            view.committed = dict(group_origin(bootstrap_servers, group, client_options).committed)
        except SourceError as error:
            view.errors[COMMITTED] = str(error)
    return view


def _asked(servers: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except kafka_errors.KafkaError as error:
        raise source_error(servers, error) from error


@contextmanager
def _noted(view: BrokerView, part: str, servers: str) -> Iterator[None]:
    """What Kafka refuses of a part is why it is not known."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        view.errors[part] = str(source_error(servers, error))


def _topic(described: Mapping[str, Any]) -> TopicView:
    partitions = described["partitions"]
    numbers = sorted(int(one["partition_index"]) for one in partitions)
    return TopicView(
        extents={Partition(str(described["name"]), number): Extent(0, 0) for number in numbers},
        replicas=min((len(one["replica_nodes"]) for one in partitions), default=0),
        leaderless=sum(one["leader_id"] < 0 for one in partitions),
    )


def _add_settings(view: BrokerView, admin: KafkaAdminClient, name: str) -> None:
    found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    for of_kind in found.values():
        values = {str(key): str(value["value"]) for key, value in of_kind.get(name, {}).items()}
        view.topics[name] = replace(view.topics[name], settings=values)


def _add_extents(view: BrokerView, servers: str, client_options: Mapping[str, Any]) -> None:
    if not view.topics:
        return
    try:
        with closing(open_consumer(servers, {**_CONSUMER, **client_options})) as consumer:
            for name, topic in view.topics.items():
                where = [TopicPartition(*partition) for partition in topic.extents]
                if not where or topic.leaderless:
                    continue
                first = consumer.beginning_offsets(where, timeout_ms=_ASK_MS_MAX)
                ends = consumer.end_offsets(where, timeout_ms=_ASK_MS_MAX)
                extents = {Partition(at.topic, at.partition): Extent(int(first[at]), int(ends[at])) for at in where}
                view.topics[name] = replace(topic, extents=extents)
    except kafka_errors.KafkaError as error:
        view.errors[TOPICS] = str(source_error(servers, error))
    except SourceError as error:
        view.errors[TOPICS] = str(error)
