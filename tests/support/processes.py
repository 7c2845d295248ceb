"""Commands as a document or docker-compose.yml has them, run with this environment's Python."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from batchery.worker import health

from tests.support.waiting import wait_until

#: The programs that a reader's shell finds on its path, and where they are here.
PROGRAMS = {"python": [sys.executable], "celery": [sys.executable, "-m", "celery"]}


class Running(NamedTuple):
    """A process, and the file that it writes to."""

    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise an AssertionError with what it wrote, if it has left by itself."""
        assert self.process.poll() in (None, 0), f"left with {self.process.returncode}:\n{self.log.read_text()}"


def here(command: Sequence[str]) -> list[str]:
    """The command with this environment's programs."""
    return [*PROGRAMS.get(command[0], [command[0]]), *command[1:]]


def finished(
    command: Sequence[str], *, folder: Path, env: Mapping[str, str] | None = None, timeout: float = 90
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself; its errors come with its output."""
    return subprocess.run(
        here(command),
        cwd=folder,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@contextmanager
def running(command: Sequence[str], *, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a command that does not end by itself, and stop it with SIGTERM, as an orchestrator does."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            here(command),
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            service = Running(process, Path(log.name))
            yield service
            service.check()
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def wait_for_worker(broker: str, worker: Running, *options: str) -> None:
    """Return once a worker is ready; `options` are the health command's."""
    args = ["--broker", broker, "--timeout", "0.3", *options]

    def ready() -> bool:
        worker.check()
        with redirect_stdout(io.StringIO()):
            return health.main(args) == 0

    try:
        wait_until(ready, "the worker is ready", timeout=60)
    except TimeoutError as error:
        raise AssertionError(f"{error}:\n{worker.log.read_text()}") from None
