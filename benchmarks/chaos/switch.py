"""The process of the proxy: `python -m benchmarks.chaos.switch PORT`. It takes commands as lines of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any


class Switch:
    """What happens to the connections that go through the proxy."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.delay_s = 0.0
        self.refuses = False
        #: Whether connections lose all that is sent from now on, without being closed.
        self.swallows = False
        self.open = asyncio.Event()
        self.open.set()
        self._connections: dict[asyncio.StreamWriter, bool] = {}

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self._connections[writer] = self._connections[there_writer] = self.swallows
        await asyncio.gather(self._carry(reader, writer, there_writer), self._carry(there_reader, there_writer, writer))
        self._connections.pop(writer, None)
        self._connections.pop(there_writer, None)

    async def _carry(self, reader: asyncio.StreamReader, own: asyncio.StreamWriter, to: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(1 << 18):
                await self.open.wait()
                if self._connections.get(own):
                    continue
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                to.write(piece)
                await to.drain()
        with suppress(Exception):
            if not self._connections.get(own):
                to.close()

    def do(self, what: str, value: Any) -> None:
        if what == "target":
            self.port = value
        elif what == "cut":
            for writer in self._connections:
                writer.transport.abort()
        elif what == "swallow":
            self.swallows = value
            if value:
                self._connections = dict.fromkeys(self._connections, True)
        elif what == "stall":
            (self.open.clear if value else self.open.set)()
        elif what == "refuse":
            self.refuses = value
        elif what == "slow":
            self.delay_s = value


async def serve(port: int) -> None:
    switch = Switch(port)
    server = await asyncio.start_server(switch.connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with server:
        while line := await commands.readline():
            switch.do(*json.loads(line))
            print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
