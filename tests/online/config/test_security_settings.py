"""Settings of TLS, passwords and keys: what does not fit together is named, and no secret is ever shown."""

import logging
import re
import traceback

import pytest
from pydantic import SecretStr, ValidationError

from online.api.keys import make_key
from online.config.clients import kafka_options, redis_options
from online.config.settings import PREFIX, Settings, SettingsError, load_settings
from online.worker.connections import open_lists, prepare_topics
from stream import kafka_errors
from stream.lists import ListsError
from stream.source import SourceError


def problems(**given):
    with pytest.raises(SettingsError) as error:
        load_settings(**given)
    assert "planted" not in "".join(traceback.format_exception(error.value))
    return [line.strip() for line in str(error.value).splitlines()[1:]]


SASL = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_username": "u", "kafka_sasl_password": "planted-1"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (SASL | {"kafka_sasl_password": None}, ["KAFKA_SASL_PASSWORD KAFKA_SECURITY_PROTOCOL"]),
        (SASL | {"kafka_sasl_username": None}, ["KAFKA_SASL_USERNAME KAFKA_SECURITY_PROTOCOL"]),
        (
            SASL | {"kafka_security_protocol": "SSL"},
            ["KAFKA_SASL_USERNAME KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_PASSWORD KAFKA_SECURITY_PROTOCOL"],
        ),
        ({"kafka_ssl_cafile": __file__}, ["KAFKA_SSL_CAFILE KAFKA_SECURITY_PROTOCOL"]),
        (SASL | {"kafka_ssl_cafile": "/no/such"}, ["KAFKA_SSL_CAFILE"]),
        (SASL | {"kafka_ssl_keyfile": __file__}, ["KAFKA_SSL_KEYFILE KAFKA_SSL_CERTFILE"]),
        (SASL | {"kafka_ssl_password": "planted-2"}, ["KAFKA_SSL_PASSWORD KAFKA_SSL_CERTFILE"]),
        ({"redis_url": "redis://h", "redis_ssl_cafile": __file__}, ["REDIS_SSL_CAFILE REDIS_URL"]),
        ({"redis_url": "rediss://h", "redis_ssl_keyfile": __file__}, ["REDIS_SSL_KEYFILE REDIS_SSL_CERTFILE"]),
        (
            {"redis_url": "redis://:planted-3@h", "redis_password": "planted-4"},
            ["REDIS_URL REDIS_USERNAME"],
        ),
        ({"redis_url": "redis://h", "redis_username": "u"}, ["REDIS_USERNAME REDIS_PASSWORD"]),
        ({"api_read_only": False, "api_host": "0.0.0.0"}, ["API_READ_ONLY API_KEYS API_HOST"]),
        ({"api_keys": "planted-5"}, ["API_KEYS"]),
        ({"api_keys": f"{make_key('a')[1]},{make_key('a')[1]}"}, ["API_KEYS"]),
    ],
)
def test_what_does_not_fit_together_is_named(given, named):
    found = [
        " ".join(w.strip(",;:()") for w in line.replace("=", " ").split() if PREFIX in w) for line in problems(**given)
    ]
    assert found == [" ".join(PREFIX + name for name in line.split()) for line in named]


def test_a_certificate_that_is_none_is_named(tmp_path):
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    for where, given in {"KAFKA": SASL, "REDIS": {"redis_url": "rediss://h"}}.items():
        options = {"KAFKA": kafka_options, "REDIS": redis_options}[where]
        for name in ("cafile", "certfile"):
            settings = load_settings(**given, **{f"{where.lower()}_ssl_{name}": broken})
            with pytest.raises(SettingsError, match=f"^NEXTCLICK_{where}_SSL_{name.upper()}") as error:
                options(settings)
            assert "\n" not in str(error.value)


