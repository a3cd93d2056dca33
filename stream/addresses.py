"""Addresses of servers as they are written in settings: a Redis URL, and Kafka's bootstrap servers.

Each is checked before anything is looked up or connected to. What is wrong is said without any part of the text: a
password that is not written as a URL wants it may stand anywhere in it.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

REDIS_PORT = 6379
SENTINEL_PORT = 26379
RESP = 2  # the protocol that every Redis and every proxy speaks

SINGLE, CLUSTER, SENTINEL = "single", "cluster", "sentinel"  # how a Redis is deployed
#: By scheme: whether it is TLS, and how the Redis is deployed.
_SCHEMES: Mapping[str, tuple[bool, str]] = {
    "redis": (False, SINGLE),
    "rediss": (True, SINGLE),
    "unix": (False, SINGLE),
    "redis+cluster": (False, CLUSTER),
    "rediss+cluster": (True, CLUSTER),
    "redis+sentinel": (False, SENTINEL),
    "rediss+sentinel": (True, SENTINEL),
}
_EXAMPLE = (
    "write redis://HOST:PORT/0, rediss://HOST:PORT/0 (TLS) or unix:///PATH?db=0; redis+cluster://HOST:PORT,HOST:PORT "
    "for a cluster, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE for sentinels (rediss+ for TLS)"
)
_NO_HOST = f"it names no host, or not as a URL does: {_EXAMPLE}, an IPv6 address in brackets"
_ESCAPE = (
    "its user or password holds a character that means something else in a URL (one of @ / # ? % : [ ] or a space): "
    "percent-encode it (@ is %40), or take user and password out of the URL and set NEXTCLICK_REDIS_USERNAME and "
    "NEXTCLICK_REDIS_PASSWORD"
)
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,200}")
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_BLANK = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]")  # urlsplit leaves some of them out
_PLACE = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::(.*))?")
_HALF_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

ALLOWED = ("db", "protocol", "client_name")  # options of a URL
_OURS = "nextclick sets it itself: take it out"
_CHECKED = (
    "certificates and host names are always checked, from TLS 1.2 on: take it out (for an authority of your own set "
    "NEXTCLICK_REDIS_SSL_CAFILE)"
)
#: Options that redis-py would take from a URL, and what to do instead. By these names alone an option is spoken of.
_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("socket_timeout", "timeout"), "set NEXTCLICK_REDIS_ANSWER_S_MAX instead"),
    "socket_connect_timeout": "set NEXTCLICK_REDIS_CONNECT_S_MAX instead",
    "username": "set NEXTCLICK_REDIS_USERNAME instead",
    "password": "set NEXTCLICK_REDIS_PASSWORD instead",
    **dict.fromkeys(("host", "port", "path"), f"it belongs in the URL itself: {_EXAMPLE}"),
    "ssl": "begin the URL with rediss:// instead",
    "ssl_ca_certs": "set NEXTCLICK_REDIS_SSL_CAFILE instead",
    "ssl_certfile": "set NEXTCLICK_REDIS_SSL_CERTFILE instead",
    "ssl_keyfile": "set NEXTCLICK_REDIS_SSL_KEYFILE instead",
    "ssl_password": "set NEXTCLICK_REDIS_SSL_PASSWORD instead",
    **dict.fromkeys(
        (
            *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "ssl_ca_path", "ssl_ca_data"),
            *("ssl_include_verify_flags", "ssl_exclude_verify_flags", "ssl_validate_ocsp"),
            *("ssl_validate_ocsp_stapled", "ssl_ocsp_context", "ssl_ocsp_expected_cert"),
        ),
        _CHECKED,
    ),
    **dict.fromkeys(
        (
            *("health_check_interval", "max_connections", "retry", "retry_on_timeout", "retry_on_error"),
            *("socket_keepalive", "socket_keepalive_options", "socket_read_size", "socket_type"),
            *("decode_responses", "encoding", "encoding_errors", "errors", "charset", "lib_name", "lib_version"),
            *("legacy_responses", "single_connection_client", "connection_class", "parser_class"),
            *("credential_provider", "redis_connect_func", "cache", "cache_config", "event_dispatcher", "driver_info"),
        ),
        _OURS,
    ),
}


class AddressError(ValueError):
    """An address that cannot be used: one line that says what is wrong and what to do, and holds no part of it."""


class RedisAddress(NamedTuple):
    """What a Redis URL says.

    `host` is without brackets; None with `path`, the socket of a unix:// URL. `mode` is SINGLE, CLUSTER or SENTINEL.
    `nodes` are host and port of each node that the URL names (of a cluster, or sentinels); `service` is what sentinels
    call the primary.
    """

    tls: bool
    host: str | None
    port: int
    path: str | None
    db: int
    username: str | None
    password: str | None
    protocol: int
    client_name: str | None
    mode: str = SINGLE
    nodes: tuple[tuple[str, int], ...] = ()
    service: str | None = None

    @property
    def shown(self) -> str:
        """The URL without user, password and options."""
        scheme = "rediss" if self.tls else "redis"
        nodes = ",".join(host_and_port(host, port) for host, port in self.nodes)
        if self.mode == CLUSTER:
            return f"{scheme}+cluster://{nodes}"
        if self.mode == SENTINEL:
            return f"{scheme}+sentinel://{nodes}/{self.service}" + (f"/{self.db}" if self.db else "")
        return f"unix://{self.path}" if self.path else f"{scheme}://{nodes}/{self.db}"

    def options(self) -> dict[str, Any]:
        """For a client of redis-py, beside TLS."""
        where: dict[str, Any] = {"unix_socket_path": self.path} if self.path else {"host": self.host, "port": self.port}
        optional = {"username": self.username, "password": self.password, "client_name": self.client_name}
        given = {name: value for name, value in optional.items() if value is not None}
        return where | {"db": self.db, "protocol": self.protocol} | given


def redis_address(url: str) -> RedisAddress:
    """What a URL says: redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// likewise, unix://[USER:PASSWORD@]/PATH;
    redis+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/0]; redis+sentinel://...[,...]/SERVICE[/DB].

    Raises:
        AddressError: it is none, or has an option that is not among ALLOWED, or not a right one.
    """
    parts = _split(url)
    username, password = _credentials(parts)
    options = _options(parts.query)
    tls, mode = _SCHEMES[parts.scheme]
    path, service, db = None, None, None
    host: str | None
    nodes: tuple[tuple[str, int], ...]
    if parts.scheme == "unix":
        host, port, path, nodes = None, 0, _socket_path(parts), ()
    else:
        nodes = _nodes(parts, mode)
        host, port = nodes[0]
        service, database = _service(parts.path) if mode == SENTINEL else (None, parts.path)
        db = _database(database)
    if "db" in options:
        asked = _integer(options["db"], "the option db of its query is no number of a database: 0, 1, 2 and so on")
        if db not in (None, asked):
            raise AddressError("it names two databases, one in its path and one as ?db=: leave one out")
        db = asked
    if mode == CLUSTER and db:
        raise AddressError("a cluster has only the database 0: leave the number out")
    protocol = options.get("protocol", str(RESP))
    if protocol not in ("2", "3"):
        raise AddressError("the option protocol of its query has to be 2 or 3")
    name = options.get("client_name")
    if name is not None and not re.fullmatch(r"[!-~]{1,64}", name):
        raise AddressError("the option client_name of its query has to be 1 to 64 visible ASCII characters, no spaces")
    return RedisAddress(tls, host, port, path, db or 0, username, password, int(protocol), name, mode, nodes, service)


def _split(url: str) -> SplitResult:
    """The parts of a URL in which nothing is ambiguous."""
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() not in _SCHEMES:
        raise AddressError(f"it does not begin with redis://, rediss:// or unix://: {_EXAMPLE}")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user_info = authority.rpartition("@")[0]
    odd = _BLANK.search(url) or _HALF_ESCAPE.search(rest) or "#" in rest
    socket = scheme.lower() == "unix" and (not authority or authority.endswith("@"))
    if (
        ("@" in rest and odd)
        or ("@" in rest[len(authority) :] and not socket)
        or ("@" in user_info or user_info.count(":") > 1 or re.search(r"[\[\]]", user_info))
    ):
        raise AddressError(_ESCAPE)
    if odd:
        raise AddressError(f"it holds a space, a line break, a # or a lone %: {_EXAMPLE}")
    try:
        return urlsplit(url)
    except ValueError:  # whose message holds the host, or what was taken for it
        raise AddressError(_NO_HOST) from None


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    try:
        username, password = (
            unquote(text, errors="strict") if text else None for text in (parts.username, parts.password)
        )
    except UnicodeDecodeError:
        raise AddressError(_ESCAPE) from None
    if username and not password:
        raise AddressError("it has a user and no password: write redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST")
    return username, password


def _nodes(parts: SplitResult, mode: str) -> tuple[tuple[str, int], ...]:
    """The servers that a URL names, one or more; only a cluster or sentinels may be several."""
    texts = parts.netloc.rpartition("@")[2]
    port = SENTINEL_PORT if mode == SENTINEL else REDIS_PORT
    return tuple(_host_and_port(text, port) for text in ([texts] if mode == SINGLE else texts.split(",")))


def _service(path: str) -> tuple[str, str]:
    """What sentinels call the primary, and the rest of the path."""
    name, slash, database = path.removeprefix("/").partition("/")
    if not _SERVICE.fullmatch(name):
        raise AddressError(
            "its path does not begin with the service, the name under which sentinels know the primary (letters, "
            "digits, . _ -): write redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"
        )
    return name, slash + database


def _host_and_port(text: str, default_port: int) -> tuple[str, int]:
    place = _PLACE.fullmatch(text)
    if place is None:
        raise AddressError(_NO_HOST)
    bracketed, name, port = place.groups()
    host = unquote(bracketed or name or "")
    if not (_is_ipv6(host) if bracketed else _HOST_NAME.fullmatch(host)):
        raise AddressError(_NO_HOST)
    return host, default_port if port is None else _port(port, f"it has no port from 1 to 65535: {_EXAMPLE}")


def _socket_path(parts: SplitResult) -> str:
    if parts.netloc.rpartition("@")[2] or not parts.path.strip("/"):
        raise AddressError("of a socket the whole path is needed, with three slashes: unix:///var/run/redis.sock")
    return unquote(parts.path)


def _database(path: str) -> int | None:
    if path in ("", "/"):
        return None
    return _integer(path[1:], "its path is no number of a database (/0, /1 and so on): Redis has no names for them")


def _options(query: str) -> dict[str, str]:
    """The options of a query, checked by their names. A name that redis-py does not know is not shown either."""
    found: dict[str, str] = {}
    for place, (name, value) in enumerate(parse_qsl(query, keep_blank_values=True), 1):
        if name not in ALLOWED:
            known = f"the option {name}: {_INSTEAD[name]}" if name in _INSTEAD else None
            known = known or f"an option that nextclick does not know (number {place} of its query): take it out"
            raise AddressError(f"its query has {known}; only {', '.join(ALLOWED)} may stand there")
        if name in found:
            raise AddressError(f"its query has the option {name} twice: leave one out")
        if not value:
            raise AddressError(f"the option {name} of its query is empty: take it out")
        found[name] = value
    return found


def kafka_servers(text: str) -> str:
    """HOST:PORT[,HOST:PORT...] as kafka-python takes it, without spaces around. Raises AddressError."""
    if "@" in text:
        raise AddressError(
            "it has a user or password in it: write HOST:PORT, and set NEXTCLICK_KAFKA_SASL_USERNAME and "
            "NEXTCLICK_KAFKA_SASL_PASSWORD"
        )
    servers = [part.strip() for part in text.split(",") if part.strip()]
    if not servers:
        raise AddressError("it names no server: write HOST:PORT, several with commas between them")
    for place, server in enumerate(servers, 1):
        if wrong := next(_wrong_with(server), None):
            raise AddressError(f"server {place} of {len(servers)} {wrong}")
    return ",".join(servers)


def _wrong_with(server: str) -> Iterator[str]:
    """What keeps a text from being HOST:PORT."""
    if "://" in server:
        yield "begins like a URL: write HOST:PORT (for TLS set NEXTCLICK_KAFKA_SECURITY_PROTOCOL)"
    if re.search(r"[\s;|]", server):
        yield "has a space, a semicolon or a bar in it: separate servers by commas"
    if _is_ipv6(server.strip("[]")):
        yield "has no port: write an IPv6 address as [ADDRESS]:9092"
    host, colon, port = server.rpartition(":")
    if not colon:
        yield "has no port: write HOST:PORT, as in HOST:9092"
    if not (_is_ipv6(host[1:-1]) if re.fullmatch(r"\[.*\]", host) else _HOST_NAME.fullmatch(host)):
        yield "names no host: write HOST:PORT, an IPv6 address as [ADDRESS]:9092"
    try:
        _port(port, "")
    except AddressError:
        yield "has no port from 1 to 65535: write HOST:PORT, as in HOST:9092"


def host_and_port(host: str, port: int) -> str:
    """As a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _port(text: str, wrong: str) -> int:
    port = _integer(text, wrong)
    if not 1 <= port <= 65_535:
        raise AddressError(wrong)
    return port


def _integer(text: str, wrong: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise AddressError(wrong)
    return int(text)
