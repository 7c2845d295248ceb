"""The workers that the benchmarks compare. Each is started as its users start it."""

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

#: A function that raises an exception if the contender's process has ended.
Alive = Callable[[], None]


@dataclass(frozen=True)
class Contender:
    """A worker, with its name in tables, its app, and its options on the command line."""

    name: str
    app: str
    args: tuple[str, ...] = ()

    @contextmanager
    def start(self, url: str, *, extra: Sequence[str] = (), env: dict[str, str] | None = None) -> Iterator[Alive]:
        """Start the worker's process, and wait until it is ready to take work from `url`."""
        # The level is WARNING, because workers that log a line for every task would be slower.
        args = ("-l", "WARNING", *self.args, *extra)
        with celery_worker(self.app, url, args=args, env=env) as worker:

            def alive() -> None:
                if not worker.alive():
                    raise ServiceError(f"{self.name} died:\n{worker.log[-3000:]}")

            yield alive


#: Celery's fastest pool depends on the machine and on the payload, so all pools run and the best one counts.
STOCK = (
    Contender("stock, solo", "benchmarks.apps.stock_app", ("-P", "solo")),
    Contender("stock, threads", "benchmarks.apps.stock_app", ("-P", "threads", "-c", "4")),
    Contender("stock, prefork", "benchmarks.apps.stock_app", ("-P", "prefork", "-c", "2")),
)
CELERY_BATCHES = Contender("celery-batches", "benchmarks.apps.batches_app", ("-P", "solo"))
BATCHERY = Contender("batchery", "benchmarks.apps.batchery_app")


@contextmanager
def floor(url: str, messages: int, payload: str) -> Iterator[Alive]:
    """Start the bare loop of `floor.py`, which ends after it has answered `messages`."""
    command = [sys.executable, "-m", "benchmarks.floor", url, QUEUE, str(messages), payload]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None

    def alive() -> None:
        if process.poll():
            raise ServiceError(f"The floor ended with exit code {process.returncode}.")

    try:
        if process.stdout.readline().strip() != "ready":
            raise ServiceError(f"The floor did not start. Its exit code is {process.wait()}.")
        yield alive
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
