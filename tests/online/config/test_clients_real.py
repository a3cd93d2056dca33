"""Kafka and Redis behind TLS, with passwords and certificates of a throw-away authority: what gets in, what does not.

Every secret here is planted: at the end none may stand in a log, a status, a list, a checkpoint or a topic.
"""

import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from online.api.app import create_app
from online.config.settings import Settings, SettingsError
from online.worker.array_file import ArrayFile
from online.worker.connections import open_lists, open_producer, open_reader, open_source, prepare_topics
from stream import kafka_errors
from stream.lists import Lists, ListsError, TopList
from stream.source import SourceError

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]  # a busy machine makes it slow, not wrong

ROOT = Path(__file__).parents[3]
PLANTED = {
    name: f"planted-{name}-a83k"
    for name in ("kafka", "kafka-plain", "kafka-key", "redis", "redis-serve", "redis-admin", "api")
}
API_HASH = hashlib.sha256(PLANTED["api"].encode()).hexdigest()
TOP = TopList(items=["i1"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=1, source="personal")
WAIT_S = 240


class Authority:
    """A certificate authority that is forgotten with its folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"throw-away {folder.name}")])
        certificate = self._signed(self._name, self._key, days=2).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = certificate.sign(self._key, hashes.SHA256())
        self.cafile = folder / "ca.pem"
        self.cafile.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self, name: str, *, host: str = "127.0.0.1", days: int = 1, password: str = ""
    ) -> tuple[Path, Path, Path]:
        """-> certificate, key, and both with the authority in one file (PEM)."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        try:
            who: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            who = x509.DNSName(host)
        request = self._signed(subject, key, days=days)
        request = request.add_extension(x509.SubjectAlternativeName([who]), critical=False)
        certificate = request.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        sealed: KeySerializationEncryption = NoEncryption()
        if password:
            sealed = BestAvailableEncryption(password.encode())
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed)
        paths = tuple(self.folder / f"{name}.{kind}.pem" for kind in ("cert", "key", "all"))
        authority = self.certificate.public_bytes(Encoding.PEM)
        for path, content in zip(paths, (certificate, secret, secret + certificate + authority), strict=True):
            path.write_bytes(content)
        return paths  # type: ignore[return-value]

    def _signed(self, subject: x509.Name, key: Any, *, days: int) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=10))
            .not_valid_after(now + dt.timedelta(days=days))
        )


@dataclass
class Safe:
    """What a client has to know to get in."""

    authority: Authority
    stranger: Authority
    kafka: dict[str, int]  # listener -> port
    redis_port: int

    def settings(self, folder: Path, **given: Any) -> Settings:
        """A user with password, by TLS, to both; `given` changes it."""
        values = {
            "data_dir": folder,
            "kafka_bootstrap_servers": f"127.0.0.1:{self.kafka['SCRAM']}",
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_username": "worker",
            "kafka_sasl_password": PLANTED["kafka"],
            "kafka_ssl_cafile": self.authority.cafile,
            "redis_url": f"rediss://127.0.0.1:{self.redis_port}/0",
            "redis_username": "worker",
            "redis_password": PLANTED["redis"],
            "redis_ssl_cafile": self.authority.cafile,
        }
        return Settings(**{name: value for name, value in {**values, **given}.items() if value is not None})

    def mutual(self, **given: Any) -> dict[str, Any]:
        """Changes to `settings` for the listener that knows its clients by certificate."""
        certificate, key, _ = self.authority.issue("client", password=PLANTED["kafka-key"])
        return {
            "kafka_bootstrap_servers": f"127.0.0.1:{self.kafka['MTLS']}",
            "kafka_security_protocol": "SSL", "kafka_sasl_username": None, "kafka_sasl_password": None,
            "kafka_ssl_certfile": certificate, "kafka_ssl_keyfile": key, "kafka_ssl_password": PLANTED["kafka-key"],
            **given,
        }  # fmt: skip


