"""How long a worker takes from the start of its process until it learns, and what it holds then.

    python -m benchmarks.start STREAM.csv.xz [--clicks 100000] [--starts 5] [--redis URL] [--checkout DIR]
    python -m benchmarks.start --folder DIR ...

A worker learns so many clicks of the stream, from the embedded log, and stops; then workers are started from its
checkpoint, one after the other. --folder keeps the folder of that state, and begins with the starts where it is there
already. Counted is until the worker's first report, which it gives after its first turn. --checkout starts another
version of the code, which has to be able to read the checkpoint.
"""

import argparse
import json
import re
import signal
import statistics
import sys
import tempfile
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks._servers import free_port
from benchmarks.end_to_end import Worker, wait_until_taken
from online.config.settings import load_settings
from online.worker.connections import open_producer, prepare_topics
from stream.event_files import EventFile


def run(
    stream: Path | None,
    folder: Path,
    *,
    clicks: int = 100_000,
    starts: int = 5,
    redis: str | None = None,
    checkout: Path | None = None,
) -> dict[str, Any]:
    """Measures it -> one JSON object; times in seconds, memory in MiB."""
    given = {"data_dir": folder, "redis_url": redis, "embedded_redis_port": free_port()}
    given |= {"finetune_interval_s": 0.0, "status_interval_s": 0.2}
    given = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(**given)
    environment = {f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}
    worker = Worker(environment, folder / "worker.log", checkout=checkout)
    if not settings.checkpoints_dir.exists():
        if stream is None:
            raise SystemExit(f"{folder} holds no checkpoint: name a stream to learn from")
        prepare_topics(settings)
        with closing(open_producer(settings)) as producer:
            for event in islice(EventFile(stream).messages(), clicks):
                producer.send(settings.clicks_topic, key=event.key, value=event.value)
        worker.start()
        wait_until_taken(settings, clicks, worker)
        worker.end(signal.SIGTERM)
    took, memory, learned = [], [], 0
    for _ in range(starts):
        began = time.monotonic()
        worker.start()
        learned = wait_until_taken(settings, 1, worker)["learned"]
        took.append(round(time.monotonic() - began, 2))
        memory.append(worker.memory_mb())
        worker.end(signal.SIGTERM)
    checkpoint = max(path for path in settings.checkpoints_dir.iterdir() if re.fullmatch(r"\d+", path.name))
    return {
        "learned": learned,
        "checkpoint_mb": round(sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e6, 1),
        "ready_s": statistics.median(took),
        "ready_s_each": took,
        "memory_mb": statistics.median(memory),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path, nargs="?")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--clicks", type=int, default=100_000)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--checkout", type=Path, help="folder of another version of the code")
    arguments = vars(parser.parse_args())
    stream, folder = arguments.pop("stream"), arguments.pop("folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (folder or Path(temporary) / "state").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(run(stream, folder, **arguments), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
