"""Real Celery workers, started for the length of a `with` block.

Tests, demo and benchmarks share them. Whatever ends the block (an error, Ctrl-C), nothing is left running.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support.paths import ROOT
from tests.support.waiting import ServiceError, last_lines, wait_until


@contextmanager
def celery_worker(
    app_path: str,
    broker_url: str,
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    log_file: Path | None = None,
) -> Iterator[Worker]:
    """`celery -A app_path worker` as a process, once it answers a ping on `broker_url`.

    The process gets `broker_url` as `REDIS_URL`, and `env` on top; it runs in the repository's root.
    """
    worker = Worker(app_path, args=args, env={"REDIS_URL": broker_url, **(env or {})}, log_file=log_file)
    try:
        worker.wait_until_ready(broker_url)
        yield worker
    finally:
        worker.close()


class Worker:
    """A worker process, its children and its log."""

    def __init__(
        self, app_path: str, *, args: Sequence[str], env: Mapping[str, str], log_file: Path | None = None
    ) -> None:
        self.name = f"{uuid.uuid4().hex[:8]}@{socket.gethostname()}"
        self._directory = Path(tempfile.mkdtemp(prefix="batchery-worker-"))
        self.log_file = log_file or self._directory / "worker.log"
        command = [sys.executable, "-m", "celery", "-A", app_path, "worker", "-n", self.name, *args]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group of its own, so that `kill` reaches its children too
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """All it has written so far."""
        return self.log_file.read_text(errors="replace")

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to it and its children: nothing is cleaned up, as when the machine dies."""
        self._signal_group(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: a warm shutdown, as an orchestrator asks for it."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code, once it has left."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the worker is still there after {timeout:g} s:\n{last_lines(self.log_file)}") from None

    def wait_until_ready(self, broker_url: str, timeout: float = 60.0) -> None:
        """Return once its event loop answers; `ServiceError` with the log's tail if it dies first."""
        app = Celery(broker=broker_url, set_as_current=False)

        def answers() -> Any:
            if not self.alive():
                raise ServiceError(f"the worker left with {self._process.returncode}:\n{last_lines(self.log_file)}")
            # A connection of its own: kombu's pool is the whole process's, and may hold one that was cut meanwhile.
            with app.connection_for_write() as connection:
                return app.control.ping(destination=[self.name], timeout=0.3, limit=1, connection=connection)

        try:
            wait_until(answers, f"{self.name} answers a ping", timeout)
        except TimeoutError as error:
            raise ServiceError(f"{error}\n{last_lines(self.log_file)}") from None
        finally:
            app.close()

    def close(self) -> None:
        """TERM, then KILL; afterwards neither it nor a child of its group is left."""
        try:
            self.terminate()
            with suppress(TimeoutError):
                self.wait(timeout=10)
        finally:
            self.kill()
            self._process.wait()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _signal_group(self, signal_number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
            os.killpg(self._process.pid, signal_number)


#: A fixture's function that starts a worker for one test.
StartWorker = Callable[..., Worker]
