"""A Redis within this process, for who has none."""

import threading

import fakeredis
import redis

from stream.redis_errors import ListsError


class EmbeddedRedis:
    """A Redis in this process, reachable by this process through `client` and by others at `url`.

    It keeps everything in memory, has no passwords, and listens on 127.0.0.1 only. `port` 0 takes any free one; a taken
    one makes `start` raise ListsError.
    """

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._server: fakeredis.TcpFakeServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> "EmbeddedRedis":
        try:
            self._server = fakeredis.TcpFakeServer(("127.0.0.1", self._port))
        except (OSError, OverflowError) as error:
            raise ListsError(
                f"the embedded Redis cannot listen on 127.0.0.1:{self._port}: {error}; choose another port"
            ) from error
        self._port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="embedded-redis", daemon=True
        )
        self._thread.start()
        return self

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def client(self) -> redis.Redis:
        """A client to the same data that does not go through the network."""
        if self._server is None:
            raise ListsError("the embedded Redis is not running: call start() first")
        return fakeredis.FakeRedis(server=self._server.fake_server, host="127.0.0.1", port=self._port)

    def close(self) -> None:
        """Stop listening, end connections, free the port. Does no harm the second time."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    def __enter__(self) -> "EmbeddedRedis":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
