"""A Redis Cluster of one's own, and a primary with a replica and a sentinel: for tests and benchmarks."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import redis

from benchmarks._servers import Server, free_port

NODES = 3
SLOTS = 16_384
_READY_S_MAX = 60.0


def until(true: Callable[[], bool], what: str) -> None:
    """Waits. Raises TimeoutError."""
    deadline = time.monotonic() + _READY_S_MAX
    while True:
        with contextlib.suppress(redis.RedisError):
            if true():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.02)


def _port_with_bus() -> int:
    """A free port whose cluster bus, ten thousand above it, has a number too."""
    port = free_port()
    while port > 55_000:
        port = free_port()
    return port


def _server(program: str, folder: Path, port: int, *arguments: str) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    ready = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
    command = [program, *arguments, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    return Server(command, port, ready, folder / "output.log")


class RedisCluster:
    """Three primaries that keep nothing on disk but which slots are theirs."""

    def __init__(
        self, program: str, folder: Path, *, full_coverage: bool = True, arguments: Sequence[str] = ()
    ) -> None:
        """`arguments`: more of them for each node."""
        coverage = "yes" if full_coverage else "no"
        options = ["--cluster-enabled", "yes", "--save", "", "--cluster-node-timeout", "1000"]
        options += ["--cluster-require-full-coverage", coverage, *arguments]
        self.nodes = [_server(program, folder / str(number), _port_with_bus(), *options) for number in range(NODES)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def admin(self, number: int) -> redis.Redis:
        """A client of one node."""
        return redis.Redis(port=self.nodes[number].port, socket_timeout=5.0)

    def start(self) -> None:
        """Returns when the cluster takes writes."""
        for node in self.nodes:
            node.start()
        step = -(-SLOTS // len(self.nodes))
        for number in range(len(self.nodes)):
            admin = self.admin(number)
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", number * step, min(SLOTS, (number + 1) * step) - 1)
            admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                admin.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        self.wait()

    def wait(self) -> None:
        """Until each node knows that the cluster is complete, and tells where all nodes are."""

        def complete() -> bool:
            for number in range(len(self.nodes)):
                info = self.admin(number).execute_command("CLUSTER INFO")
                text = info if isinstance(info, bytes) else repr(info).encode()
                holders = {tuple(primary[:2]) for _, _, primary in self.admin(number).execute_command("CLUSTER SLOTS")}
                if b"cluster_state:ok" not in text.replace(b"': '", b":") or len(holders) < len(self.nodes):
                    return False
            return True

        until(complete, "the cluster is complete")

    def flush(self) -> None:
        for number in range(len(self.nodes)):
            self.admin(number).flushall()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def pause(self, number: int) -> None:
        """The node hangs: connections stay open, no answer comes."""
        self.nodes[number].signal(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        self.nodes[number].signal(signal.SIGCONT)

    def number_of(self, slot: int) -> int:
        """Which node holds a slot."""
        for first, last, primary, *_ in self.admin(0).execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return [node.port for node in self.nodes].index(primary[1])
        raise ValueError(slot)

    def begin_move(self, slot: int, to: int) -> int:
        """Opens a slot's move: its keys may be at either node from now on. Returns which node it leaves."""
        source = self.number_of(slot)
        ids = [self.admin(number).execute_command("CLUSTER MYID").decode() for number in (source, to)]
        self.admin(to).execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        self.admin(source).execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        return source

    def move_keys(self, slot: int, source: int, to: int) -> None:
        admin = self.admin(source)
        while keys := admin.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            admin.execute_command("MIGRATE", "127.0.0.1", self.nodes[to].port, "", 0, 5_000, "KEYS", *keys)

    def end_move(self, slot: int, to: int) -> None:
        owner = self.admin(to).execute_command("CLUSTER MYID").decode()
        for number in dict.fromkeys([to, *range(len(self.nodes))]):
            self.admin(number).execute_command("CLUSTER", "SETSLOT", slot, "NODE", owner)

    def move(self, slot: int, to: int) -> None:
        """Moves a slot with its keys, as redis-cli does."""
        if self.number_of(slot) == to:
            return
        source = self.begin_move(slot, to)
        self.move_keys(slot, source, to)
        self.end_move(slot, to)


class Sentinels:
    """A primary, a replica, and one sentinel whose word is enough."""

    service = "lists"

    def __init__(self, program: str, folder: Path, *, password: str = "", sentinel_password: str = "") -> None:
        ports = [free_port() for _ in range(3)]
        secret = ("--requirepass", password, "--masterauth", password) if password else ()
        plain = ("--save", "", "--repl-diskless-sync-delay", "0", *secret)
        self.redis = [
            _server(program, folder / "0", ports[0], *plain),
            _server(program, folder / "1", ports[1], *plain, "--replicaof", f"127.0.0.1 {ports[0]}"),
        ]
        config = folder / "sentinel.conf"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"sentinel monitor {self.service} 127.0.0.1 {ports[0]} 1",
            f"sentinel down-after-milliseconds {self.service} 500",
            f"sentinel failover-timeout {self.service} 3000",
            *([f"sentinel auth-pass {self.service} {password}"] if password else []),
            *([f"requirepass {sentinel_password}"] if sentinel_password else []),
        ]
        config.write_text("\n".join(lines) + "\n")
        ready = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{ports[2]}"]
        command = [program, str(config), "--sentinel", "--port", str(ports[2]), "--bind", "127.0.0.1"]
        self.sentinel = Server(command, ports[2], ready, folder / "sentinel.log")
        self._sentinel_password, self._password = sentinel_password, password

    @property
    def options(self) -> dict[str, str]:
        """Of a client, beside the URL."""
        return {"sentinel_password": self._sentinel_password} if self._sentinel_password else {}

    @property
    def url(self) -> str:
        secret = f":{self._password}@" if self._password else ""
        return f"redis+sentinel://{secret}127.0.0.1:{self.sentinel.port}/{self.service}"

    def asked(self) -> redis.Redis:
        return redis.Redis(port=self.sentinel.port, password=self._sentinel_password or None)

    def start(self) -> None:
        """Returns when the sentinel knows the replica, and that it is in step."""
        for server in (*self.redis, self.sentinel):
            server.start()

        def known() -> bool:
            replicas = self.asked().sentinel_slaves(self.service)
            return any(one["master-link-status"] == "ok" for one in replicas)

        until(known, "the sentinel knows the replica")

    def primary(self) -> int:
        """Which server is the primary by the sentinel's word."""
        _, port = self.asked().sentinel_get_master_addr_by_name(self.service)
        return [server.port for server in self.redis].index(int(port))

    def kill(self) -> None:
        for server in (self.sentinel, *self.redis):
            server.kill()


Servers = TypeVar("Servers", RedisCluster, Sentinels)


@contextmanager
def running(servers: Servers) -> Iterator[Servers]:
    with ExitStack() as stack:
        stack.callback(servers.kill)
        servers.start()
        yield servers
