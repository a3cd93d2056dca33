"""Clicks at a constant rate, each made at the moment it is sent: for end_to_end.py, as a process of its own, so that
neither the worker nor the observer of it delays it.

    python -m benchmarks._constant_rate STREAM TOPIC --rate 500 --seconds 30 [--skip N] [--kafka HOST:PORT]

Users and items are the stream's, in its order, and from its beginning again where it ends. Without --kafka the clicks
go to the embedded log that the environment names (NEXTCLICK_DATA_DIR). Prints one JSON object: clicks sent, the seconds
that it took, and by how many ms the latest click was sent too late.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from online.config.settings import load_settings
from online.worker.connections import open_producer
from stream.event_files import EventFile


def endless(path: Path, skip: int) -> Iterator[tuple[bytes | None, dict[str, object]]]:
    """Key and fields of the stream's events, from its beginning again where it ends."""
    while True:
        for event in islice(EventFile(path).messages(), skip, None):
            fields = json.loads(event.value)
            fields.pop("event_id", None)  # it would be known the second time
            yield event.key, fields
        skip = 0


def send(path: Path, topic: str, *, rate: float, seconds: float, skip: int, kafka: str | None) -> dict[str, float]:
    """Sends them -> how that went."""
    settings = load_settings(kafka_bootstrap_servers=kafka) if kafka else load_settings()
    count, late_s = int(rate * seconds), 0.0
    with closing(open_producer(settings)) as producer:
        events = list(islice(endless(path, skip), count))  # to read them must not delay any
        began = time.monotonic()
        for number, (key, fields) in enumerate(events):
            ahead = number / rate - (time.monotonic() - began)
            if ahead > 0:
                if not kafka:
                    producer.flush()
                time.sleep(ahead)
            else:
                late_s = max(late_s, -ahead)
            value = json.dumps(fields | {"timestamp": round(time.time(), 3)}).encode()
            producer.send(topic, key=key, value=value)
        producer.flush()
        took_s = time.monotonic() - began
    return {"sent": count, "seconds": round(took_s, 2), "late_ms_max": round(1000 * late_s, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("topic")
    parser.add_argument("--rate", type=float, required=True, help="clicks per second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--skip", type=int, default=0, help="events of the stream to leave out at first")
    parser.add_argument("--kafka", metavar="HOST:PORT")
    arguments = vars(parser.parse_args())
    print(json.dumps(send(arguments.pop("stream"), arguments.pop("topic"), **arguments)))


if __name__ == "__main__":
    main()
