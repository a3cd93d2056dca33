"""How fast `nextclick items` publishes a file of made-up items to the embedded log and to Kafka.

    python -m benchmarks.items_file [--items 100000] [--kafka HOST:PORT]

The file is a packed CSV with a title, four tags, a price, a brand, a date and whether the item is available.
"""

import argparse
import csv
import gzip
import random
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path

from online.commands.items_file import publish_items
from stream.item_files import ItemFile, check_items
from stream.kafka import KafkaProducer, ensure_topics
from stream.log import LogProducer
from stream.source import Producer

TAGS = [f"shelf {number}" for number in range(60)]


def main() -> None:
    """Prints a line for each target."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--items", type=int, default=100_000)
    arguments.add_argument("--kafka")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="nextclick-") as folder:
        path = Path(folder) / "items.csv.gz"
        write(path, given.items)
        measure("embedded log", path, LogProducer(Path(folder) / "log", records_max=2 * given.items), "items")
        if given.kafka is not None:
            topic = f"items-{uuid.uuid4().hex[:8]}"
            ensure_topics(given.kafka, {topic: 1})
            measure("Kafka", path, KafkaProducer(given.kafka), topic)


def write(path: Path, count: int) -> None:
    """Makes the file up."""
    chance = random.Random(0)
    with gzip.open(path, "wt", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", "tags", "price", "brand", "published_at", "available"])
        for number in range(count):
            title = f"A thing of some kind, number {number}"
            tags = "|".join(chance.sample(TAGS, 4))
            date = f"20{chance.randrange(10, 26)}-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02}"
            price, brand = round(chance.lognormvariate(3, 1), 2), f"brand {chance.randrange(400)}"
            rows.writerow([f"i{number}", title, tags, price, brand, date, chance.random() > 0.03])


def measure(name: str, path: Path, producer: Producer, topic: str) -> None:
    """Checks and publishes the file, as the command does."""
    file = ItemFile(path)
    began = time.perf_counter()
    check_items(file)
    checked = time.perf_counter()
    with closing(producer):
        tally = publish_items(file, producer, topic)
    ended = time.perf_counter()
    rate = tally.items / (ended - began)
    of_it = f"{checked - began:.1f} s of it checking"
    print(f"{name}: {tally.items:,} items in {ended - began:.1f} s ({rate:,.0f}/s), {of_it}")


if __name__ == "__main__":
    main()
