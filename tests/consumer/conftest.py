"""A worker that the tests of one file share, its callers, and gates that hold its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.apps import APP
from tests.support.callers import calling, unsettled
from tests.support.gates import Gate
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker, Worker, celery_worker


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


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
def start(start_worker: StartWorker) -> StartWorker:
    """`start(env=…, args=…)`: a worker of this test's own."""

    def start_app(app_path: str = APP, **options: Any) -> Worker:
        return start_worker(app_path, **options)

    return start_app


@pytest.fixture
def caller(redis_url: str) -> Iterator[Celery]:
    """The callers' side of workers that a test starts itself."""
    with calling(redis_url) as app:
        yield app
