"""Questions at a constant rate beside a worker that learns: latency, share answered in time, and what learning loses.

    python -m benchmarks.ask [--redis URL] [--kafka HOST:PORT] [--questions 50] [--clicks 100] [--seconds 30]

A worker and an API, each a process of its own, and an endless town that clicks. First clicks come at a constant rate,
and `POST /rank` is asked at another one, each request at its own time, whatever became of those before; the latency is
from that time on. Then clicks always wait, and how many are learned a second is measured with and without questions, in
turns. Without --redis and --kafka the embedded parts are used. Prints one JSON object.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from benchmarks._live import Live, live
from benchmarks._servers import free_port

USERS = 2_000
_START_S_MAX = 60.0
_SETTLE_S = 5.0


@contextmanager
def serving(running: Live) -> Iterator[str]:
    """`nextclick serve` for a worker's lists -> its URL."""
    port, settings = free_port(), running.settings
    environment = {**os.environ, "NEXTCLICK_EMBEDDED_REDIS_PORT": str(settings.embedded_redis_port)}
    if settings.redis_url is not None:
        environment["NEXTCLICK_REDIS_URL"] = settings.redis_url.get_secret_value()
    command = [sys.executable, "-m", "online", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + _START_S_MAX
    try:
        while True:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.HTTPError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


async def ask(url: str, users: list[str], *, rate: float, seconds: float) -> list[tuple[float, str]]:
    """Asks at a constant rate -> of each question the latency in ms, and the source of the answer or the status."""
    found: list[tuple[float, str]] = []

    async def one(client: httpx.AsyncClient, number: int, due: float) -> None:
        try:
            answer = await client.post("/rank", json={"user_id": users[number % len(users)]})
            source = answer.json()["source"] if answer.status_code == 200 else str(answer.status_code)
        except httpx.HTTPError as error:
            source = type(error).__name__
        found.append((1_000 * (time.perf_counter() - due), source))

    async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=100)) as client:
        began, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(client, number, due)))
        await asyncio.gather(*tasks)
    return found


def figures(found: list[tuple[float, str]]) -> dict[str, Any]:
    """Latencies in ms, and where the lists came from."""
    latencies = sorted(took for took, _ in found)
    sources = Counter(source for _, source in found)
    cuts = quantiles(latencies, n=1_000)
    return {
        "questions": len(found),
        "p50_ms": round(median(latencies), 1),
        "p99_ms": round(cuts[989], 1),
        "in_time": round(sources["asked"] / len(found), 4),
        "sources": dict(sources),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All phases."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"abuse_filter": False, "status_interval_s": 0.5}
        with live(Path(folder), kafka=arguments.kafka, redis=arguments.redis, users=USERS, **settings) as running:
            running.rate = None
            running.wait_for(arguments.warm_up)
            users = running.town.user_ids
            with serving(running) as url:
                running.rate = arguments.clicks
                while (running.status() or {"lag": 1}).get("lag"):
                    time.sleep(0.2)
                time.sleep(_SETTLE_S)
                asked = asyncio.run(ask(url, users, rate=arguments.questions, seconds=arguments.seconds))
                rates = _learning(running, url, arguments)
            status = running.status() or {}
    return {
        "beside_clicks_per_s": arguments.clicks,
        "asked": figures(asked),
        "learned_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "learning_with/without": round(median(rates["with"]) / median(rates["without"]), 3),
        "worker": status.get("questions"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _learning(running: Live, url: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Clicks learned a second while some always wait, with questions and without, in turns."""
    rates: dict[str, list[float]] = {"without": [], "with": []}
    seconds = arguments.seconds / 2
    for _ in range(arguments.rounds):
        for name, values in rates.items():
            command = [sys.executable, "-m", "benchmarks.ask", "--only-ask", url, "--seconds", str(seconds + 8)]
            command += ["--questions", str(arguments.questions)]
            asking = subprocess.Popen(command, stdout=subprocess.DEVNULL) if name == "with" else None
            values.append(running.capacity(seconds, warm_up_s=3))
            if asking is not None:
                asking.terminate()
                asking.wait()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--questions", type=float, default=50.0, help="a second")
    parser.add_argument("--clicks", type=float, default=100.0, help="a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=2, help="of learning with and without questions")
    parser.add_argument("--warm-up", type=int, default=3_000, help="clicks that are learned first")
    parser.add_argument("--only-ask", metavar="URL", help="ask an API that runs, and nothing else")
    arguments = parser.parse_args()
    if arguments.only_ask:
        users = [f"u{number}" for number in range(USERS)]
        found = asyncio.run(ask(arguments.only_ask, users, rate=arguments.questions, seconds=arguments.seconds))
        print(json.dumps(figures(found)))
        return
    print(json.dumps(measure(arguments), indent=2))


if __name__ == "__main__":
    main()
