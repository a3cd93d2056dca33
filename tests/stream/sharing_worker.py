"""A process that reads a topic with others of its group, and prints what happens to it, one JSON object a line.

Arguments: servers, topic, control topic, group, name (or "-"), session timeout in seconds. It commits what it owns.
"""

import json
import sys
import time

from stream.kafka_shared import SharedKafkaSource

servers, topic, control, group, name, session_s = sys.argv[1:]


def say(what, **more):
    print(json.dumps({"what": what, "at": time.time(), **more}), flush=True)


def numbers(partitions):
    return sorted(partition.partition for partition in partitions)


source = SharedKafkaSource(
    servers, topic, control, group, instance_id=None if name == "-" else name, session_timeout_s=float(session_s)
)


def on_revoked(partitions):
    assert set(partitions) <= source.owned()
    source.commit(source.positions())
    say("revoked", partitions=numbers(partitions))


source.start(
    on_assigned=lambda _: {},
    on_revoked=on_revoked,
    on_gained=lambda committed: say("gained", committed={at.partition: offset for at, offset in committed.items()}),
    on_lost=lambda partitions: say("lost", partitions=numbers(partitions)),
)
before, read, told = None, 0, 0.0
while True:
    records = source.poll(max_records=100, timeout_s=0.05)
    read += len(records)
    now = source.owned(), source.leadership()
    if now != before:
        say("owns", partitions=numbers(now[0]), epoch=now[1])
        before = now
    if records or time.monotonic() > told + 0.5:
        told = time.monotonic()
        say("read", count=read, generation=source._membership._coordinator._generation.generation_id)
        source.commit({at: offset for at, offset in source.positions().items() if at in source.owned()})