@pytest.fixture(scope="module")
def safe(
    tmp_path_factory: pytest.TempPathFactory, start_kafka: Callable[..., Any], start_redis: Callable[..., Any]
) -> Iterator[Safe]:
    folder = tmp_path_factory.mktemp("safe")
    authority, stranger = Authority(folder / "authority"), Authority(folder / "stranger")
    good = authority.issue("server")
    listeners = {
        "SCRAM": ("SASL_SSL", good), "PLAIN": ("SASL_SSL", good), "MTLS": ("SSL", good),
        "EXPIRED": ("SSL", authority.issue("expired", days=-1)),
        "ELSEWHERE": ("SSL", authority.issue("elsewhere", host="kafka.example")),
    }  # fmt: skip
    broker, ports = start_kafka(
        {name: protocol for name, (protocol, _) in listeners.items()}, _kafka(listeners), {"worker": PLANTED["kafka"]}
    )
    server = start_redis(_redis(folder, good, authority))
    yield Safe(authority, stranger, ports, server.port)
    broker.kill()
    server.kill()


def _kafka(listeners: dict[str, Any]) -> list[str]:
    modules = "org.apache.kafka.common.security"
    lines = [
        "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512",
        f"listener.name.scram.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;",
        "listener.name.plain.sasl.enabled.mechanisms=PLAIN",
        f'listener.name.plain.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required user_worker="'
        f'{PLANTED["kafka-plain"]}";',
        "listener.name.mtls.ssl.client.auth=required",
    ]
    for name, (_, (_, _, both)) in listeners.items():
        prefix = f"listener.name.{name.lower()}.ssl"
        lines += [f"{prefix}.keystore.type=PEM", f"{prefix}.keystore.location={both}"]
        lines += [f"{prefix}.truststore.type=PEM", f"{prefix}.truststore.location={both.parent / 'ca.pem'}"]
    return lines


def _redis(folder: Path, good: tuple[Path, Path, Path], authority: Authority) -> list[str]:
    users = folder / "users.acl"
    users.write_text(
        "user default off\n"
        f"user worker on >{PLANTED['redis']} ~nextclick:* -@all +@read +@write +@connection\n"
        f"user serve on >{PLANTED['redis-serve']} %R~nextclick:* -@all +getrange +mget +@connection\n"
        f"user admin on >{PLANTED['redis-admin']} ~* &* +@all\n"
    )
    certificate, key, _ = good
    return [
        "--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(authority.cafile),
        "--tls-auth-clients", "no", "--aclfile", str(users),
    ]  # fmt: skip


def refused(error: Any) -> str:
    """The line, which is one, and tells no secret; nor does what caused it."""
    line, cause = str(error.value), error.value
    assert "\n" not in line
    while cause is not None:
        assert not [secret for secret in PLANTED.values() if secret in f"{cause} {cause!r}"]
        cause = cause.__cause__ or cause.__context__
    return line


@pytest.mark.parametrize("way", ["scram", "plain", "mutual"])
def test_a_client_with_the_password_or_the_certificate_reads_and_writes(safe: Safe, tmp_path: Path, way: str) -> None:
    given = {
        "scram": {},
        "plain": {
            "kafka_bootstrap_servers": f"127.0.0.1:{safe.kafka['PLAIN']}",
            "kafka_sasl_mechanism": "PLAIN", "kafka_sasl_password": PLANTED["kafka-plain"],
        },
        "mutual": safe.mutual() if way == "mutual" else {},
    }[way]  # fmt: skip
    settings = safe.settings(tmp_path, clicks_topic=f"clicks-{way}", **given)
    prepare_topics(settings)
    with closing(open_producer(settings)) as producer, closing(open_reader(settings, settings.clicks_topic)) as reader:
        producer.send(settings.clicks_topic, key=b"u", value=b"1")
        producer.flush()
        assert [record.value for record in reader.read()] == [b"1"]
    with closing(open_source(settings, [settings.clicks_topic], way)) as source:
        source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
        deadline, values = time.monotonic() + WAIT_S, []
        while not values and time.monotonic() < deadline:
            values = [record.value for record in source.poll(max_records=5, timeout_s=1.0)]
    assert values == [b"1"]


