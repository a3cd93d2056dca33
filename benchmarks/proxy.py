"""A TCP proxy on 127.0.0.1 that can be slow, cut or deaf: for tests and benchmarks of outages."""

import asyncio
import contextlib
import threading

_CHUNK_BYTES = 64 * 1024


class Proxy:
    """Passes connections on to `target`, a port of 127.0.0.1, in a thread of its own.

    `delay_s`: each piece of data is that much later, in each direction. `cut`: nothing passes, in either direction, and
    neither side is told: connections stay open, new ones get no answer, as when a cable is pulled; what was sent
    meanwhile is lost with its connection. `refuse`: connections are closed, and new ones at once.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.target = target
        self.port = port
        self.delay_s = 0.0
        self._cut = False
        self._refuse = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def cut(self, *, on: bool) -> None:
        """Pull the cable, or put it back; then the connections of before are reset, as they would be found dead."""
        self._cut = on
        if not on:
            self._loop.call_soon_threadsafe(self._abort)

    def refuse(self, *, on: bool) -> None:
        """As if no server listened."""
        self._refuse = on
        if on:
            self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self._refuse:
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self._cut:
            await asyncio.sleep(0.02)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(there_writer)
        pumps = [
            asyncio.ensure_future(self._pump(reader, there_writer)),
            asyncio.ensure_future(self._pump(there_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers.discard(there_writer)
            there_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each piece waits by itself, so that a delay is no limit of what passes."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1_000)

        async def hand_on() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                while self._cut:
                    await asyncio.sleep(0.02)
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        handing = asyncio.ensure_future(hand_on())
        try:
            while not handing.done():
                data = await reader.read(_CHUNK_BYTES)
                await waiting.put((self._loop.time() + self.delay_s, data))
                if not data:
                    await handing
                    return
        finally:
            handing.cancel()
            await asyncio.gather(handing, return_exceptions=True)
