"""Questions while something is wrong: python -m benchmarks.ask_faults --redis PORT [--kafka HOST:PORT]

`POST /rank` is asked at a constant rate while a worker learns: with nothing wrong; 1,000 questions at once; with a
queue that holds one question; with a slow Redis (a proxy delays each piece of data by 150 ms); with the worker stopped
(SIGSTOP) and killed (SIGKILL). Told is where the lists came from, and how many answers were errors: none may be.
Prints one JSON object; exits with 1 if there was any.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks._live import Live, live
from benchmarks.ask import USERS, ask, figures, serving
from benchmarks.proxy import Proxy

AT_ONCE, CONNECTIONS = 1_000, 100
SLOW_S = 0.15


async def all_at_once(url: str, users: list[str]) -> list[tuple[float, str]]:
    """Asks 1,000 questions at the same moment, over as many connections as httpx can handle; each has its own time."""
    free = asyncio.Semaphore(CONNECTIONS)
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def one(user: str) -> tuple[float, str]:
            async with free:
                began = time.perf_counter()
                try:
                    answer = await client.post("/rank", json={"user_id": user})
                    source = answer.json()["source"] if answer.status_code == 200 else str(answer.status_code)
                except httpx.HTTPError as error:
                    source = type(error).__name__
            return 1_000 * (time.perf_counter() - began), source

        return await asyncio.gather(*(one(users[number % len(users)]) for number in range(AT_ONCE)))


def go(running: Live, proxy: Proxy, given: argparse.Namespace) -> dict[str, list[tuple[float, str]]]:
    """All phases."""
    users, found = running.town.user_ids, {}

    def rate(url: str) -> list[tuple[float, str]]:
        return asyncio.run(ask(url, users, rate=given.questions, seconds=given.seconds))

    with serving(running) as url:
        time.sleep(2)
        found["nothing wrong"] = rate(url)
        found["1,000 at once"] = asyncio.run(all_at_once(url, users))
    os.environ["NEXTCLICK_ASK_WAITING_MAX"] = "1"
    with serving(running) as url:
        time.sleep(2)
        found["queue of one"] = asyncio.run(all_at_once(url, users))
    del os.environ["NEXTCLICK_ASK_WAITING_MAX"]
    with serving(running) as url:
        time.sleep(2)
        proxy.delay_s = SLOW_S
        found["Redis slow"] = rate(url)
        proxy.delay_s = 0.0
        os.kill(running.pid, signal.SIGSTOP)
        found["worker stopped"] = rate(url)
        os.kill(running.pid, signal.SIGCONT)
        os.kill(running.pid, signal.SIGKILL)
        found["worker killed"] = rate(url)
    return found


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", type=int, required=True, metavar="PORT", help="of 127.0.0.1")
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--questions", type=float, default=50.0, help="a second")
    parser.add_argument("--clicks", type=float, default=100.0, help="a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Proxy(given.redis) as proxy:
        redis = f"redis://127.0.0.1:{proxy.port}/0"
        with live(Path(folder), kafka=given.kafka, redis=redis, users=USERS, status_interval_s=0.5) as running:
            running.rate = None
            running.wait_for(3_000)
            running.rate = given.clicks
            found = go(running, proxy, given)
    report: dict[str, Any] = {}
    errors = 0
    for name, answers in found.items():
        wrong = Counter(source for _, source in answers if source not in {"asked", "stored", "popular"})
        errors += wrong.total()
        report[name] = figures(answers) | {"errors": dict(wrong)}
    print(json.dumps(report | {"errors": errors}, indent=2))
    sys.exit(int(errors > 0))


if __name__ == "__main__":
    main()