WRONG_KAFKA = {
    "password": (
        lambda _: {"kafka_sasl_password": "wrong"},
        "refuses user or password .*NEXTCLICK_KAFKA_SASL_USERNAME",
    ),
    "user": (lambda _: {"kafka_sasl_username": "nobody"}, "refuses user or password"),
    "mechanism": (lambda _: {"kafka_sasl_mechanism": "PLAIN"}, "does not know this way to log in .*SASL_MECHANISM"),
    "authority": (
        lambda safe: {"kafka_ssl_cafile": safe.stranger.cafile},
        "cannot be trusted .*: its certificate is not trusted: .*NEXTCLICK_KAFKA_SSL_",
    ),
    "no certificate": (
        lambda safe: safe.mutual(kafka_ssl_certfile=None, kafka_ssl_keyfile=None, kafka_ssl_password=None),
        r"it does not take our certificate \(bad_certificate\)",
    ),
    "a stranger's certificate": (
        lambda safe: safe.mutual(
            **dict(zip(("kafka_ssl_certfile", "kafka_ssl_keyfile"), safe.stranger.issue("client")[:2], strict=True)),
            kafka_ssl_password=None,
        ),
        "it does not take our certificate",
    ),
    "expired": (
        lambda safe: safe.mutual(kafka_bootstrap_servers=f"127.0.0.1:{safe.kafka['EXPIRED']}"),
        "its certificate is not trusted: certificate has expired",
    ),
    "host": (
        lambda safe: safe.mutual(kafka_bootstrap_servers=f"127.0.0.1:{safe.kafka['ELSEWHERE']}"),
        "its certificate is not trusted: ip address mismatch",
    ),
    "no TLS there": (
        lambda safe: {"kafka_bootstrap_servers": f"127.0.0.1:{safe.kafka['PLAINTEXT']}"},
        "it does not speak TLS there",
    ),
}


@pytest.mark.parametrize("what", WRONG_KAFKA)
def test_kafka_is_not_entered_and_one_line_says_what_to_check(
    safe: Safe, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kafka_errors._COMMON, "bootstrap_timeout_ms", 60_000)  # it does not come to that
    change, message = WRONG_KAFKA[what]
    with pytest.raises(SourceError, match=message) as error:
        prepare_topics(safe.settings(tmp_path, **change(safe)))
    assert "no Kafka answers" not in refused(error)


@pytest.fixture
def admin(safe: Safe) -> Iterator[redis.Redis]:
    """Changes Redis' TLS, and puts it back."""
    client = redis.Redis(
        host="127.0.0.1", port=safe.redis_port, username="admin", password=PLANTED["redis-admin"], ssl=True,
        ssl_ca_certs=str(safe.authority.cafile),
    )  # fmt: skip
    before = client.config_get("tls-*")
    yield client
    names = ("tls-cert-file", "tls-key-file", "tls-auth-clients")
    client.execute_command("CONFIG", "SET", *(part for name in names for part in (name, before[name])))


