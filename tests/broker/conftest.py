"""Workers' leases on a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from batchery.worker.broker import Leases, Queue

from tests.support.leases import Lists, MakeLeases, client_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leases are what these tests are about: they may leave some."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("leaves_leases")


@pytest.fixture
def queue() -> Queue:
    return Queue("work")


@pytest.fixture
def lists(redis_client: redis.Redis, queue: Queue) -> Lists:
    return Lists(redis_client, queue)


@pytest.fixture
def make_leases(redis_url: str) -> MakeLeases:
    def make(url: str = redis_url, lease_s: float = 30.0, **parameters: Any) -> Leases:
        return Leases(client_of(url, **parameters), lease_s=lease_s)

    return make


@pytest.fixture
def leases(make_leases: MakeLeases) -> Leases:
    """One worker."""
    return make_leases()
