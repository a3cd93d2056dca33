"""What goes wrong with Kafka, in one clear line, and not a hundred times over."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from stream.source import SourceError, UnavailableError
from stream.tls_errors import tls_trouble

log = logging.getLogger("stream.kafka")

_BOOTSTRAP_MS_MAX = 6_000
_SAME_LINE_EVERY_S = 30.0

_WIRE = ("kafka.net.connection", "kafka.protocol.parser")  # their debug lines hold whole requests, passwords too

_COMMON = {
    "bootstrap_timeout_ms": _BOOTSTRAP_MS_MAX,
    # A broker that comes back is found soon.
    "reconnect_backoff_max_ms": 2_000,
}


class _Calm(logging.Handler):
    """Passes kafka-python's warnings on, each source line at most once in a while: an outage is not a flood.

    While a client connects for the first time it passes nothing on: a failure ends in one line.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.connecting = 0
        self._latest: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if self.connecting:
            return
        if record.name.startswith("kafka.coordinator.assignors"):
            return  # says at every start that topics are not known yet
        now, line = time.monotonic(), (record.name, record.lineno)
        if now - self._latest.get(line, -_SAME_LINE_EVERY_S) >= _SAME_LINE_EVERY_S:
            self._latest[line] = now
            log.warning("kafka-python: %s", record.getMessage())


_calm = _Calm()


def _calm_down() -> None:
    """Route kafka-python's log through `_Calm`, unless it is set up otherwise."""
    theirs = logging.getLogger("kafka")
    for wire in _WIRE:
        logging.getLogger(wire).setLevel(max(logging.INFO, theirs.getEffectiveLevel()))
    configured = any(not isinstance(handler, logging.NullHandler) for handler in theirs.handlers)
    if not configured and theirs.level == logging.NOTSET:
        theirs.setLevel(logging.WARNING)
        theirs.propagate = False
        theirs.addHandler(_calm)


def _with_the_last_words(receive: Callable[[Any], tuple[bytes, Any]]) -> Callable[[Any], tuple[bytes, Any]]:
    """What a broker says just before it ends a connection is read first: it is why it does, a wrong password say.

    kafka-python 3.0 drops it where both come at once. That the connection has ended is seen at the next look.
    """

    def received(transport: Any) -> tuple[bytes, Any]:
        data, error = receive(transport)
        return (data, None) if data else (data, error)

    return received


for _transport in (KafkaTCPTransport, KafkaSSLTransport):
    _transport._sock_recv = _with_the_last_words(_transport._sock_recv)


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Keeps why connections ended: what kafka-python raises in the end says only that none stands.

    At first it does not try for long what cannot succeed: once each server that was named has refused us, it gives up.
    """

    def __init__(self, net: Any, **settings: Any) -> None:
        self.connecting = True
        self.why: dict[str, BaseException] = {}  # by server
        super().__init__(net, **settings)
        # kafka-python 3.0 does not pass it on, and asking for a topic that is gone would make it again.
        self.cluster.config["allow_auto_create_topics"] = settings.get("allow_auto_create_topics", False)

    def get_connection(self, node_id: str, *arguments: Any, **options: Any) -> Any:
        if self.connecting:
            refusals = [why for why in self.why.values() if _refused("", why)]
            if refusals and len(refusals) == len(self.cluster.bootstrap_brokers()):
                raise refusals[0]
        connection = super().get_connection(node_id, *arguments, **options)
        connection.close_future.add_errback(partial(self._note, node_id))
        return connection

    def _note(self, node_id: str, why: BaseException) -> None:
        if self.connecting:
            self.why[node_id] = why


def connected(make: Any, bootstrap_servers: str, options: Mapping[str, Any]) -> Any:
    """A kafka-python client made by `make` that has reached a broker; SourceError where none answers."""
    _calm_down()
    clients: list[Any] = []
    connections: list[_Connections] = []

    def client(**settings: Any) -> Any:
        net = NetworkSelector(**settings)
        connections.append(_Connections(net, **settings))
        clients.append(KafkaNetClient(net, connections[-1]))
        return clients[-1]

    _calm.connecting += 1
    try:
        return make(bootstrap_servers=bootstrap_servers.split(","), kafka_client=client, **{**_COMMON, **options})
    except (kafka_errors.KafkaError, ValueError, TypeError, OSError) as error:
        # kafka-python leaves the thread of a client that reached no broker behind.
        for unused in clients:
            unused.close()
        whys = [why for each in connections for why in each.why.values()]
        if refused := next(filter(None, (_refused(bootstrap_servers, why) for why in whys)), None):
            raise refused from error
        clear = source_error(bootstrap_servers, error)
        raise type(clear)(f"{clear} ({_line(whys[0])})" if whys else str(clear)) from error
    finally:
        _calm.connecting -= 1
        for each in connections:
            each.connecting = False


def _refused(bootstrap_servers: str, why: BaseException) -> SourceError | None:
    """The line on a broker that is there but does not let us in, or must not be trusted; None for other reasons."""
    if isinstance(why, kafka_errors.SaslAuthenticationFailedError):
        advice = "check NEXTCLICK_KAFKA_SASL_USERNAME, _PASSWORD and _MECHANISM"
        return SourceError(f"Kafka at {bootstrap_servers} refuses user or password ({_line(why)}); {advice}")
    if isinstance(why, kafka_errors.UnsupportedSaslMechanismError | kafka_errors.IllegalSaslStateError):
        advice = "check NEXTCLICK_KAFKA_SECURITY_PROTOCOL and NEXTCLICK_KAFKA_SASL_MECHANISM"
        return SourceError(f"Kafka at {bootstrap_servers} does not know this way to log in ({_line(why)}); {advice}")
    if trouble := tls_trouble(str(why)):
        advice = "check NEXTCLICK_KAFKA_SSL_* and NEXTCLICK_KAFKA_SECURITY_PROTOCOL"
        return SourceError(f"Kafka at {bootstrap_servers} cannot be trusted or does not trust us: {trouble}; {advice}")
    return None


def source_error(bootstrap_servers: str, error: BaseException, topic: str | None = None) -> SourceError:
    """The line that says what to do about an error of kafka-python; an UnavailableError where waiting may help."""
    if isinstance(error, kafka_errors.KafkaTimeoutError | kafka_errors.UnknownTopicOrPartitionError) and topic:
        return UnavailableError(
            f"Kafka at {bootstrap_servers} does not offer topic {topic}: create it, or check its name"
        )
    if isinstance(error, kafka_errors.RetriableError | OSError) or "bootstrap" in str(error).lower():
        return UnavailableError(
            f"no Kafka answers at {bootstrap_servers}: start it, or check NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS"
        )
    if isinstance(error, kafka_errors.AuthorizationError):
        return SourceError(f"Kafka at {bootstrap_servers} does not allow this: {_line(error)}; check user and ACLs")
    return SourceError(f"Kafka at {bootstrap_servers} refuses: {_line(error)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
