"""A proxy in front of a server, which behaves as bad networks do: silent, slow, or led to another server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Proxy:
    """Passes on what it hears to the server at port `target`, which may change. Any thread may change its behaviour."""

    def __init__(self, target: int) -> None:
        self.target = target
        #: Seconds by which every piece comes later.
        self.delay_s = 0.0
        #: Whether new connections are silent, too.
        self.silent = False
        #: How many connections there are now.
        self.connections = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        #: What makes each connection silent, or ends it.
        self._open: set[_Connection] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def silence(self, *clients: Any) -> None:
        """Stop passing anything on, without closing: the connections of now are half-open, as behind a firewall.

        With addresses of `clients`, only theirs.
        """
        self._call(
            lambda: {*map(_Connection.silence, [one for one in self._open if not clients or one.client in clients])}
        )

    def black_hole(self) -> None:
        """Be silent from now on, to new connections, too."""
        self.silent = True
        self.silence()

    def heal(self) -> None:
        """Pass on again what comes over new connections."""
        self.silent = False

    def cut(self) -> None:
        """Close every connection."""
        self._call(lambda: {*map(_Connection.close, self._open)})

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def run(self, ready: threading.Event) -> None:
        """Serve until `stop`."""
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _serve(self, ready: threading.Event) -> None:
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stopped.wait()
            for connection in self._open:
                connection.close()
            while self._open:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # until the transports are closed, too

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        connection = _Connection(self, writer, there_writer)
        self._open.add(connection)
        if self.silent:
            connection.silence()
        self.connections += 1
        try:
            await asyncio.gather(connection.carry(reader, there_writer), connection.carry(there_reader, writer))
        finally:
            connection.close()
            self.connections -= 1
            self._open.discard(connection)


class _Connection:
    def __init__(self, proxy: Proxy, *writers: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self.client: Any = writers[0].get_extra_info("peername")
        self._writers = writers
        self._silent = False

    def silence(self) -> None:
        self._silent = True

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # the other end has left
            while piece := await reader.read(1 << 16):
                if self._proxy.delay_s:
                    await asyncio.sleep(self._proxy.delay_s)
                if not self._silent:
                    writer.write(piece)
                    await writer.drain()
        if not self._silent:
            writer.close()


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    """A proxy in front of the server at `port`."""
    proxy, ready = Proxy(port), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
