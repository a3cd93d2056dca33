"""One stream in many producers' hands: Kafka's own with each codec, transactions, null keys, kafka-python, HTTP.

    python -m benchmarks.producers --kafka-start PATH --redis-server PATH [--clicks 300] [--only NAME,NAME]

Starts Apache Kafka, redis-server, a worker and `serve`. Each producer in turn sends as many clicks, and some messages
that cannot be read, to the same topic; then it is counted what the worker has learned and put aside, and what lags.
Prints a table in markdown. Exits with 1 where something was lost, learned twice, or lags.
"""

import argparse
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

from benchmarks._live import Live, live
from benchmarks._servers import Server, free_port, kafka_server, redis_server
from benchmarks.end_to_end import BROKEN
from online.evaluation.town import Town
from stream.codecs import UNPACKED_BYTES_MAX
from stream.events import encode
from stream.kafka import ensure_topics

WAIT_S_MAX = 180.0
BATCH = ("batch.size=1000000", "linger.ms=200", "max.request.size=4000000")
_TOOL_S_MAX = 300

Message = tuple[bytes | None, bytes]


@dataclass
class Hands:
    """What producers need: a broker's address, a topic, Kafka's tools, and a `serve`."""

    servers: str
    topic: str
    tool: Path
    folder: Path
    api_port: int

    def run(self, *arguments: str, given: bytes = b"") -> str:
        """One of Kafka's tools -> what it printed. Raises CalledProcessError."""
        command = [str(self.tool), *arguments]
        done = subprocess.run(command, input=given, capture_output=True, timeout=_TOOL_S_MAX, check=True)
        return done.stdout.decode()


def console(codec: str, *, keys: bool = True) -> Callable[[Hands, Sequence[Message]], None]:
    """Kafka's console producer."""

    def send(hands: Hands, messages: Sequence[Message]) -> None:
        lines = [((key or b"") + b"\t" if keys else b"") + value for key, value in messages]
        command = ["ConsoleProducer", "--bootstrap-server", hands.servers, "--topic", hands.topic]
        command += ["--batch-size", "1000000", "--compression-codec", codec]
        for one in (*BATCH, f"compression.type={codec}"):
            command += ["--command-property", one]
        if keys:
            command += ["--reader-property", "parse.key=true", "--reader-property", "key.separator=\t"]
        hands.run(*command, given=b"\n".join(lines) + b"\n")

    return send


def copier(hands: Hands, messages: Sequence[Message]) -> None:
    """Kafka's transactional copier, which aborts about one transaction in three and does it again."""
    source = f"{hands.topic}.source"
    ensure_topics(hands.servers, {source: 1})
    producer = KafkaProducer(bootstrap_servers=hands.servers)
    for key, value in messages:
        producer.send(source, key=key, value=value)
    producer.close()
    hands.run(
        *("TransactionalMessageCopier", "--broker-list", hands.servers, "--input-topic", source),
        *("--input-partition", "0", "--output-topic", hands.topic, "--transactional-id", "copier"),
        *("--transaction-size", "20", "--consumer-group", "copier", "--max-messages", str(len(messages))),
        "--enable-random-aborts",
    )


def python(*, codec: str | None = None, aborts: bool = False) -> Callable[[Hands, Sequence[Message]], None]:
    """kafka-python; with `aborts`, in transactions of which each second one is aborted and sent again."""

    def send(hands: Hands, messages: Sequence[Message]) -> None:
        options = {"transactional_id": "python"} if aborts else {}
        producer = KafkaProducer(bootstrap_servers=hands.servers, compression_type=codec, linger_ms=50, **options)
        if not aborts:
            for key, value in messages:
                producer.send(hands.topic, key=key, value=value)
            producer.close()
            return
        producer.init_transactions()
        parts = [messages[at : at + 25] for at in range(0, len(messages), 25)]
        for abort, part in [(abort, part) for part in parts for abort in (True, False)] + [(True, parts[0])]:
            producer.begin_transaction()
            for key, value in part:
                producer.send(hands.topic, key=key, value=value)
            producer.flush()
            producer.abort_transaction() if abort else producer.commit_transaction()
        producer.close()

    return send


