"""Two servers, one of which may take the other's place, and Sentinel that sees to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import redis

from tests.support.servers import Sentinel, Valkey
from tests.support.waiting import wait_until


class Pair(NamedTuple):
    """A master, and a replica that may take its place."""

    master: Valkey
    replica: Valkey

    def swap(self) -> None:
        """Let the replica be the master, as a managed service does it."""
        with redis.Redis(port=self.replica.port) as replica, redis.Redis(port=self.master.port) as master:
            replica.replicaof("NO", "ONE")
            master.replicaof("127.0.0.1", f"{self.replica.port}")


@contextmanager
def replicated() -> Iterator[Pair]:
    with ExitStack() as stack:
        servers = [Valkey(repl_diskless_sync_delay=0) for _ in range(2)]
        for server in servers:
            stack.callback(server.close)
            server.start()
        pair = Pair(*servers)
        with redis.Redis(port=pair.replica.port) as replica:
            replica.replicaof("127.0.0.1", f"{pair.master.port}")
            wait_until(lambda: replica.info("replication").get("master_link_status") == "up", "the replica is there")
        yield pair


@contextmanager
def watched(pair: Pair) -> Iterator[Sentinel]:
    """Sentinel, which gives the master's place to the replica when the master is silent for a second."""
    sentinel = Sentinel(pair.master.port)
    try:
        sentinel.start()
        with redis.Redis(port=sentinel.port) as client:
            wait_until(lambda: client.sentinel_masters()["mymaster"]["num-slaves"] == 1, "it knows the replica")
        yield sentinel
    finally:
        sentinel.close()
