"""A queue's messages and its leases on a real server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import redis
from batchery.worker.broker import Claim, Leases, Queue, ResultRetention, Settled, Settlement, connect

from tests.support.envelopes import message as any_message

#: A fixture's function that makes the leases of one more worker.
MakeLeases = Callable[..., Leases]

#: More than any of these tests sends.
ALL, ANY_SIZE = 1000, 10**9


def client_of(url: str, **parameters: Any) -> redis.Redis:
    """A client as the worker's own."""
    kwargs = redis.ConnectionPool.from_url(url).connection_kwargs
    return connect(redis.Connection, {**kwargs, **parameters})


def message(label: object, priority: int = 0, queue: str = "work", **delivery_info: Any) -> bytes:
    """A message as kombu writes it, whose only argument is `label`."""
    body = json.dumps([[label], {}, {}]).encode()
    info = {"exchange": "", "routing_key": queue, **delivery_info}
    return any_message(
        body,
        task="t",
        id=str(label),
        correlation_id=str(label),
        delivery_tag=f"tag-{label}",
        priority=priority,
        delivery_info=info,
    )


def label_of(raw: bytes) -> Any:
    """The label that a message carries."""
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
        """The tags of all that is held; each of its workers is among the workers of the queue."""
        tags = {tag.decode() for tag in bytes_of(self.client.hkeys(self.queue.unacked))}
        workers = {name.decode().rpartition(":")[2] for name in bytes_of(self.client.zrange(self.queue.workers, 0, -1))}
        assert {tag.partition(":")[0] for tag in tags} <= workers
        return tags

    def run_out(self, *workers: Leases) -> None:
        """Let the leases of these workers run out, or every lease."""
        names = [worker.worker.encode() for worker in workers]
        for name in names or bytes_of(self.client.zrange(self.queue.workers, 0, -1)):
            self.client.zadd(self.queue.workers, {name: 1.0}, xx=True)


def claim_all(leases: Leases, *queues: Queue) -> list[Claim]:
    return leases.claim(queues, ALL, ANY_SIZE)


def settle(leases: Leases, claims: list[Claim], *, db: int = 0, expires_s: int = 60) -> list[bool]:
    """Store `result of <label>` under `result-<label>` and acknowledge."""
    items = [
        Settlement(claim, f"result-{label_of(claim.message)}", f"result of {label_of(claim.message)}".encode())
        for claim in claims
    ]
    return [answer == Settled.DONE for answer in leases.settle(items, ResultRetention(db, expires_s))]
