"""Starts the keeper beside a worker, and tells it that the worker lives. See `keeper.py`."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import redis

from .keys import Queue
from .master import Master, followed_class

logger = logging.getLogger(__name__)

_CLASSES = {redis.Connection, redis.SSLConnection, redis.UnixDomainSocketConnection}
_ADDRESS = {"host", "port", "path", "db", "username", "password"}


#: Leases between two starts of a keeper that has ended.
RESTART_LEASES = 10


class KeeperProcess:
    """The keeper of one worker's lease, and the thread that beats: it runs whenever the GIL can be had."""

    def __init__(self, client: "redis.Redis", *, worker: str, lease_s: float, limit_s: Callable[[], float]) -> None:
        """Keep the lease of `worker` for `limit_s()` seconds while this process is silent."""
        self._client = client
        self._master: Master = client.connection_pool.connection_kwargs["master"]
        #: The changes of the master when the process was started.
        self._changes = 0
        self._limit_s = limit_s
        self._about: dict[str, Any] = {"pid": os.getpid(), "worker": worker, "lease_s": lease_s}
        #: Longer than between two refreshes, each of which is a reason for a beat.
        self._every_s = lease_s / 2
        self._beat: dict[str, Any] = {"keys": None, "refreshed_at": 0.0}
        self._due = threading.Event()
        self._stopped = False
        self._restart_at = float("-inf")
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="batchery-beat", daemon=True)

    def start(self) -> None:
        """Start the process, if it can have a connection of its own."""
        try:
            self._process = self._start_process()
        except (ValueError, OSError) as exc:
            logger.warning(
                "A model that holds the GIL for longer than a lease loses its jobs, because there is no keeper: %s", exc
            )
            return
        self._thread.start()

    @property
    def threads(self) -> list[threading.Thread]:
        """The thread that beats, if it was started."""
        return [] if self._process is None else [self._thread]

    def refreshed(self, queues: Sequence[Queue]) -> None:
        """Note that the lease was refreshed in these queues. Never blocks."""
        self._beat = {"keys": [queue.workers for queue in queues], "refreshed_at": time.monotonic()}
        self._due.set()

    def stop(self) -> None:
        """End the process."""
        self._stopped = True
        self._due.set()
        if self._process is not None:
            self._thread.join()
            self._end_process(self._process)

    def _run(self) -> None:
        while not self._stopped:
            if self._changes != self._master.changes:  # it has one address only
                self._restart()
            beat = {**self._beat, "at": time.monotonic(), "limit_s": self._limit_s()}
            try:
                self._send(beat)
            except BlockingIOError:  # it stands still, so this beat is lost
                pass
            except OSError:
                self._restart_unless_in_vain()
            except Exception:  # without its beats, the keeper would kill this worker
                logger.exception("The keeper could not be told that this worker lives.")
            self._due.wait(self._every_s)
            self._due.clear()

    def _send(self, line: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), json.dumps(line).encode() + b"\n")

    def _start_process(self) -> "subprocess.Popen[bytes]":
        pool, self._changes = self._client.connection_pool, self._master.changes
        parameters = {**pool.connection_kwargs, **self._master.address}
        charge = {**self._about, **_carried(pool.connection_class, parameters)}
        command = [sys.executable, "-P", str(Path(__file__).with_name("keeper.py"))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0)
        assert process.stdin is not None
        process.stdin.write(json.dumps(charge).encode() + b"\n")
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _restart_unless_in_vain(self) -> None:
        """Start a process that has ended again, but not one after the other, where none can run."""
        if time.monotonic() >= self._restart_at:
            self._restart_at = time.monotonic() + RESTART_LEASES * self._about["lease_s"]
            logger.warning("The keeper has ended, and is started again.")
            self._restart()

    def _restart(self) -> None:
        assert self._process is not None
        self._end_process(self._process)
        try:
            self._process = self._start_process()
        except OSError:
            logger.exception("The keeper could not be started again.")

    def _end_process(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(self._every_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _carried(connection_class: type[Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return how another process connects to the same server, as JSON can carry it; a ValueError says why it cannot."""
    connection_class = followed_class(connection_class)
    if connection_class not in _CLASSES:
        raise ValueError(f"a {connection_class.__name__} cannot be made in another process")
    if parameters.get("credential_provider") is not None:
        raise ValueError("a credential provider cannot be used in another process")
    carried = {}
    for name, value in parameters.items():
        if value is not None and (name in _ADDRESS or name.startswith("ssl_")):
            if name == "ssl_cert_reqs" and isinstance(value, Enum):
                value = value.name.removeprefix("CERT_").lower()
            if not isinstance(value, str | int | float | bool) or isinstance(value, Enum):
                raise ValueError(f"{name} = {value!r} cannot be handed to another process")
            carried[name] = value
    return {"connection": connection_class.__name__, "parameters": carried}
