"""A TCP proxy in its own process, through which workers and producers reach the server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.paths import ROOT
from tests.support.waiting import ServiceError


class Proxy:
    """The proxy's process, as the driver sees it."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "benchmarks.chaos.switch", str(port)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        line = self._read()
        if not line:
            raise ServiceError(f"The proxy ended with exit code {self._process.wait()}.")
        self.port = int(line)

    def do(self, what: str, value: Any = None) -> None:
        """Change what the proxy does, and return once it does it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, value]) + "\n")
        self._process.stdin.flush()
        self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    process = Proxy(port)
    try:
        yield process
    finally:
        process.close()
