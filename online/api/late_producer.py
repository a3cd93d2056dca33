"""A producer for an API that is started before its broker, or beside it: until it is there, clicks are refused."""

import logging
import threading
from collections.abc import Sequence
from functools import partial

from online.config.settings import Settings
from online.worker.backoff import Patience, StoppedError
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

    def _connect(self) -> None:
        def tell(line: str | None) -> None:
            self.waits_for = line or self.waits_for

        patience = Patience(self._settings, self._stop, (UnavailableError,), tell)
        try:
            patience.until_done(partial(prepare_topics, self._settings))
            self._producer = patience.until_done(partial(open_producer, self._settings))
            self.waits_for = None
        except StoppedError:
            pass
        except SourceError as error:
            self.refusal = error
            self.waits_for = str(error)
