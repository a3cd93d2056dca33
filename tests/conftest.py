"""What several folders of tests share: settings of hypothesis and torch, and the real servers where there are any.

Real servers are named by the environment: KAFKA_START is a script `start DIR PORT` that runs one node of Apache Kafka
in the foreground, with `ready PORT [SECONDS]` beside it; REDIS_SERVER is the path of redis-server.
"""

import gc
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from benchmarks._redis_cluster import RedisCluster, Sentinels, running
from benchmarks._servers import Server
from benchmarks._servers import free_port as _free_port

_TESTS = Path(__file__).parent

# No timed test decides: a busy machine makes an example slow, not wrong.
# CI looks at the same examples every time, so that it judges the change; at a desk each run looks at new ones.
settings.register_profile(
    "nextclick",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    database=None,
)
settings.load_profile("nextclick")


def pytest_configure(config: pytest.Config) -> None:
    """No test writes to the user's own data folder.

    Two test runs on a small machine are slower together than apart when each takes all cores.
    """
    home = tempfile.TemporaryDirectory(prefix="nextclick-tests-")
    config.add_cleanup(home.cleanup)
    os.environ["XDG_DATA_HOME"] = home.name
    if importlib.util.find_spec("torch"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@cache
def _names_the_mark(path: Path) -> bool:
    return path.is_file() and "mark.real" in path.read_text()


def _may_hold_real_tests(path: Path) -> bool:
    """Whether a file, or what its folders share, has a word of the mark `real`."""
    shared = [folder / "conftest.py" for folder in path.parents if folder.is_relative_to(_TESTS) and folder != _TESTS]
    return any(map(_names_the_mark, [path, *shared]))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m real` loads only files that may hold such tests: to load all takes each process half a minute."""
    others = config.option.markexpr == "real" and collection_path.suffix == ".py"
    return True if others and not _may_hold_real_tests(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests may take longest come first, so that at the end no worker waits for one that has just begun."""
    longest: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0.0), float(mark.args[0]) if mark and mark.args else 0.0)
        if item.get_closest_marker("real") and not _may_hold_real_tests(item.path):
            raise pytest.UsageError(f"{item.nodeid}: `-m real` would not find it; write the mark in its file")
    items.sort(key=lambda item: -longest[item.path])


def pytest_collection_finish() -> None:
    """What is loaded by now stays, and is a million objects. Python's collector looks at them no more, and so often at
    what tests leave behind: learners are in cycles of references, and hold tens of megabytes each."""
    gc.collect()
    gc.freeze()
    gc.collect()  # it waits for as much to come as it has last seen, and now sees nothing


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    return _free_port()


def _named_by(variable: str) -> str:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} is not set: tests against the real server are left out")
    if not os.access(path, os.X_OK):
        pytest.fail(f"{variable} names {path}, which cannot be run")
    return path


class KafkaBroker(Server):
    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"


class RedisServer(Server):
    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One node of Apache Kafka for the whole run; tests keep apart by their topics' names. As Kafka is by default, it
    makes a topic that it is asked for, unless a client says not to: ours have to."""
    start = Path(_named_by("KAFKA_START"))
    folder, port = tmp_path_factory.mktemp("kafka"), _free_port(pair=True)
    broker = KafkaBroker(
        command=[str(start), str(folder), str(port)],
        log=folder / "output.log",
        ready=[str(start.parent / "ready"), str(port), "60"],
        port=port,
    )
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for the whole run, keeping nothing on disk."""
    program = _named_by("REDIS_SERVER")
    folder, port = tmp_path_factory.mktemp("redis"), _free_port()
    server = RedisServer(
        command=[program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        log=folder / "output.log",
        ready=["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"],
        port=port,
    )
    server.start()
    yield server
    server.kill()


def _cluster(tmp_path_factory: pytest.TempPathFactory, **options: bool) -> Iterator[RedisCluster]:
    with running(RedisCluster(_named_by("REDIS_SERVER"), tmp_path_factory.mktemp("cluster"), **options)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three primaries for the whole run, that take nothing while one of them is missing."""
    yield from _cluster(tmp_path_factory)


@pytest.fixture(scope="session")
def partial_redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three primaries for the whole run, of which each takes its own slots whatever becomes of the others."""
    yield from _cluster(tmp_path_factory, full_coverage=False)


@pytest.fixture(scope="session")
def redis_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """A primary, a replica and a sentinel for the whole run, with passwords."""
    program, folder = _named_by("REDIS_SERVER"), tmp_path_factory.mktemp("sentinels")
    with running(Sentinels(program, folder, password="planted-1", sentinel_password="planted-2")) as sentinels:
        yield sentinels


@pytest.fixture(scope="session")
def start_kafka(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[KafkaBroker, dict[str, int]]]:
    """Starts a broker with more listeners (name -> security protocol) and lines of server.properties -> it, and the
    port of each listener. `users` may log in by SCRAM-SHA-512."""
    start = Path(_named_by("KAFKA_START"))

    def started(
        listeners: Mapping[str, str], lines: Sequence[str], users: Mapping[str, str]
    ) -> tuple[KafkaBroker, dict[str, int]]:
        folder, port = tmp_path_factory.mktemp("kafka"), _free_port(pair=True)
        ports = {"PLAINTEXT": port} | {name: _free_port() for name in listeners}
        where = ",".join(f"{name}://127.0.0.1:{at}" for name, at in ports.items())
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **listeners}
        broker = KafkaBroker(
            command=[
                str(start),
                str(folder),
                str(port),
                "auto.create.topics.enable=false",
                f"listeners={where},CONTROLLER://127.0.0.1:{port + 1}",
                f"advertised.listeners={where}",
                "listener.security.protocol.map=" + ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
                *lines,
            ],
            log=folder / "output.log",
            ready=[str(start.parent / "ready"), str(port), "60"],
            environment={
                "KAFKA_FORMAT_ARGS": " ".join(
                    f"--add-scram SCRAM-SHA-512=[name={user},password={password}]" for user, password in users.items()
                )
            },
            port=port,
        )
        broker.start()
        return broker, ports

    return started


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RedisServer]:
    """Starts a redis-server with more arguments, which speaks TLS alone, or no TLS at all."""
    program = _named_by("REDIS_SERVER")

    def started(arguments: Sequence[str], *, tls: bool = True) -> RedisServer:
        # With the port of the cluster's bus, ten thousand above it.
        folder, port = tmp_path_factory.mktemp("redis"), _free_port()
        while port > 55_000:
            port = _free_port()
        ports = ("--port", "0", "--tls-port", str(port)) if tls else ("--port", str(port))
        server = RedisServer(
            command=[
                *(program, *ports, "--bind", "127.0.0.1"),
                *("--save", "", "--dir", str(folder), *arguments),
            ],
            log=folder / "output.log",
            ready=["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"],
            port=port,
        )
        server.start()
        return server

    return started
