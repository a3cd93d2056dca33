"""What Kafka knows of a consumer group before a member of it joins."""

import time
from collections.abc import Mapping
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from stream.kafka_errors import connected, source_error
from stream.origin import Origin
from stream.source import Partition

_NO_OPTIONS: Mapping[str, Any] = {}
_COORDINATOR_S_MAX = 10.0  # a broker that has just started makes the topic of the groups first
_LOOK_S = 0.2


def group_origin(bootstrap_servers: str, group: str, client_options: Mapping[str, Any] = _NO_OPTIONS) -> Origin:
    """Asks the broker. Raises SourceError."""
    admin = connected(KafkaAdminClient, bootstrap_servers, dict(client_options))
    deadline = time.monotonic() + _COORDINATOR_S_MAX
    try:
        while True:
            try:
                committed = admin.list_group_offsets({group: None}).get(group, {})
                break
            except kafka_errors.KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)
        cluster = admin.describe_cluster().get("cluster_id") or ""
    except kafka_errors.KafkaError as error:
        raise source_error(bootstrap_servers, error) from error
    finally:
        admin.close()
    offsets = {Partition(where.topic, where.partition): int(at.offset) for where, at in committed.items()}
    return Origin(str(cluster), {partition: at for partition, at in offsets.items() if at >= 0})
