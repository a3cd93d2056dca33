"""Lists a second that the API reads out of Redis: python -m benchmarks.serve [--checkout FOLDER] [--workers 1,2]

Debian's `wrk` asks for lists of random users over 32 connections, as fast as they come; a redis-server of its own holds
them. With --checkout, `serve` of another version of the code is measured in the same minutes, in turns. What
`redis-benchmark` reaches with as many connections that GET the same values is told beside it. wrk, Redis, and the API
share this machine's cores.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import redis

from benchmarks._servers import Server, free_port, redis_server
from stream.lists import Lists, TopList

USERS, ITEMS = 5_000, 50
_START_S_MAX = 60.0
_ASK = """
math.randomseed(1)
function request() return wrk.format("GET", "/recommend/user" .. math.random(0, {users} - 1)) end
function done(summary, latency)
  io.write(string.format("FIGURES %f %f %f %d %d\\n", 1e6 * summary.requests / summary.duration,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


def fill(server: Server) -> None:
    """Writes everybody's list."""
    lists = Lists(redis.Redis(port=server.port), ttl_s=3_600)
    now = int(1_000 * time.time())
    tops = {}
    for user in range(USERS):
        items = [f"item-{(user * 31 + place * 7) % 20_000}" for place in range(ITEMS)]
        scores = [round(1 / (place + 2), 6) for place in range(ITEMS)]
        fields = {"version": 1, "offset": f"0:{user}", "clicked_at": now, "written_at": now, "source": "personal"}
        tops[f"user{user}"] = TopList(items=items, scores=scores, **fields)
    lists.write(tops, tops["user0"])


@contextmanager
def serving(server: Server, checkout: Path | None, workers: int) -> Iterator[tuple[str, int]]:
    """`nextclick serve` over a redis-server -> its URL, and its process."""
    port = free_port()
    environment = os.environ | {
        "NEXTCLICK_REDIS_URL": f"redis://127.0.0.1:{server.port}/0",
        "NEXTCLICK_API_REQUESTS_PER_S": "1000000",  # the version before has a limit by default
        "NEXTCLICK_API_REQUESTS_AT_ONCE": "1000000",
    }
    command = [sys.executable, "-m", "online", "serve", "--port", str(port)]
    if checkout is None:
        command += ["--workers", str(workers)]
    else:
        environment["PYTHONPATH"] = str(checkout)
    process = subprocess.Popen(command, env=environment, cwd=checkout, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + _START_S_MAX
    try:
        while True:
            try:
                assert len(httpx.get(f"{url}/recommend/user7").json()["items"]) == 10
                break
            except httpx.TransportError:
                if time.monotonic() > until or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def cpu_s(process: int) -> float:
    """CPU seconds of a process and of its children, which end never."""
    found = 0.0
    for task in [process, *map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]:
        fields = Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()
        found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def ask(url: str, process: int, script: Path, *, connections: int, seconds: int) -> dict[str, float]:
    """Requests a second, latencies in ms, errors, and CPU microseconds of a request."""
    before = cpu_s(process)
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--latency", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"FIGURES (\S+) (\S+) (\S+) (\d+) (\d+)", output)
    assert found is not None, output
    names = ("requests_per_s", "p50_ms", "p99_ms", "not_2xx", "broken")
    figures = {name: round(float(value), 1) for name, value in zip(names, found.groups(), strict=True)}
    cpu_us = 1e6 * (cpu_s(process) - before) / max(1.0, figures["requests_per_s"] * seconds)
    return figures | {"cpu_us": round(cpu_us)}


def redis_gets(server: Server, connections: int) -> float:
    """GETs a second of one of the lists."""
    command = ["redis-benchmark", "-p", str(server.port), "-c", str(connections), "-n", "100000", "--csv"]
    output = subprocess.run([*command, "GET", "nextclick:top:user7"], capture_output=True, text=True, check=True).stdout
    return float(output.strip().splitlines()[-1].split('","')[1])


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="folder of another version of the code")
    parser.add_argument("--workers", default="1", help="processes of this version, comma-separated")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--redis-server", default="redis-server", metavar="PROGRAM")
    given = parser.parse_args()
    kinds = [(f"{number} worker(s)", None, int(number)) for number in given.workers.split(",")]
    if given.checkout:
        kinds.insert(0, ("before", given.checkout.resolve(), 1))
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in kinds}
    with tempfile.TemporaryDirectory() as folder, redis_server(given.redis_server, Path(folder) / "redis") as server:
        script = Path(folder) / "ask.lua"
        script.write_text(_ASK.replace("{users}", str(USERS)))
        fill(server)
        for _ in range(given.rounds):
            for name, checkout, workers in kinds:
                with serving(server, checkout, workers) as (url, process):
                    ask(url, process, script, connections=given.connections, seconds=1)
                    found = ask(url, process, script, connections=given.connections, seconds=given.seconds)
                rounds[name].append(found)
        gets = redis_gets(server, given.connections)
    report: dict[str, object] = {"redis-benchmark GET": gets, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    for name, found in rounds.items():
        report[name] = {key: [one[key] for one in found] for key in found[0]}
        report[f"{name} / redis-benchmark"] = round(median(one["requests_per_s"] for one in found) / gets, 3)
    if given.checkout:
        middle = {name: median(one["requests_per_s"] for one in found) for name, found in rounds.items()}
        report["after / before"] = {name: round(middle[name] / middle["before"], 2) for name in middle}
        cpu = {name: median(one["cpu_us"] for one in found) for name, found in rounds.items()}
        report["CPU of a request, before / after"] = {name: round(cpu["before"] / cpu[name], 2) for name in cpu}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