def over_http(hands: Hands, messages: Sequence[Message]) -> None:
    """`POST /click`, which refuses at once what cannot be read."""
    connection = http.client.HTTPConnection("127.0.0.1", hands.api_port, timeout=30)
    for _, value in messages:
        connection.request("POST", "/click", value, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (202, 422):
            raise RuntimeError(f"POST /click answers {answer.status}")
    connection.close()


def bomb(hands: Hands, _: Sequence[Message]) -> None:
    """A batch of some kB that unpacks to more than the worker lets it."""
    size = UNPACKED_BYTES_MAX + 1_000
    producer = KafkaProducer(bootstrap_servers=hands.servers, compression_type="gzip", max_request_size=2 * size)
    producer.send(hands.topic, value=bytes(size)).get(timeout=120)
    producer.close()


PRODUCERS: dict[str, Callable[[Hands, Sequence[Message]], None]] = {
    **{f"console producer, {codec}": console(codec) for codec in ("none", "gzip", "snappy", "lz4", "zstd")},
    "console producer, null keys": console("none", keys=False),
    "transactional copier, random aborts": copier,
    "kafka-python, transactions, half aborted": python(aborts=True),
    "kafka-python, lz4": python(codec="lz4"),
    "POST /click": over_http,
    "a bomb of 128 MiB, gzip": bomb,
}


def messages_of(clicks: Sequence[Any]) -> tuple[list[Message], Counter[str]]:
    """The clicks, with some messages that cannot be read among them -> those too, by reason."""
    found: list[Message] = [(click.user_id.encode(), encode(click)) for click in clicks]
    chosen = [one for one in BROKEN if b"\xff" not in one[1] and one[0] != "future-timestamp"][:3]
    for number, (_, value) in enumerate(chosen):
        found.insert((number + 1) * len(clicks) // 4, (b"u1", value))
    return found, Counter(reason for reason, _ in chosen)


def settled(running: Live, taken: int, began: int) -> dict[str, Any]:
    """The status once so many messages were taken in and nothing lags, or time is up."""
    until, status = time.monotonic() + WAIT_S_MAX, running.wait_for(0)
    while time.monotonic() < until:
        status = running.wait_for(0)
        done = status["learned"] + sum(status["dead_letters"].values()) - began
        if done >= taken and status["lag"] == 0:
            break
        time.sleep(0.2)
    return status


def measure(start: Path, redis_program: str, clicks: int, say: Callable[[str], None], names: Sequence[str]) -> bool:
    """Prints a row for each producer -> whether all of it adds up."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        kafka = stack.enter_context(kafka_server(start, folder / "kafka", inner=port, outer=port))
        redis = stack.enter_context(redis_server(redis_program, folder / "redis"))
        servers, api_port = f"127.0.0.1:{kafka.port}", free_port()
        running = stack.enter_context(
            live(
                folder, kafka=servers, redis=f"redis://127.0.0.1:{redis.port}/0", users=10,
                checkpoint_interval_s=1.0, api_port=api_port,
                api_read_only=False,
            )
        )  # fmt: skip
        serve = Server(
            [sys.executable, "-m", "online", "serve"],
            api_port,
            ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{api_port}"],
            folder / "serve.log",
            running.worker.environment,
        )
        stack.callback(serve.kill)
        serve.start()
        hands = Hands(servers, running.settings.clicks_topic, start.parent / "tool", folder, api_port)
        status = running.wait_for(0)
        town = iter(Town(users=200, items=300, seed=5, start=time.time() - 30 * 86_400).clicks(10**9))
        say("| producer | clicks | learned | dead letters by reason | lag at the end |")
        say("| --- | ---: | ---: | --- | ---: |")
        good = True
        for name in names:
            own = [next(town) for _ in range(0 if PRODUCERS[name] is bomb else clicks)]
            messages, expected = messages_of(own) if own else ([], Counter({"undecodable-batch": 1}))
            if PRODUCERS[name] is over_http:
                expected = Counter()  # it was told at once
            before = status
            PRODUCERS[name](hands, messages)
            began = before["learned"] + sum(before["dead_letters"].values())
            status = settled(running, len(own) + expected.total(), began)
            learned = status["learned"] - before["learned"]
            letters = Counter(status["dead_letters"]) - Counter(before["dead_letters"])
            by_reason = ", ".join(f"{reason} {count}" for reason, count in sorted(letters.items())) or "none"
            say(f"| {name} | {len(own):,} | {learned:,} | {by_reason} | {status['lag']} |")
            good = good and (learned, letters, status["lag"]) == (len(own), expected, 0)
        time.sleep(3 * running.settings.checkpoint_interval_s)  # the last positions are committed
        described = hands.run(
            *("consumer.group.ConsumerGroupCommand", "--bootstrap-server", servers, "--describe"),
            *("--group", running.settings.consumer_group),
        )
        lags = [line.split()[5] for line in described.splitlines() if running.settings.clicks_topic in line]
        status = running.wait_for(0)
        say(f"\nlag by Kafka's own tool, by partition: {', '.join(lags)}; duplicates {status['duplicates']}, "
            f"training left out {status['untrained']}, notices {status['notice_counts']}")  # fmt: skip
        return good and set(lags) == {"0"} and not status["shedding"] and not status["behind"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka-start", type=Path, default=os.environ.get("KAFKA_START"), metavar="PATH")
    parser.add_argument("--redis-server", default=os.environ.get("REDIS_SERVER") or shutil.which("redis-server"))
    parser.add_argument("--clicks", type=int, default=300, help="of each producer")
    parser.add_argument("--only", help="producers whose name holds one of these words, with commas between")
    arguments = parser.parse_args()
    if not arguments.kafka_start or not arguments.redis_server:
        parser.error("name the servers: --kafka-start PATH --redis-server PATH")

    def say(text: str) -> None:
        print(text, flush=True)

    words = (arguments.only or "").split(",")
    names = [name for name in PRODUCERS if any(word.strip() in name for word in words)]
    good = measure(arguments.kafka_start, arguments.redis_server, arguments.clicks, say, names)
    say("everything adds up" if good else "SOMETHING DOES NOT ADD UP")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
