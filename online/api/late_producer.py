"""A producer for an API that is started before its broker, or beside it: until it is there, clicks are refused."""

import logging
import threading
from collections.abc import Sequence
from functools import partial

from online.config.settings import Settings
from online.worker.backoff import StoppedError, retry_until
from online.worker.connections import open_producer, prepare_topics
from stream.source import Producer, SourceError, UnavailableError

log = logging.getLogger(__name__)


class LateProducer:
    """A `Producer` that connects in a thread of its own, for as long as that takes."""

    def __init__(self, settings: Settings) -> None:
        self.waits_for: str | None = "the broker is not connected yet"
        self.refusal: SourceError | None = None  # what waiting does not mend
        self._settings = settings
        self._producer: Producer | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._connect, name="producer", daemon=True)
        self._thread.start()

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        self._there().send(topic, key=key, value=value, headers=headers, partition=partition)

    def flush(self) -> None:
        self._there().flush()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)  # a broker that hangs is left behind
        if self._producer is not None:
            self._producer.close()

    def _there(self) -> Producer:
        if self._producer is None:
            raise self.refusal or UnavailableError(str(self.waits_for))
        return self._producer

    def _open(self) -> None:
        self._producer = open_producer(self._settings)

    def _connect(self) -> None:
        def report(line: str | None) -> None:
            self.waits_for = line or self.waits_for

        settings, stop, errors = self._settings, self._stop, (UnavailableError,)
        try:
            for attempt in (partial(prepare_topics, settings), self._open):
                retry_until(attempt, settings=settings, stop=stop, unavailable=errors, report=report)
            self.waits_for = None
        except StoppedError:
            pass
        except SourceError as error:
            self.refusal = error
            self.waits_for = str(error)