def test_redis_lets_in_who_has_the_password_and_a_certificate(safe: Safe, tmp_path: Path, admin: redis.Redis) -> None:
    open_lists(safe.settings(tmp_path)).write({"ada": TOP})
    certificate, key, _ = safe.authority.issue("lists", password=PLANTED["kafka-key"])
    mutual = safe.settings(
        tmp_path, redis_ssl_certfile=certificate, redis_ssl_keyfile=key, redis_ssl_password=PLANTED["kafka-key"]
    )
    admin.config_set("tls-auth-clients", "yes")
    try:
        assert open_lists(mutual).read("ada") == TOP
        # Which of both it is depends on whether Redis hangs up before or after we write.
        with pytest.raises(ListsError, match=r"certificate_required.*REDIS_SSL|REDIS_SSL_CERTFILE where") as error:
            open_lists(safe.settings(tmp_path))
        refused(error)
    finally:
        admin.config_set("tls-auth-clients", "no")  # by the connection that stands


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"redis_password": "wrong"}, "refuses: .*check NEXTCLICK_REDIS_USERNAME and _PASSWORD"),
        ({"redis_username": "nobody"}, "refuses: .*check NEXTCLICK_REDIS_USERNAME"),
        ({"redis_username": None, "redis_password": None}, "refuses: .*check NEXTCLICK_REDIS_USERNAME"),
        ({"redis_ssl_cafile": "stranger"}, "its certificate is not trusted: .*check NEXTCLICK_REDIS_URL and"),
        ({"redis_ssl_cafile": None}, "its certificate is not trusted"),
    ],
)
def test_redis_is_not_entered_and_one_line_says_what_to_check(
    safe: Safe, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    if given.get("redis_ssl_cafile") == "stranger":
        given = {"redis_ssl_cafile": safe.stranger.cafile}
    with pytest.raises(ListsError, match=message) as error:
        open_lists(safe.settings(tmp_path, **given))
    assert "no Redis answers" not in refused(error)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"days": -1}, "certificate has expired"), ({"host": "redis.example"}, "ip address mismatch")],
)
def test_a_redis_whose_certificate_is_expired_or_anothers_is_not_trusted(
    safe: Safe, tmp_path: Path, admin: redis.Redis, given: dict[str, Any], message: str
) -> None:
    certificate, key, _ = safe.authority.issue("another", **given)
    admin.execute_command("CONFIG", "SET", "tls-cert-file", str(certificate), "tls-key-file", str(key))
    with pytest.raises(ListsError, match=f"its certificate is not trusted: {message}") as error:
        open_lists(safe.settings(tmp_path))
    refused(error)


def test_serve_is_content_with_a_user_who_may_only_read(safe: Safe, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient  # noqa: PLC0415

    worker = open_lists(safe.settings(tmp_path))
    worker.write({"ada": TOP}, TOP)
    worker.write_status({"state": "running"}, 30)
    reader = open_lists(safe.settings(tmp_path, redis_username="serve", redis_password=PLANTED["redis-serve"]))
    api = TestClient(create_app(safe.settings(tmp_path), reader))
    assert api.get("/recommend/ada").json()["items"] == ["i1"]
    assert api.get("/readyz").status_code == api.get("/metrics").status_code == 200
    assert api.get("/status.json").json() | {"now": 0} == {"now": 0, "redis": "ok", "worker": {"state": "running"}}
    with pytest.raises(ListsError, match=r"refuses: .*what that user may do"):
        reader.write({"ada": TOP})
    assert worker.read("ada") == TOP


def test_a_key_that_does_not_belong_to_its_certificate_is_named(safe: Safe, tmp_path: Path) -> None:
    for given in ({"kafka_ssl_password": "wrong"}, {"kafka_ssl_password": None}, {"kafka_ssl_cafile": __file__}):
        with pytest.raises(SettingsError, match=r"NEXTCLICK_KAFKA_SSL_(CERTFILE|CAFILE)") as error:
            prepare_topics(safe.settings(tmp_path, **safe.mutual(**given)))
        refused(error)


def served(process: subprocess.Popen[str], port: int) -> str:
    """What a `serve` says that is asked with its key, and with another one."""
    answers: list[int] = []
    deadline = time.monotonic() + WAIT_S
    while not answers and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        with contextlib.suppress(httpx.TransportError):
            for key in (PLANTED["api"], "planted-guess-a83k"):
                answer = httpx.get(f"http://127.0.0.1:{port}/recommend/u1", headers={"X-API-Key": key})
                answers.append(answer.status_code)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=WAIT_S)[0]
    assert answers == [200, 401], said
    return said


def learned(worker: subprocess.Popen[str], lists: Lists, clicks: int, lines: list[str]) -> dict[str, Any]:
    """The status of a worker that has learned so many clicks; `lines` is what it says."""
    status: dict[str, Any] = {}
    deadline = time.monotonic() + WAIT_S
    while status.get("learned", 0) < clicks and time.monotonic() < deadline:
        assert worker.poll() is None, lines
        time.sleep(0.2)
        with contextlib.suppress(ListsError):
            status = lists.status() or status
    assert status, lines
    return status


def arrays_in(path):
    """The bytes of all arrays of a checkpoint's file, which are compressed there."""
    with path.open("rb") as file, (path.parent / "arrays.zst").open("rb") as full:
        content = ArrayFile(file, ArrayFile(full))
        return b"\n".join(content.read(name).tobytes() for name in content.names)


