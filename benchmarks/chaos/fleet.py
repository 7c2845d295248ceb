"""The workers of a chaos run, each of which a supervisor starts again when it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_until
from tests.support.workers import Worker

from .producer import APPS
from .settings import RUNS, WORKER

#: How each system's worker is started. Stock Celery needs the pool whose children can be killed for a time limit, and
#: celery-batches one whose batches do not stop the worker's own loop.
ARGS = {
    "batchery": (),
    "stock": ("-P", "prefork", "-c", "4"),
    "celery-batches": ("-P", "threads", "-c", "2"),
}
#: Seconds before a worker is started again. The pause doubles while workers end soon after their start.
FIRST_PAUSE_S, LONGEST_PAUSE_S, SOON_S = 0.5, 4.0, 10.0


@dataclass(frozen=True)
class Exit:
    """The end of one worker's process."""

    t: float
    worker: str
    code: int
    #: What the driver did to it, or nothing if it ended by itself.
    cause: str


class Slot(threading.Thread):
    """One place of the fleet, with one worker after the other."""

    def __init__(self, system: str, url: str, folder: Path, number: int) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.exits: list[Exit] = []
        self._app = f"benchmarks.chaos.{APPS[system]}"
        self._args = ["-l", "INFO", "-n", f"slot{number}@chaos", *ARGS[system]]
        self._env = {"REDIS_URL": url, RUNS: str(folder / "runs.jsonl"), "OMP_NUM_THREADS": "1"}
        self._log = folder / f"worker-{number}.log"
        self._stopped = threading.Event()
        self._worker: Worker | None = None
        self._starts = 0
        self._cause = ""

    @property
    def instance(self) -> str:
        """The name of the process that runs now."""
        return f"slot{self.number}.{self._starts}"

    def run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopped.is_set():
            started = time.monotonic()
            self._one_worker()
            pause = min(2 * pause, LONGEST_PAUSE_S) if time.monotonic() - started < SOON_S else FIRST_PAUSE_S
            self._stopped.wait(pause)

    def _one_worker(self) -> None:
        self._starts += 1
        self._cause = ""
        with self._log.open("a") as log:
            print(f"--- {time.time():.2f} {self.instance}", file=log)
        self._worker = worker = Worker(
            self._app, args=self._args, env={**self._env, WORKER: self.instance}, log_file=self._log
        )
        try:
            while worker.alive() and not self._stopped.wait(0.05):
                pass
            if not self._stopped.is_set():
                self.exits.append(Exit(time.time(), self.instance, worker.wait(), self._cause))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGCONT)
            worker.close()

    def signal(self, number: int, cause: str = "", *, group: bool = False) -> None:
        """Send a signal to the worker, or to all processes of its group, and remember that it did not end by itself."""
        if self._worker and self._worker.alive():
            self._cause = self._cause or cause
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self._worker.pid, number)

    def stop(self) -> None:
        self._stopped.set()


class Fleet:
    """All workers of a run."""

    def __init__(self, system: str, url: str, folder: Path, count: int) -> None:
        self.slots = [Slot(system, url, folder, number) for number in range(count)]
        for slot in self.slots:
            slot.start()

    @property
    def exits(self) -> list[Exit]:
        return [each for slot in self.slots for each in slot.exits]

    def close(self) -> None:
        for slot in self.slots:
            slot.stop()
        for slot in self.slots:
            slot.join()


@contextmanager
def fleet(system: str, url: str, folder: Path, count: int) -> Iterator[Fleet]:
    workers = Fleet(system, url, folder, count)
    try:
        wait_until(lambda: _ready(folder, count), f"{count} workers are ready", timeout=120)
        yield workers
    finally:
        workers.close()


def _ready(folder: Path, count: int) -> bool:
    logs = [path.read_text(errors="replace") for path in folder.glob("worker-*.log")]
    return sum("@chaos ready" in log for log in logs) >= count
