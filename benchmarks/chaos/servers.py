"""Two servers behind one address: a primary that keeps its data, and a replica to which it can fail over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import redis

from tests.support.servers import Sentinel, Valkey
from tests.support.waiting import wait_until

from .proxy import Proxy, proxy
from .settings import MASTER

#: `always`, so that a killed server has lost nothing that it has answered.
OPTIONS: dict[str, str | int] = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "busy-reply-threshold": 200,
    "repl-diskless-sync-delay": 0,
    "shutdown-timeout": 2,
}


class Servers:
    """A primary, its replica, and the proxy in front of them."""

    def __init__(self, primary: Valkey, replica: Valkey, way: Proxy) -> None:
        self.primary = primary
        self.replica = replica
        self.proxy = way
        self.sentinel: Sentinel | None = None
        #: The address that all workers and producers use.
        self.url = f"redis://127.0.0.1:{way.port}/0"
        with self._client(replica) as client:
            client.replicaof("127.0.0.1", primary.port)
        self.wait_for_replica()

    @staticmethod
    def _client(server: Valkey) -> redis.Redis:
        return redis.Redis.from_url(server.url, socket_timeout=20)

    def client(self) -> redis.Redis:
        """A connection to the primary that does not go through the proxy."""
        return self._client(self.primary)

    def ask(self, sentinel: Sentinel) -> None:
        """Let all workers and producers ask Sentinel for the primary, instead of the one address."""
        with redis.Redis(port=sentinel.port) as client:
            # A server that is restarted is back before, so that no replica takes its place that may lack its last data.
            client.execute_command("SENTINEL", "SET", MASTER, "down-after-milliseconds", 60_000)
            wait_until(lambda: client.sentinel_masters()[MASTER]["num-slaves"] == 1, "Sentinel knows the replica")
        self.sentinel = sentinel
        self.url = sentinel.url

    def restart(self, away_s: float, *, kill: bool) -> None:
        """Stop the primary politely, or kill it, and start it again with what it had saved."""
        (self.primary.kill if kill else self.primary.stop)()
        time.sleep(away_s)
        self.primary.start()

    def fail_over(self) -> None:
        """Exchange the roles without losing anything. Connections to the old primary stay, as they do behind a VIP."""
        self.wait_for_replica()
        if self.sentinel:
            with redis.Redis(port=self.sentinel.port) as client:
                client.execute_command("SENTINEL", "FAILOVER", MASTER, "COORDINATED")
        else:
            with self.client() as client:
                client.execute_command("FAILOVER", "TO", "127.0.0.1", self.replica.port, "TIMEOUT", 5000)
        wait_until(lambda: self._role(self.primary) == "slave", "the old primary is a replica", timeout=15)
        wait_until(lambda: self._role(self.replica) == "master", "the replica is the primary", timeout=15)
        self.primary, self.replica = self.replica, self.primary
        self.proxy.do("target", self.primary.port)

    def wait_for_replica(self) -> None:
        """Wait until the replica has all that the primary has."""

        def in_step() -> bool:
            with suppress(redis.RedisError), self.client() as client:
                status: Any = client.info("replication")
                return any(
                    status.get(f"slave{n}", {}).get("state") == "online" for n in range(status["connected_slaves"])
                )
            return False

        wait_until(in_step, "the replica follows the primary", timeout=30)

    def _role(self, server: Valkey) -> str:
        with suppress(redis.RedisError), self._client(server) as client:
            info: Any = client.info("replication")
            return str(info["role"])
        return ""


@contextmanager
def servers(*, sentinel: bool = False) -> Iterator[Servers]:
    with ExitStack() as stack:
        primary, replica = Valkey(**OPTIONS), Valkey(**OPTIONS)
        for server in (primary, replica):
            stack.callback(server.close)
            server.start()
        pair = Servers(primary, replica, stack.enter_context(proxy(primary.port)))
        if sentinel:
            watcher = Sentinel(primary.port)
            stack.callback(watcher.close)
            watcher.start()
            pair.ask(watcher)
        yield pair
