"""A real server for every test that asks for one, and workers that never outlive their test."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
import redis
from hypothesis import HealthCheck, settings

from tests.support.kinds import KINDS, check_command, kinds_of
from tests.support.servers import valkey
from tests.support.waiting import ServiceError
from tests.support.workers import StartWorker, Worker, celery_worker

# No deadline, because the time of an example depends on what else the machine runs.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

#: The kind of the test that runs now, or that is first to use a fixture.
running_kind = ""


def pytest_configure(config: pytest.Config) -> None:
    # A cancelled run ends as Ctrl-C would end it: servers and workers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line("markers", "leaves_leases: the test means to leave claimed messages behind")
    for kind, meaning in KINDS.items():
        config.addinivalue_line("markers", f"{kind}: {meaning}")
    sys.addaudithook(_check_process)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its kind, see `tests.support.kinds`; a test of two kinds is an error."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        fixtures = getattr(item, "fixturenames", ())
        kinds = kinds_of(folder, fixtures, (marker.name for marker in item.iter_markers()))
        if len(kinds) != 1:
            raise pytest.UsageError(
                f"{item.nodeid} must be of one kind, but it is marked {' and '.join(sorted(kinds))}."
            )
        for kind in kinds:
            item.add_marker(kind)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global running_kind
    [running_kind] = KINDS.keys() & {marker.name for marker in item.iter_markers()}


def _check_process(event: str, arguments: tuple[object, ...]) -> None:
    """Hold every process that a test starts against the test's kind, so that no marker lies."""
    if event == "subprocess.Popen" and running_kind:
        check_command(str(arguments[1]), running_kind)


@pytest.fixture(scope="module", autouse=True)
def _no_connection_outlives_its_file() -> Iterator[None]:
    """kombu pools connections for the whole process: one that a test of this file cut would fail in the next file."""
    yield
    kombu.pools.reset()


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
    """`start_worker("examples.embedding", args=["-P", "solo"])`: a worker that is gone when the test is over."""
    with ExitStack() as stack:

        def start(app_path: str, url: str = redis_url, **options: Any) -> Worker:
            return stack.enter_context(celery_worker(app_path, url, **options))

        yield start
