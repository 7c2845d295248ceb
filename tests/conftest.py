"""A real server for every test that asks for one, and workers that never outlive their test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis
from hypothesis import HealthCheck, settings

from tests.support.servers import valkey
from tests.support.waiting import ServiceError
from tests.support.workers import StartWorker, Worker, celery_worker

# How long an example takes says more about what else runs on the machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    # A cancelled run ends as Ctrl-C would end it: servers and workers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line("markers", "leaves_leases: the test means to leave claimed messages behind")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a server of this run: an embedded Valkey, or an empty database of `REDIS_URL`."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(valkey())
        except (ServiceError, redis.ConnectionError) as error:
            if os.environ.get("CI"):
                pytest.fail(f"no Redis or Valkey: {error}")
            pytest.skip(f"no Redis or Valkey: {error}")
        yield url


@pytest.fixture
def redis_url(server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database; a test that leaves a claimed message in it fails (unless marked `leaves_leases`)."""
    with redis.Redis.from_url(server) as client:
        client.flushdb()
        yield server
        leases = sum(client.hlen(key) for key in client.scan_iter("*batchery:unacked:*", count=1000))
        client.flushdb()
    if leases and not request.node.get_closest_marker("leaves_leases"):
        pytest.fail(f"the test left {leases} messages claimed and not settled")


@pytest.fixture(scope="session")
def many_databases() -> Iterator[str]:
    """An embedded server, whatever `REDIS_URL` says: one with databases to choose from."""
    with valkey(databases=16) as url:
        yield url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def start_worker(redis_url: str) -> Iterator[StartWorker]:
    """`start_worker("tests.apps.echo", args=["-P", "solo"])`: a worker that is gone when the test is."""
    with ExitStack() as stack:

        def start(app_path: str, **options: object) -> Worker:
            return stack.enter_context(celery_worker(app_path, redis_url, **options))  # type: ignore[arg-type]

        yield start
