"""Workers' leases on a real server, and messages as kombu writes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from batchery.worker.broker import Claim, Leases, Queue, ResultRetention, Settled, Settlement, connect

MakeLeases = Callable[..., Leases]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leases are what these tests are about: they may leave some."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("leaves_leases")


#: More than any of these tests sends.
ALL, ANY_SIZE = 1000, 10**9


def client_of(url: str, **parameters: Any) -> redis.Redis:
    """A client as the worker's own."""
    kwargs = redis.ConnectionPool.from_url(url).connection_kwargs
    return connect(redis.Connection, {**kwargs, **parameters})


def message(label: object, priority: int = 0, queue: str = "work", **delivery_info: Any) -> bytes:
    """A message as kombu writes it; `label` is what it carries."""
    body = base64.b64encode(json.dumps([[label], {}, {}]).encode()).decode()
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"task": "t", "id": str(label), "lang": "py"},
            "properties": {
                "correlation_id": str(label),
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue, **delivery_info},
                "priority": priority,
                "body_encoding": "base64",
                "delivery_tag": f"tag-{label}",
            },
        }
    ).encode()


def label_of(raw: bytes) -> Any:
    """What a message carries."""
    return json.loads(base64.b64decode(json.loads(raw)["body"]))[0][0]


def labels(claims: list[Claim]) -> list[Any]:
    return [label_of(claim.message) for claim in claims]


def bytes_of(answer: Any) -> list[bytes]:
    """A reply of the server, whose type redis-py leaves open."""
    return list(answer)


class Lists:
    """A queue's lists, oldest message first."""

    def __init__(self, client: redis.Redis, queue: Queue) -> None:
        self.client = client
        self.queue = queue

    def put(self, *wanted: object, priority: int = 0) -> None:
        step = self.queue.priorities.index(priority)
        for label in wanted:
            self.client.lpush(self.queue.lists[step], message(label, priority, self.queue.name))

    def raw(self) -> list[bytes]:
        return [raw for key in self.queue.lists for raw in reversed(bytes_of(self.client.lrange(key, 0, -1)))]

    def labels(self) -> list[Any]:
        return list(map(label_of, self.raw()))

    def leased(self) -> set[str]:
        """The tags of every lease; the hash and the index have the same."""
        tags = set(bytes_of(self.client.hkeys(self.queue.unacked)))
        assert tags == set(bytes_of(self.client.zrange(self.queue.index, 0, -1)))
        return {tag.decode() for tag in tags}

    def run_out(self) -> None:
        """Let every lease run out."""
        for tag in bytes_of(self.client.zrange(self.queue.index, 0, -1)):
            self.client.zadd(self.queue.index, {tag: 1.0})


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


def claim_all(leases: Leases, *queues: Queue) -> list[Claim]:
    return leases.claim(queues, ALL, ANY_SIZE)


def settle(leases: Leases, claims: list[Claim], *, db: int = 0, expires_s: int = 60) -> list[bool]:
    """Store `result of <label>` under `result-<label>` and acknowledge."""
    items = [
        Settlement(claim, f"result-{label_of(claim.message)}", f"result of {label_of(claim.message)}".encode())
        for claim in claims
    ]
    return [answer == Settled.DONE for answer in leases.settle(items, ResultRetention(db, expires_s))]
