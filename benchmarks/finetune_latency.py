"""How long a click waits for its list while fine-tuning runs, while a candidate is in the shadow, and while neither:

    python -m benchmarks.finetune_latency [--rate 50] [--seconds 120]

A worker's loop on embedded parts, in this process; clicks of a town come at a steady rate from a thread. What is told
is from the record's timestamp to the list in Redis. The ratios hardly depend on the machine, as far as it keeps up.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from online.config.settings import Settings
from online.evaluation.town import Town
from online.worker.checkpoint import Checkpoints
from online.worker.connections import (
    open_eraser,
    open_feedback,
    open_items,
    open_producer,
    open_reader,
    open_source,
    prepare_topics,
)
from online.worker.dead_letters import DeadLetterWriter
from online.worker.loop import Loop
from stream.embedded_redis import EmbeddedRedis
from stream.events import Click, encode
from stream.lists import Lists
from stream.source import Producer

BEFORE = 3_000  # clicks that are learned before anything is measured
EACH_S = 10.0  # nothing but clicks, before each fine-tuning; and a candidate's time in the shadow


def send(producer: Producer, settings: Settings, clicks: Iterable[Click]) -> None:
    for click in clicks:
        value = encode(click.model_copy(update={"timestamp": time.time()}))
        producer.send(settings.clicks_topic, key=click.user_id.encode(), value=value)
    producer.flush()


def publish(settings: Settings, clicks: Iterator[Click], rate: float, stop: threading.Event) -> None:
    with closing(open_producer(settings)) as producer:
        due = time.monotonic()
        while not stop.is_set():
            send(producer, settings, islice(clicks, 1))
            due += 1 / rate
            stop.wait(max(0.0, due - time.monotonic()))


def measure(loop: Loop, seconds: float) -> tuple[dict[str, list[float]], int]:
    """-> what each click waited, in ms, by the supervisor's state; and how many fine-tunings there were."""
    waited: dict[str, list[float]] = {}
    supervisor, latencies = loop.supervisor, loop.writer.latencies

    def add(values_ms: Iterable[float]) -> None:
        waited.setdefault(supervisor.state, []).extend(values_ms)

    latencies.add = add  # type: ignore[method-assign]
    began = since = time.monotonic()
    state = supervisor.state
    while time.monotonic() - began < seconds:
        loop.turn()
        if supervisor.state != state:
            state, since = supervisor.state, time.monotonic()
        elif state != "running" and time.monotonic() - since > EACH_S:
            if state == "shadow":
                supervisor.candidate = None
            else:
                supervisor.ask_finetuning("to be measured")
    return waited, loop.progress.finetunings


def run(rate: float, seconds: float, folder: Path) -> Iterator[str]:
    settings = Settings(data_dir=folder, device="cpu", checkpoint_interval_s=86_400.0)
    torch.set_num_threads(settings.threads)
    clicks = Town(users=300, seed=0).clicks(10_000_000)
    stop = threading.Event()
    with ExitStack() as parts:
        redis = parts.enter_context(EmbeddedRedis())
        prepare_topics(settings)
        producer = parts.enter_context(closing(open_producer(settings)))
        source = parts.enter_context(closing(open_source(settings, [settings.clicks_topic], settings.consumer_group)))
        reader = parts.enter_context(closing(open_reader(settings, settings.dead_letters_topic)))
        loop = Loop(
            settings,
            source=source,
            items=parts.enter_context(closing(open_items(settings))),
            feedback=parts.enter_context(closing(open_feedback(settings))),
            dead_letters=DeadLetterWriter(producer, reader, settings.dead_letters_topic, open_eraser(settings)),
            lists=Lists(redis.client, ttl_s=settings.list_ttl_s),
            checkpoints=Checkpoints(settings.checkpoints_dir, settings.checkpoints_kept),
        )
        loop.restore()
        loop.start()
        send(producer, settings, islice(clicks, BEFORE))
        while loop.progress.learned < BEFORE:
            loop.turn()
        thread = threading.Thread(target=publish, args=(settings, clicks, rate, stop), daemon=True)
        thread.start()
        try:
            waited, tunings = measure(loop, seconds)
        finally:
            stop.set()
            thread.join()
    idle = float(np.quantile(waited["idle"], 0.99))
    yield f"{rate:g} clicks/s, {tunings} fine-tunings in {seconds:g} s"
    for state, name in (("idle", "neither"), ("running", "fine-tuning"), ("shadow", "in the shadow")):
        if found := waited.get(state):
            p50, p99 = np.quantile(found, (0.5, 0.99))
            yield f"  {name:13s} {len(found):6d} clicks: p50 {p50:6.1f} ms, p99 {p99:6.1f} ms, {p99 / idle:.2f} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=50.0, help="clicks a second")
    parser.add_argument("--seconds", type=float, default=120.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in run(given.rate, given.seconds, Path(folder)):
            print(line)


if __name__ == "__main__":
    main()
