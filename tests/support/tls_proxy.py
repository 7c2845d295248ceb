"""Speaks TLS in front of a server that does not: `python -m tests.support.tls_proxy PORT CERTIFICATE KEY`.

Prints the port that it listens on; serves until it is killed.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.paths import ROOT


@contextmanager
def tls(port: int, certificate: Path, key: Path) -> Iterator[int]:
    """A port that passes on to `port` what it hears through TLS."""
    command = [sys.executable, "-m", "tests.support.tls_proxy", str(port), str(certificate), str(key)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def serve(port: int, context: ssl.SSLContext) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, there_writer), carry(there_reader, writer))

    async with await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context) as server:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # the other end has left
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(sys.argv[2], sys.argv[3])
    asyncio.run(serve(int(sys.argv[1]), server_context))