def test_a_worker_learns_over_tls_and_nothing_it_says_or_keeps_holds_a_secret(
    safe: Safe, tmp_path: Path, admin: redis.Redis, free_port: int, request: pytest.FixtureRequest
) -> None:
    data, secrets = tmp_path / "data", tmp_path / "secrets"
    settings = safe.settings(
        data, clicks_topic="clicks-secret", kafka_bootstrap_servers=f"127.0.0.1:{safe.kafka['PLAIN']}",
        kafka_sasl_mechanism="PLAIN", kafka_sasl_password=PLANTED["kafka-plain"],
    )  # fmt: skip
    prepare_topics(settings)
    clicks = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 5}", "timestamp": 1e9 + n} for n in range(40)]
    with closing(open_producer(settings)) as producer:
        for click in [*clicks, "broken"]:
            producer.send(settings.clicks_topic, key=b"u", value=json.dumps(click).encode())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NEXTCLICK_")}
    environment |= {"NEXTCLICK_LOG_LEVEL": "debug", "NEXTCLICK_SECRETS_DIR": str(secrets)}
    secrets.mkdir()
    for name, value in settings.model_dump(exclude_unset=True).items():
        if hasattr(value, "get_secret_value"):
            (secrets / f"nextclick_{name}").write_text(value.get_secret_value() + "\n")
        else:
            environment[f"NEXTCLICK_{name.upper()}"] = str(value)

    def command(*arguments: str, **changed: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "online", *arguments], cwd=ROOT, env={**environment, **changed}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        request.addfinalizer(process.kill)
        return process

    worker, lists = command("worker"), open_lists(settings)
    lines: list[str] = []  # read as they come: a full pipe would hold the worker up
    listener = threading.Thread(target=lambda: lines.extend(worker.stdout or ()), daemon=True)
    listener.start()
    status = learned(worker, lists, len(clicks), lines)
    assert (status["learned"], status["dead_letters"]) == (40, {"not-an-object": 1}), lines
    others = [command("status", "--json"), command("dead-letters", "--json"), command("top", "u1")]
    said = [other.communicate(timeout=WAIT_S)[0] for other in others]
    assert [other.returncode for other in others] == [0, 0, 0], said
    wrong = [
        command("item", "i1", "--available", NEXTCLICK_KAFKA_SASL_PASSWORD="planted-wrong-a83k"),
        command("status", NEXTCLICK_REDIS_PASSWORD="planted-wrong-a83k"),
    ]
    said += [other.communicate(timeout=WAIT_S)[0] for other in wrong]
    assert [other.returncode for other in wrong] == [1, 1]
    assert "refuses user or password" in said[-2]
    said.append(served(command("serve", "--port", str(free_port), NEXTCLICK_API_KEYS=f"shop:{API_HASH}"), free_port))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(WAIT_S) == 0, lines
    listener.join(WAIT_S)
    said.append("".join(lines))
    assert " DEBUG kafka." in said[-1]  # the log was as talkative as it can be

    kept = {str(path): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    unpacked = {f"{path} unpacked": arrays_in(path) for path in data.rglob("*.zst")}
    assert unpacked
    kept |= unpacked
    keys = admin.keys("*")
    kept |= {f"Redis {key}": admin.get(key) for key in keys}
    assert b"nextclick:top:u1" in keys
    for topic in (settings.clicks_topic, settings.dead_letters_topic, settings.events_topic):
        with closing(open_reader(settings, topic)) as reader:
            kept[topic] = b"".join((record.value or b"") + repr(record.headers).encode() for record in reader.read())
    kept |= {f"output {n}": text.encode() for n, text in enumerate(said)}
    kept["settings"] = f"{settings!r} {settings} {settings.model_dump_json()}".encode()
    # The secret, or how PLAIN or SCRAM would show it: both hold what all that was planted have in common.
    leaks = {
        name: [line for line in content.split(b"\n") if b"planted-" in line or b"a83k" in line]
        for name, content in kept.items()
    }
    assert not {name: lines for name, lines in leaks.items() if lines}
