"""How long a new item waits: from its record's acknowledgement until it stands in the list of a user whom it suits.

    python -m benchmarks.published [--items 40] [--rate 100] [--kafka HOST:PORT] [--redis URL]

A real worker learns a town's clicks at a steady rate. Items are known by title and by the tag of their shelf; every
hundred clicks a new one is put on a shelf. Its record is published just before, and all lists in Redis are read over
and over until one holds it. That may take as long as the next click of a user whom it suits.
"""

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks._live import Live, live
from online.evaluation.town import SHELVES
from online.worker.connections import open_lists, open_producer
from stream.items import Item, encode
from stream.lists import Lists, top_key
from stream.source import Producer

ITEMS = 480  # of the town
WARM_UP_CLICKS = 6_000
WAIT_S_MAX = 30.0  # for one item
POLL_S = 0.01


def main() -> None:
    """Prints one line."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--items", type=int, default=40)
    arguments.add_argument("--rate", type=float, default=100.0, help="clicks a second")
    arguments.add_argument("--kafka")
    arguments.add_argument("--redis")
    given = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="nextclick-") as folder,
        live(Path(folder), kafka=given.kafka, redis=given.redis, users=300, items=ITEMS) as worker,
        closing(open_producer(worker.settings)) as producer,
    ):
        known = worker.town.existing(WARM_UP_CLICKS)
        for number in range(known):
            publish(worker, producer, number)
        producer.flush()
        worker.rate = None
        worker.wait_for(WARM_UP_CLICKS)
        worker.rate = given.rate
        lists = open_lists(worker.settings)
        first = max(known, worker.town.existing(worker.published))
        numbers = range(first, min(first + given.items, ITEMS))
        waited = np.array([wait_for_item(worker, producer, lists, number) for number in numbers])
    listed = waited[np.isfinite(waited)]
    p50, p90 = np.quantile(listed, [0.5, 0.9]).tolist() if len(listed) else (np.nan, np.nan)
    print(
        f"{len(listed)} of {len(waited)} new items were listed within {WAIT_S_MAX:.0f} s: "
        f"p50 {p50:.2f} s, p90 {p90:.2f} s, most {listed.max(initial=0):.2f} s, at {given.rate:.0f} clicks/s"
    )


def wait_for_item(worker: Live, producer: Producer, lists: Lists, number: int) -> float:
    """Publishes the next item when it is due -> seconds until a list holds it; inf: none did in time."""
    while worker.town.existing(worker.published) < number:
        time.sleep(POLL_S)
    publish(worker, producer, number)
    producer.flush()
    began = time.monotonic()
    keys, wanted = [top_key(user) for user in worker.town.user_ids], f'"{worker.town.item_ids[number]}"'.encode()
    while (waited := time.monotonic() - began) < WAIT_S_MAX:
        if any(value is not None and wanted in value for value in lists.client.mget(keys)):
            return waited
        time.sleep(POLL_S)
    return float("inf")


def publish(worker: Live, producer: Producer, number: int) -> None:
    """Sends the record of an item."""
    name = worker.town.item_ids[number]
    item = Item(item_id=name, title=name, tags=(f"shelf {number % SHELVES}",))
    producer.send(worker.settings.items_topic, key=name.encode(), value=encode(item))


if __name__ == "__main__":
    main()
