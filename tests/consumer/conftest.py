"""A worker that the tests of one file share, its callers, and gates that hold its models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.apps import make_app
from tests.support.services import Worker, celery_worker, wait_until

APP = "tests.support.apps"

StartWorker = Callable[..., Worker]


class Gate:
    """A FIFO that holds every model which was sent its path, until it is opened."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._writers: list[int] = []

    def wait_for_model(self) -> None:
        """Return once a model waits here."""
        self._writers.append(wait_until(self._enter, "a model waits at the gate"))

    def open(self) -> None:
        """Let all pass, now and later."""
        if os.path.exists(self.path):
            # Whoever is about to wait for a writer finds this one; whoever comes later finds no gate.
            self._writers.append(os.open(self.path, os.O_RDWR))
            os.unlink(self.path)
        while self._writers:
            os.close(self._writers.pop())

    def _enter(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            return 0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@contextmanager
def calling(broker: str, backend: str | None = None, **conf: Any) -> Iterator[Celery]:
    """The app as a calling service has it; its connections are gone afterwards."""
    app = make_app(broker, backend, **conf)
    app.finalize()
    try:
        yield app
    finally:
        disconnect(app)


def disconnect(app: Celery) -> None:
    """Close a caller's connections."""
    if hasattr(app.backend, "result_consumer"):
        app.backend.result_consumer.stop()
        app.backend.client.close()
        # The results of a test that failed live on in its traceback, longer than their server.
        app.backend.remove_pending_result = lambda result: result
    app.close()


def options(**values: Any) -> dict[str, str]:
    """The environment that gives a worker these `WorkerOptions`."""
    return {"OPTIONS": json.dumps(values)}


def unsettled(client: redis.Redis) -> dict[bytes, int]:
    """How many messages of each queue are claimed and not settled."""
    counts = {key: client.zcard(key) for key in client.scan_iter("batchery:unacked_index:*")}
    return {key: count for key, count in counts.items() if count}


@pytest.fixture(scope="module")
def module_client(server: str) -> Iterator[redis.Redis]:
    """A client of the database that the tests of a file share, empty at first."""
    with redis.Redis.from_url(server) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture(scope="module")
def worker_args() -> Sequence[str]:
    """What a file's worker is started with: overridden where it matters."""
    return ()


@pytest.fixture(scope="module")
def worker_env() -> Mapping[str, str]:
    """The environment of a file's worker: overridden where it matters."""
    return {}


@pytest.fixture(scope="module")
def module_worker(
    server: str, module_client: redis.Redis, worker_args: Sequence[str], worker_env: Mapping[str, str]
) -> Iterator[Worker]:
    """One worker for all tests of a file."""
    with celery_worker(APP, server, args=worker_args, env=worker_env) as worker:
        yield worker


@pytest.fixture(scope="module")
def module_app(server: str) -> Iterator[Celery]:
    with calling(server) as app:
        yield app


@pytest.fixture
def worker(module_worker: Worker, module_client: redis.Redis) -> Iterator[Worker]:
    """The file's worker; a test that leaves a message with it, or ends it, fails."""
    module_client.delete(*module_client.keys("test:*") or ["test:"])
    yield module_worker
    assert module_worker.alive(), module_worker.log
    wait_until(
        lambda: not unsettled(module_client), f"every claimed message is settled:\n{module_worker.log[-3000:]}", 10
    )


@pytest.fixture
def app(worker: Worker, module_app: Celery) -> Celery:
    """The callers' side of `worker`."""
    return module_app


@pytest.fixture
def client(worker: Worker, module_client: redis.Redis) -> redis.Redis:
    """A client of the server behind `worker`."""
    return module_client


@pytest.fixture
def start(redis_url: str) -> Iterator[StartWorker]:
    """`start(env=…, args=…)`: a worker of this test's own."""
    with ExitStack() as stack:

        def start(app_path: str = APP, url: str = redis_url, **options: Any) -> Worker:
            return stack.enter_context(celery_worker(app_path, url, **options))

        yield start


@pytest.fixture
def caller(redis_url: str) -> Iterator[Celery]:
    """The callers' side of workers that a test starts itself."""
    with calling(redis_url) as app:
        yield app


@contextmanager
def held_back(app: Celery, client: redis.Redis, queue: str = "celery") -> Iterator[None]:
    """What is sent within the block is claimed together, after it: until then the worker does not take from `queue`."""
    aside = f"test:aside:{queue}"
    client.rename(queue, aside) if client.exists(queue) else None
    app.control.cancel_consumer(queue, reply=True)
    try:
        yield
    finally:
        app.control.add_consumer(queue, reply=True)
