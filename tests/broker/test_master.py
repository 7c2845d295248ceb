"""Connections of a worker: they follow the master, replace what is lost, and give back what they took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from batchery.worker import tuning
from batchery.worker.broker import ArrivalWatcher, Leases, Queue, RunningNote, connect
from batchery.worker.broker.client import place_in_list, same_server
from batchery.worker.broker.master import Master
from kombu import Connection

from tests.support.failover import Pair, replicated, watched
from tests.support.leases import Lists, client_of, message
from tests.support.proxy import Proxy, proxied
from tests.support.servers import Sentinel
from tests.support.waiting import wait_until

#: Nothing here waits so long for an answer, so whatever is answered within this was not waited out.
LONG = 60.0

pytestmark = pytest.mark.redis


@pytest.fixture
def pair() -> Iterator[Pair]:
    with replicated() as pair:
        yield pair


@pytest.fixture
def sentinel(pair: Pair) -> Iterator[Sentinel]:
    with watched(pair) as sentinel:
        yield sentinel


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with proxied(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        yield proxy


def put(port: int, *labels: object) -> None:
    with redis.Redis(port=port) as client:
        Lists(client, Queue("work")).put(*labels)


def test_with_sentinel_every_connection_goes_on_at_the_new_master(pair: Pair, sentinel: Sentinel, queue: Queue) -> None:
    options = {"master_name": "mymaster"}
    with Connection(sentinel.url, transport_options=options) as connection:
        pool = connection.default_channel.pool
        client = connect(pool.connection_class, pool.connection_kwargs)
        leases, watcher, note = (
            Leases(client, lease_s=30),
            ArrivalWatcher(client),
            RunningNote(client, "w", expires_s=9),
        )
        put(pair.master.port, "a")
        assert len(leases.claim([queue], 1, 10**9)) == 1
        waits_end = threading.Thread(target=fails_to_wait, args=(watcher, queue))
        waits_end.start()
        pair.master.pause()  # its connections stay open, and nobody hears of anything
        wait_until(lambda: sentinel.master() == pair.replica.port, "another one is the master")
        known = time.monotonic()
        waits_end.join(LONG)
        put(pair.replica.port, "b")
        wait_until(lambda: claimed(leases, queue), "the worker claims from it")
        assert watcher.wait([queue], 0.01) is False
        note.write(["w:1"])
        note.write(["w:2"])
        assert time.monotonic() - known < 10
        with redis.Redis(port=pair.replica.port) as replica:
            wait_until(lambda: replica.get("batchery:running:w") == b"w:2", "the note is there, too")
        watcher.close()
        note.close()


def fails_to_wait(watcher: ArrivalWatcher, queue: Queue) -> None:
    with suppress(redis.RedisError):
        watcher.wait([queue], LONG)


def claimed(leases: Leases, queue: Queue) -> bool:
    try:
        return bool(leases.claim([queue], 9, 10**9))
    except redis.RedisError:
        return False


def test_a_connection_that_waits_for_an_old_master_while_it_is_made_goes_on_at_the_new_one(
    pair: Pair, sentinel: Sentinel, queue: Queue
) -> None:
    with Connection(sentinel.url, transport_options={"master_name": "mymaster"}) as connection:
        pool = connection.default_channel.pool
        client = connect(pool.connection_class, {**pool.connection_kwargs, "socket_timeout": LONG})
        pair.master.pause()
        claiming = threading.Thread(target=fails_to_claim, args=(client, queue))
        claiming.start()
        wait_until(lambda: sentinel.master() == pair.replica.port, "another one is the master")
        claiming.join(10)
        assert not claiming.is_alive()


def fails_to_claim(client: redis.Redis, queue: Queue) -> None:
    claimed(Leases(client, lease_s=30), queue)


def test_behind_one_address_a_worker_leaves_the_server_that_has_become_a_replica(pair: Pair, queue: Queue) -> None:
    with proxied(pair.master.port) as proxy:
        leases = Leases(client_of(proxy.url), lease_s=30)
        assert leases.claim([queue], 1, 10**9) == []
        pair.swap()
        proxy.target = pair.replica.port  # for new connections: the old ones still lead to the old master
        put(pair.replica.port, "a")
        with pytest.raises(redis.ReadOnlyError):
            leases.claim([queue], 1, 10**9)
        assert len(leases.claim([queue], 1, 10**9)) == 1


def test_of_a_list_the_server_that_takes_writes_is_used(pair: Pair, queue: Queue) -> None:
    servers = [{"host": "127.0.0.1", "port": server.port} for server in (pair.replica, pair.master)]
    client = connect(redis.Connection, {}, servers)
    leases, other = Leases(client, lease_s=30), Leases(client, lease_s=30)
    put(pair.master.port, "a")
    assert len(leases.claim([queue], 1, 10**9)) == 1, "the first of the list is a replica"
    threading.Thread(target=claimed, args=(other, queue)).start()
    pair.swap()
    put(pair.replica.port, "b")
    wait_until(lambda: claimed(leases, queue), "the other one is used")
    pair.replica.kill()
    with redis.Redis(port=pair.master.port) as client:
        client.replicaof("NO", "ONE")
    put(pair.master.port, "c")
    wait_until(lambda: claimed(leases, queue), "the first one is used again")


def test_the_server_of_results_is_compared_with_the_server_that_is_used_now(pair: Pair, queue: Queue) -> None:
    servers = [{"host": "127.0.0.1", "port": server.port} for server in pair]
    client = connect(redis.Connection, servers[0], servers)
    results = redis.Redis(port=pair.master.port)
    assert same_server(client, results)
    with redis.Redis(port=pair.replica.port) as replica:
        replica.replicaof("NO", "ONE")
    pair.master.kill()
    wait_until(
        lambda: claimed(Leases(client, lease_s=30), queue) or place_in_list(client) == 1, "the other one is used"
    )
    assert not same_server(client, results), "the server of the results is away, so its address tells"
    results.close()


def test_a_list_of_servers_that_are_all_away_tells_so(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    client = connect(redis.Connection, {}, [{"host": "127.0.0.1", "port": port} for port in (1, 2)])
    for _ in range(20):
        with pytest.raises(redis.ConnectionError):
            Leases(client, lease_s=30).claim([queue], 1, 10**9)
    assert not caplog.messages


def test_a_silent_connection_is_replaced_before_a_command_goes_over_it(
    proxy: Proxy, redis_client: redis.Redis, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CLOSED_CHECK_S", 0.05)
    leases = Leases(client_of(proxy.url, health_check_interval=0.1, socket_timeout=LONG), lease_s=30)
    assert leases.claim([queue], 1, 10**9) == []
    proxy.silence()
    threading.Event().wait(0.2)
    Lists(redis_client, queue).put("a")
    began = time.monotonic()
    assert len(leases.claim([queue], 1, 10**9)) == 1
    assert time.monotonic() - began < 10 < LONG


def test_a_watcher_finds_out_that_reports_no_longer_arrive(
    proxy: Proxy, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "HEALTH_CHECK_S", 0.1)
    watcher = ArrivalWatcher(client_of(proxy.url))
    try:
        assert watcher.wait([queue], 0.2) is False
        changes = watcher._changes
        assert watcher.wait([queue], 0.2) is False
        assert watcher._changes is changes, "one that answers is kept"
        # Only the connection for reports goes silent.
        proxy.silence(changes._sock.getsockname())
        with pytest.raises(redis.TimeoutError):
            while not watcher.wait([queue], 0.2):
                pass
        with redis.Redis.from_url(proxy.url) as client:
            client.lpush(queue.lists[0], message("a"))
        assert watcher.wait([queue], LONG) is True
    finally:
        watcher.close()


def test_an_idle_worker_that_does_not_watch_finds_out_that_its_connection_is_silent(
    proxy: Proxy, redis_client: redis.Redis, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "WATCHER_TIMEOUT_S", 0.3)
    watcher = ArrivalWatcher(client_of(proxy.url))
    redis_client.set("batchery:wake:work:watcher", 1)
    proxy.delay_s = 0.0
    assert watcher.wait([queue], 0.2) is False
    threading.Timer(0.3, proxy.silence).start()
    with pytest.raises(redis.TimeoutError):
        watcher.wait([queue], 2)
    assert watcher.wait([queue], 0.2) is False
    watcher.close()


def test_a_server_that_closes_idle_connections_costs_no_error(
    proxy: Proxy, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CLOSED_CHECK_S", 0.05)
    leases = Leases(client_of(proxy.url), lease_s=30)
    for _ in range(5):
        assert leases.claim([queue], 1, 10**9) == []
        proxy.cut()
        threading.Event().wait(0.2)


def test_fifty_losses_leave_no_connection_behind(proxy: Proxy, queue: Queue) -> None:
    client = client_of(proxy.url)
    leases, watcher = Leases(client, lease_s=30), ArrivalWatcher(client)
    note = RunningNote(client, "w", expires_s=9)
    for _ in range(50):
        note.write(["w:1"])
        for use in (lambda: leases.claim([queue], 1, 10**9), lambda: watcher.wait([queue], 0.01)):
            try:
                use()
            except redis.RedisError:
                use()
        proxy.cut()
    wait_until(lambda: proxy.connections <= 4, "they are given back")
    watcher.close()
    note.close()


def test_a_master_that_nobody_uses_asks_sentinel_no_more() -> None:
    class Sentinels:
        asked = 0

        def discover_master(self, service: str) -> tuple[str, int]:
            self.asked += 1
            return (service, 1)

    sentinels = Sentinels()
    master = Master(sentinels=sentinels, service="mymaster")
    wait_until(lambda: sentinels.asked, "it asks")
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "batchery-sentinel")
    del master
    wait_until(lambda: not thread.is_alive(), "its thread ends")
