"""The workers that are measured against each other, each the way its users start it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.paths import ROOT
from tests.support.waiting import ServiceError
from tests.support.workers import celery_worker

from .backlog import QUEUE

#: Raises if the contender's process is gone.
Alive = Callable[[], None]


@dataclass(frozen=True)
class Contender:
    """A worker: its name in tables, its app, and its options on the command line."""

    name: str
    app: str
    args: tuple[str, ...] = ()

    @contextmanager
    def start(self, url: str, *, extra: Sequence[str] = (), env: dict[str, str] | None = None) -> Iterator[Alive]:
        """The worker's process, ready to take work from `url`."""
        # Warnings only: a line for every task would slow down those that write one.
        args = ("-l", "WARNING", *self.args, *extra)
        with celery_worker(self.app, url, args=args, env=env) as worker:

            def alive() -> None:
                if not worker.alive():
                    raise ServiceError(f"{self.name} died:\n{worker.log[-3000:]}")

            yield alive


#: Which pool is Celery's fastest differs with machine and payload, so all of them run and its best one counts.
STOCK = (
    Contender("stock, solo", "benchmarks.apps.stock_app", ("-P", "solo")),
    Contender("stock, threads", "benchmarks.apps.stock_app", ("-P", "threads", "-c", "4")),
    Contender("stock, prefork", "benchmarks.apps.stock_app", ("-P", "prefork", "-c", "2")),
)
CELERY_BATCHES = Contender("celery-batches", "benchmarks.apps.batches_app", ("-P", "solo"))
BATCHERY = Contender("batchery", "benchmarks.apps.batchery_app")


@contextmanager
def floor(url: str, messages: int, payload: str) -> Iterator[Alive]:
    """The bare loop of `floor.py`, which leaves once it has answered `messages`."""
    command = [sys.executable, "-m", "benchmarks.floor", url, QUEUE, str(messages), payload]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None

    def alive() -> None:
        if process.poll():
            raise ServiceError(f"the floor died with {process.returncode}")

    try:
        if process.stdout.readline().strip() != "ready":
            raise ServiceError(f"the floor did not start: {process.wait()}")
        yield alive
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
