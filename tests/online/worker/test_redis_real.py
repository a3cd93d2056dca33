"""Real redis-servers that work by half: each reason is one clear line, nothing flaps, and lists come soon after it."""

import re
import socket
import threading
import time
from contextlib import closing

import pytest
import redis

from online.config.settings import Settings
from online.worker.redis_link import RedisLink
from stream.lists import Lists, ListsError, TopList, connect

pytestmark = pytest.mark.real

LIST = TopList(items=["i"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=2, source="personal")
PRIVATE = "private-id-of-a-user"
LISTS = {PRIVATE: LIST} | {f"u{n}": LIST for n in range(20)}


@pytest.fixture
def server(start_redis):
    """Starts a redis-server without TLS; all go at the end."""
    running = []

    def start(*arguments):
        running.append(start_redis(arguments, tls=False))
        return running[-1]

    yield start
    for one in running:
        one.kill()


def link_to(url, tmp_path, **limits):
    return RedisLink(
        Settings(data_dir=tmp_path, retry_s_min=0.05, retry_s_max=0.2),
        Lists(connect(url, **limits), ttl_s=60),
        clock=time.time,
        on_loss=lambda _: None,
        on_return=lambda _: None,
    )


def goes_on(link, seconds):
    """Looks and writes as a worker does -> how often its state moved."""
    deadline, moved, before = time.monotonic() + seconds, 0, link.away_since
    while time.monotonic() < deadline:
        if link.due:
            link.check()
        if link.due:
            link.write(LISTS, LIST)
        moved += link.away_since != before
        before = link.away_since
        time.sleep(0.01)
    return moved


def is_fresh_within(link, seconds=10):
    deadline = time.monotonic() + seconds
    while not link.write(LISTS, LIST):
        assert time.monotonic() < deadline, link.trouble
        time.sleep(0.01)
    return True


REFUSALS = {
    "full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "is full"),
    "replica": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read-only replica"),
    "too few replicas": (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
        "min-replicas-to-write",
    ),
    "the mark alone is allowed": (
        "ACL SETUSER default resetkeys ~nextclick:mark:*",
        "ACL SETUSER default allkeys",
        "NOPERM: .* keys",
    ),
    "no writes": ("ACL SETUSER default -set", "ACL SETUSER default +set", "NOPERM: .*'set' command"),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_refuses_lists_is_one_line_that_stands_until_it_is_mended(server, tmp_path, caplog, reason):
    refuse, allow, says = REFUSALS[reason]
    admin = redis.Redis(port=(one := server()).port)
    link = link_to(one.url, tmp_path)
    assert link.write(LISTS, LIST)
    admin.execute_command(*refuse.split())
    assert goes_on(link, 3.0) == 1
    (line,) = [record.message for record in caplog.records if record.name.startswith("online.worker.")]
    assert pytest.approx(time.time(), abs=60) == link.away_since
    assert f"Redis at {one.url} " in line
    assert re.search(says, line)
    assert PRIVATE not in line
    admin.execute_command(*allow.split())
    assert is_fresh_within(link)
    assert link.away_since is None


def test_a_redis_that_is_started_with_a_password_is_one_line_without_ours(server, tmp_path, caplog):
    admin = redis.Redis(port=(one := server()).port)
    link = link_to(one.url.replace("//", "//:planted-password@"), tmp_path)
    for _ in range(2):
        assert goes_on(link, 0.5) <= 1
    assert "refuses: user or password is wrong" in caplog.text
    assert "planted" not in caplog.text
    admin.config_set("requirepass", "planted-password")
    assert is_fresh_within(link)


def test_a_redis_that_renames_commands_shows_no_password(server):
    renamed = server("--rename-command", "AUTH", "")
    with pytest.raises(ListsError, match=r"does not know a command that is needed .unknown command 'AUTH'") as error:
        Lists(connect(renamed.url.replace("//", "//:planted@")), ttl_s=60).check()
    assert "planted" not in str(error.value)


def test_a_database_that_is_not_there_is_named_and_so_is_a_missing_one_of_a_cluster(server):
    for arguments, says in (((), "no database of that number"), (("--cluster-enabled", "yes"), "is a cluster")):
        with pytest.raises(ListsError, match=says):
            Lists(connect(server(*arguments).url.replace("/0", "/99")), ttl_s=60).check()


def test_a_server_that_is_loading_its_data_is_waited_for(server, tmp_path, caplog):
    one = server(
        "--enable-debug-command", "yes", "--key-load-delay", "200", "--loading-process-events-interval-bytes", "1024"
    )
    admin = redis.Redis(port=one.port)
    admin.execute_command("DEBUG", "POPULATE", "10000", "other", "100")
    link = link_to(one.url, tmp_path)
    assert link.write(LISTS, LIST)
    reloading = threading.Thread(target=lambda: redis.Redis(port=one.port).execute_command("DEBUG", "RELOAD"))
    reloading.start()
    goes_on(link, 1.5)
    reloading.join()
    assert is_fresh_within(link, 30)
    assert [record.message for record in caplog.records if "is loading its data" in record.message]


def cluster_of_two(server):
    """Two processes that share the slots -> their URLs."""
    first, second = server("--cluster-enabled", "yes"), server("--cluster-enabled", "yes")
    one, other = redis.Redis(port=first.port), redis.Redis(port=second.port)
    one.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8_191)
    other.execute_command("CLUSTER", "ADDSLOTSRANGE", 8_192, 16_383)
    other.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
    one.execute_command("CLUSTER", "MEET", "127.0.0.1", second.port)
    deadline = time.monotonic() + 60
    while any(b"cluster_state:ok" not in node.execute_command("CLUSTER", "INFO") for node in (one, other)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return first.url, second.url


def test_a_cluster_behind_a_plain_url_is_named_and_never_found_to_be_back(server, tmp_path, caplog):
    for url in cluster_of_two(server):
        caplog.clear()
        link = link_to(url, tmp_path)
        assert goes_on(link, 3.0) == 1
        (line,) = [record.message for record in caplog.records if record.name.startswith("online.worker.")]
        assert line.startswith(f"Redis at {url} is a cluster (MOVED")
        assert "check NEXTCLICK_REDIS_URL, a cluster's begins with redis+cluster://" in line
        with pytest.raises(ListsError, match="is a cluster"):
            Lists(connect(url), ttl_s=60).standing(["u1", "u2"])  # two keys of different slots


def test_a_proxy_that_cuts_off_a_pipeline_is_not_taken_for_a_missing_redis(tmp_path, caplog):
    """It answers what comes alone, and hangs up at more."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    while (data := client.recv(65_536)) and data.count(b"\r\nnextclick:") < 2:
                        client.sendall(b"+OK\r\n")

        threading.Thread(target=serve, daemon=True).start()
        link = link_to(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", tmp_path)
        assert goes_on(link, 2.0) == 1
        assert "ended the connection instead of answering" in caplog.text
        assert caplog.text.count("learning goes on") == 1


def test_both_protocols_ipv6_and_a_socket_take_lists_and_are_shown_as_written(server):
    path = f"/tmp/nextclick-{time.time_ns()}.sock"
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 address ::1")
    one = server("--bind", "127.0.0.1 ::1", "--unixsocket", path)
    for url, shown in (
        (f"redis://[::1]:{one.port}/0", None),
        (f"redis://[::1]:{one.port}/1?protocol=3", f"redis://[::1]:{one.port}/1"),
        (f"redis://127.0.0.1:{one.port}?db=2&protocol=2&client_name=shop", f"redis://127.0.0.1:{one.port}/2"),
        (f"unix://{path}", None),
        (f"unix://{path}?db=3", None),
    ):
        lists = Lists(connect(url), ttl_s=60)
        lists.write({"u": LIST}, LIST)
        assert lists.read("u") == LIST
        assert lists.address == (shown or url)
    one.kill()
    with pytest.raises(ListsError, match=rf"at redis://\[::1\]:{one.port}/0: .*\(Connection refused\)$"):
        Lists(connect(f"redis://[::1]:{one.port}/0"), ttl_s=60).check()
