"""A TCP proxy in its own process, which adds network delay and does not limit bandwidth.

With `with delayed(url, rtt_ms=2) as slow_url:` data arrives `rtt_ms / 2` later in each direction.
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
    """Yield a URL that leads through the proxy to `url`, or `url` itself if there is no delay."""
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
            raise ServiceError(f"The proxy ended with exit code {process.wait()}.")
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
    """Pass each piece on `delay_s` after its arrival. Any number of pieces can be under way at the same time."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 20):
            loop.call_later(delay_s, writer.write, piece)
    loop.call_later(delay_s, writer.close)


if __name__ == "__main__":
    target_host, target_port, delay_ms = sys.argv[1:]
    # select has time-outs in microseconds. epoll has whole milliseconds, which would double a delay of 1 ms.
    new_loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    asyncio.set_event_loop(new_loop)
    new_loop.run_until_complete(serve(target_host, int(target_port), float(delay_ms) / 1000))
