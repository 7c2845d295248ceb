"""A TCP proxy that adds network delay and leaves bandwidth alone, as a process of its own.

`with delayed(url, rtt_ms=2) as slow_url:` — what goes through it arrives `rtt_ms / 2` later, each way.
"""

from __future__ import annotations

import asyncio
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from tests.support.paths import ROOT
from tests.support.waiting import ServiceError


@contextmanager
def delayed(url: str, rtt_ms: float) -> Iterator[str]:
    """`url` with the proxy in front of it; without a delay, `url` itself."""
    if not rtt_ms:
        yield url
        return
    target = urlsplit(url)
    command = [
        sys.executable,
        "-m",
        "benchmarks.proxy",
        str(target.hostname),
        str(target.port or 6379),
        str(rtt_ms / 2),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise ServiceError(f"the proxy left with {process.wait()}")
        user, at, _ = target.netloc.rpartition("@")
        yield target._replace(netloc=f"{user}{at}127.0.0.1:{port}").geturl()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def serve(host: str, port: int, delay_s: float) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(_carry(reader, there_writer, delay_s), _carry(there_reader, writer, delay_s))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass everything on, each piece `delay_s` after it came; any number of pieces may be under way."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 20):
            loop.call_later(delay_s, writer.write, piece)
    loop.call_later(delay_s, writer.close)


if __name__ == "__main__":
    target_host, target_port, delay_ms = sys.argv[1:]
    # Its time-outs have microseconds; epoll's are whole milliseconds, which would double a delay of one.
    new_loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    asyncio.set_event_loop(new_loop)
    new_loop.run_until_complete(serve(target_host, int(target_port), float(delay_ms) / 1000))
