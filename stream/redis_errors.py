"""What goes wrong with Redis, in one clear line: what it is, and what to do.

Of a server's own words only those are shown that hold no user's id and no password.
"""

import re
from collections.abc import Callable, Collection

import redis
import redis.sentinel

from stream.redis_cluster import MapChangedError
from stream.tls_errors import tls_trouble

_CLUSTER = (
    redis.exceptions.MovedError,
    redis.exceptions.AskError,
    redis.exceptions.ClusterError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.ClusterCrossSlotError,
    redis.exceptions.TryAgainError,
)
SECRET_LENGTH_MIN = 4  # a shorter one is part of many words
_URL = "check NEXTCLICK_REDIS_URL"
_USER = "check NEXTCLICK_REDIS_USERNAME and _PASSWORD (or those in _URL)"


class ListsError(Exception):
    """Redis cannot do what was asked. One line that names it, without its password, and says what to do."""


class RedisUnavailableError(ListsError):
    """It does not answer, or takes nothing now (loading, read-only, out of memory): that may pass by itself."""


class SlotsMovedError(RedisUnavailableError):
    """Slots of a cluster have moved while its keys were scanned: begin anew."""


class RedisTimeoutError(RedisUnavailableError):
    """No answer came at all: asking again costs time."""


def lists_error(error: Exception, address: str, secrets: Collection[str] = ()) -> ListsError:
    """The line on an error of redis-py or of a socket. `secrets`: what must not be shown, whatever says it."""
    text = _server_words(error, secrets)
    several = _of_a_cluster(error, address) or _of_sentinels(error, text, address)
    return several or _of_a_server(error, text, address)


def _of_a_server(error: Exception, text: str, address: str) -> ListsError:
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
        if line := _refuses_connection(error, text):
            return ListsError(f"Redis at {address} {line}")
        if isinstance(error, redis.exceptions.BusyLoadingError):
            return RedisUnavailableError(f"Redis at {address} is loading its data: it takes lists once that is done")
        if "max number of clients" in text:
            return RedisUnavailableError(f"Redis at {address} has no room for one more client: raise its maxclients")
        return _no_answer(error, text, address)
    for matches, kind, line in _REFUSALS:
        if matches(error, text):
            return kind(f"Redis at {address} {line.format(text=text)}")
    return ListsError(f"Redis at {address} refuses: {text}")


def _of_a_cluster(error: Exception, address: str) -> ListsError | None:
    """What only a cluster that is known to be one says."""
    if not re.match(r"rediss?\+cluster:", address):
        return None
    if isinstance(error, MapChangedError):
        return SlotsMovedError(f"Redis at {address} has moved slots while its keys were scanned: that begins anew")
    if isinstance(error, redis.exceptions.ClusterDownError):
        return RedisUnavailableError(
            f"Redis at {address} is a cluster that is not complete (CLUSTERDOWN): start its missing nodes, or give it "
            "replicas"
        )
    if isinstance(error, _CLUSTER):
        return RedisUnavailableError(f"Redis at {address} is a cluster that moves its slots: it takes lists soon")
    if "cluster support disabled" in str(error):
        return ListsError(f"Redis at {address} is no cluster: {_URL}, redis:// is for a single Redis")
    return None


def _of_sentinels(error: Exception, text: str, address: str) -> ListsError | None:
    """What only a primary that sentinels know says, or they themselves."""
    if "previous master is now a slave" in text:
        return RedisUnavailableError(f"Redis at {address} has become a replica: sentinels are asked for the primary")
    if not isinstance(error, redis.sentinel.MasterNotFoundError):
        return None
    if "AuthenticationError" in str(error) or "NOAUTH" in str(error):
        return ListsError(
            f"the sentinels at {address} refuse: user or password is wrong, or one is needed; check "
            "NEXTCLICK_REDIS_SENTINEL_USERNAME and _PASSWORD"
        )
    if " : " in text:
        return RedisTimeoutError(f"no sentinel answers at {address}: start it, or {_URL}")
    return RedisUnavailableError(
        f"the sentinels at {address} know no primary of that service now: it may be failing over; else {_URL}, it ends "
        "with the service's name"
    )


def _no_answer(error: Exception, text: str, address: str) -> ListsError:
    if trouble := tls_trouble(str(error)):
        advice = "check NEXTCLICK_REDIS_URL and NEXTCLICK_REDIS_SSL_*"
        return ListsError(f"Redis at {address} cannot be trusted or does not trust us: {trouble}; {advice}")
    if re.search(r"closed by server|reset by peer|Broken pipe", text):
        return RedisUnavailableError(
            f"Redis at {address} ended the connection instead of answering, see its log: it may be in protected mode, "
            "or want TLS (rediss://); a proxy in between has to pass pipelines on"
        )
    advice = f"start it, or {_URL}"
    if address.startswith("rediss") and "Timeout" in text:
        advice += " (rediss:// where it does not speak TLS?)"
    if "_ssl.c" in str(error):  # it hung up before it could say why
        advice += ", and NEXTCLICK_REDIS_SSL_CERTFILE where it asks for a certificate"
    return RedisTimeoutError(f"no Redis answers at {address}: {advice} ({text})")