def test_options_of_clients_hold_passwords_and_show_none():
    kafka = kafka_options(load_settings(**SASL))
    redis = redis_options(load_settings(redis_url="redis://h", redis_username="u", redis_password="planted-6"))
    assert (kafka["sasl_plain_password"], redis["password"]) == ("planted-1", "planted-6")
    assert "planted" not in f"{kafka} {redis}"
    assert kafka["ssl_context"].check_hostname
    assert kafka["ssl_context"].verify_mode.name == "CERT_REQUIRED"


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    """Writes a file of the folder of secrets."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("NEXTCLICK_SECRETS_DIR", str(folder))

    def write(name, text):
        (folder / name).write_text(text)
        return folder / name

    return write


def test_secrets_are_read_from_files_and_variables_win(monkeypatch, secrets, tmp_path):
    secrets("nextclick_redis_url", "redis://file:planted@host/0\n")
    secrets("NEXTCLICK_REDIS_VALUE_BYTES_MAX", " 7 \n")
    secrets("nextclick_width", "16")
    secrets("database_password", "somebody else's")
    (tmp_path / "some.env").write_text("NEXTCLICK_HEADS=4\nNEXTCLICK_WIDTH=8\n")
    secrets("nextclick_heads", "1")
    monkeypatch.setenv("NEXTCLICK_ENV_FILE", str(tmp_path / "some.env"))
    monkeypatch.setenv("NEXTCLICK_WIDTH", "32")
    settings = load_settings()
    assert settings.redis_url.get_secret_value() == "redis://file:planted@host/0"
    assert (settings.redis_value_bytes_max, settings.width, settings.heads) == (7, 32, 4)


def test_a_folder_of_secrets_that_cannot_be_used_says_why(monkeypatch, secrets, tmp_path):
    path = secrets("nextclick_redis_pasword", "planted")
    assert problems() == [
        f"{path}: NEXTCLICK_REDIS_PASWORD: there is no such setting; did you mean NEXTCLICK_REDIS_PASSWORD?"
    ]
    path.rename(path.with_name("nextclick_list_size")).write_bytes(b"\xff")
    assert problems() == [f"NEXTCLICK_SECRETS_DIR: a file in {path.parent} is not text in UTF-8"]
    secrets("nextclick_list_size", "planted")
    assert problems() == ["NEXTCLICK_LIST_SIZE: Input should be a valid integer, unable to parse string as an integer"]
    for wrong, why in {
        tmp_path / "nowhere": "No such file or directory",
        path.parent / "nextclick_list_size": "Not a directory",
    }.items():
        monkeypatch.setenv("NEXTCLICK_SECRETS_DIR", str(wrong))
        assert problems() == [f"NEXTCLICK_SECRETS_DIR: {wrong} cannot be read: {why}"]


def test_no_secret_is_shown_by_settings_or_by_what_fails_with_them(tmp_path, free_port):
    """One secret in each setting that is one, all planted."""
    names = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
    assert {
        "redis_url",
        "redis_password",
        "redis_sentinel_password",
        "kafka_sasl_password",
        "kafka_ssl_password",
    } <= set(names)
    certificate = tmp_path / "some.pem"
    certificate.write_text("planted-certificate")
    given = {name: f"planted-{name}" for name in names if name != "redis_sentinel_password"} | {
        "redis_url": f"rediss://127.0.0.1:{free_port}/0", "data_dir": tmp_path,
        "kafka_bootstrap_servers": f"127.0.0.1:{free_port}", **SASL, "kafka_ssl_certfile": certificate,
        "redis_ssl_certfile": certificate,
    }  # fmt: skip
    settings = load_settings(**given)
    shown = [repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())]
    for attempt in (lambda: prepare_topics(settings), lambda: open_lists(settings)):
        with pytest.raises((SettingsError, SourceError, ListsError)) as error:
            attempt()
        shown += traceback.format_exception(error.value)
    plain = load_settings(redis_url=f"redis://u:planted-url@127.0.0.1:{free_port}/0")
    with pytest.raises(ListsError) as error:
        open_lists(plain)
    shown += traceback.format_exception(error.value)
    for scheme, path in (("redis+sentinel", "/lists"), ("redis+cluster", "")):
        several = {"redis_url": f"{scheme}://u:planted-url@127.0.0.1:{free_port}{path}", "redis_connect_s_max": 0.5}
        sentinels = {"redis_sentinel_password": "planted-sentinel"} if path else {}
        with pytest.raises(ListsError) as error:
            open_lists(load_settings(**several, **sentinels))
        shown += [repr(load_settings(**several, **sentinels)), *traceback.format_exception(error.value)]
    assert "planted" not in "".join(shown)
    assert isinstance(settings.kafka_sasl_password, SecretStr)


def test_the_most_talkative_log_of_kafka_shows_no_password(free_port, monkeypatch, caplog):
    """kafka-python logs the options it is given, and each request: PLAIN shows the password in one."""
    monkeypatch.setitem(kafka_errors._COMMON, "bootstrap_timeout_ms", 300)
    monkeypatch.setattr(logging.getLogger("kafka"), "propagate", True)
    caplog.set_level(logging.DEBUG, logger="kafka")
    settings = load_settings(**SASL, kafka_bootstrap_servers=f"127.0.0.1:{free_port}")
    with pytest.raises(SourceError):
        prepare_topics(settings)
    assert "sasl_plain_password" in caplog.text
    assert "planted" not in caplog.text
    for wire in ("kafka.net.connection", "kafka.protocol.parser"):
        assert not logging.getLogger(wire).isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"redis_url": "rediss://u:planted@h/0?ssl_cert_reqs=none"}, "NEXTCLICK_REDIS_URL: .*always checked"),
        ({"redis_url": "rediss://u:planted@h/0?ssl_check_hostname=false"}, "NEXTCLICK_REDIS_URL: .*always checked"),
        (
            {"redis_url": "redis://u:planted@h/0?socket_timeout=x"},
            "NEXTCLICK_REDIS_URL: .*NEXTCLICK_REDIS_ANSWER_S_MAX",
        ),
        ({"redis_url": "redis://:plan/planted@h:6379/0"}, "NEXTCLICK_REDIS_URL: .*NEXTCLICK_REDIS_PASSWORD"),
        ({"redis_url": "redis://:planted@h:6379/prod"}, "NEXTCLICK_REDIS_URL: .*number of a database"),
        ({"kafka_bootstrap_servers": "u:planted@h:9092"}, "NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS: .*SASL_PASSWORD"),
        ({"kafka_bootstrap_servers": "kafka://planted:9092"}, "NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS: .*like a URL"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_when_settings_are_read(monkeypatch, given, says):
    (line,) = problems(**given)
    assert re.fullmatch(says + ".*", line)
    ((name, value),) = given.items()
    monkeypatch.setenv(PREFIX + name.upper(), value)
    assert problems() == [line]
    with pytest.raises(ValidationError) as error:
        Settings(**given)
    assert "planted" not in f"{error.value}{error.value!r}"


def test_what_a_url_says_reaches_the_client_and_checks_stay(tmp_path):
    settings = load_settings(
        redis_url="rediss://u:p%2F@[::1]:7/3?protocol=3", redis_answer_s_max=0.5, data_dir=tmp_path
    )
    lists = open_lists(settings, there=False)
    options = lists._client.connection_pool.connection_kwargs
    wanted = {"host": "::1", "port": 7, "db": 3, "protocol": 3, "password": "p/", "ssl_check_hostname": True}
    wanted |= {"ssl_cert_reqs": "required", "socket_timeout": 0.5, "socket_connect_timeout": 1.0}
    assert {name: options[name] for name in wanted} == wanted
    assert lists.address == "rediss://[::1]:7/3"