def _refuses_connection(error: Exception, text: str) -> str | None:
    """Of what comes before the first command."""
    if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.AuthorizationError):
        return f"refuses: user or password is wrong, or one is needed ({text}); {_USER}"
    return _NO_DATABASE if "Invalid Database" in text else None


def _is(*kinds: type[Exception]) -> Callable[[Exception, str], bool]:
    return lambda error, _: isinstance(error, kinds)


def _says(pattern: str) -> Callable[[Exception, str], bool]:
    return lambda _, text: re.search(pattern, text) is not None


_NO_DATABASE = "has no database of that number (its setting `databases`): check the end of NEXTCLICK_REDIS_URL"
_PRIMARY = f"{_URL}, it has to name the primary"
#: What a server refuses, by redis-py's class or by its words; what may be mended without a new start is waited for.
_REFUSALS: tuple[tuple[Callable[[Exception, str], bool], type[ListsError], str], ...] = (
    (
        _is(redis.exceptions.MasterDownError),
        RedisUnavailableError,
        f"is a replica that has lost its primary: {_PRIMARY}",
    ),
    (
        lambda error, text: isinstance(error, _CLUSTER) or "in cluster mode" in text,
        RedisUnavailableError,
        f"is a cluster (MOVED, CLUSTERDOWN and the like): {_URL}, a cluster's begins with redis+cluster://",
    ),
    (
        _is(redis.exceptions.ReadOnlyError),
        RedisUnavailableError,
        f"is a read-only replica, which takes no lists: {_PRIMARY}",
    ),
    (
        _is(redis.exceptions.OutOfMemoryError),
        RedisUnavailableError,
        "is full (maxmemory) and may not evict enough: raise its maxmemory, or set its maxmemory-policy to allkeys-lru",
    ),
    (
        _says(r"^MISCONF\b"),
        RedisUnavailableError,
        "cannot save to its disk (MISCONF) and takes nothing until it can: see its log",
    ),
    (
        _says(r"^NOREPLICAS\b"),
        RedisUnavailableError,
        "has too few replicas (min-replicas-to-write) and takes nothing until it has more",
    ),
    (_says(r"^(BUSY|UNKILLABLE)\b"), RedisUnavailableError, "is held up by a script or a module (BUSY)"),
    (
        _says(r"^DENIED\b"),
        RedisUnavailableError,
        "is in protected mode, and lets only its own machine in: give it a password, or set what it binds to",
    ),
    (
        _is(redis.exceptions.NoPermissionError),
        RedisUnavailableError,
        "refuses: its user may not do that (NOPERM: {text}); check what that user may do: docs/security.md, "
        "'Connections', has rules that are enough",
    ),
    (
        _says(r"(?i)unknown (command|subcommand)|^syntax error"),
        ListsError,
        "does not know a command that is needed ({text}): nextclick needs Redis 6.2 or later, without renamed commands",
    ),
    (_says(r"(?i)DB index|Invalid Database"), ListsError, _NO_DATABASE),
    (
        _says(r"^NOPROTO\b"),
        ListsError,
        f"does not speak this protocol: {_URL}, ?protocol=2 is understood everywhere",
    ),
    (
        _says(r"(?i)AUTH.*(no password|without any password)|operation not permitted"),
        ListsError,
        f"refuses: user or password is wrong, or one is needed ({{text}}); {_USER}",
    ),
)


def _server_words(error: BaseException, secrets: Collection[str]) -> str:
    """What may be shown of an error's text: not the command that was refused, nor keys, nor hosts once more."""
    text = " ".join(str(error).split())
    # A pipeline's error begins with the command, and so with a list and whose it is.
    text = re.sub(r"^Command # \d+ \(.*\) of pipeline caused error: ", "", text)
    text = re.sub(r",? with args beginning with:.*", "", text)  # AUTH's are user and password
    text = re.sub(r"nextclick:.*", "nextclick:…", text)
    text = re.sub(r"^Error (-?\d+ )?connecting to \S+?\.( |$)", "", text)
    text = re.sub(r"(reading|writing) (from|to) \S+", r"\1", text)
    for secret in filter(lambda secret: len(secret) >= SECRET_LENGTH_MIN, secrets):
        text = text.replace(secret, "…")
    return text.rstrip(". ") or type(error).__name__
