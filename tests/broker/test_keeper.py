"""The keeper refreshes a silent worker's lease for a time, begins none anew, and ends with its worker."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from batchery.worker.broker import Leases, Queue, connect, keeper
from batchery.worker.broker.keeper_process import KeeperProcess

from tests.support.leases import Lists, MakeLeases, claim_all, client_of
from tests.support.waiting import wait_until

LEASE_S = 1.0

Keep = Callable[[Leases], KeeperProcess]


@pytest.fixture
def keep(redis_url: str) -> Iterator[Keep]:
    started: list[KeeperProcess] = []

    def keep(leases: Leases) -> KeeperProcess:
        process = KeeperProcess(
            client_of(redis_url), worker=leases.worker, lease_s=leases.lease_s, limit_s=lambda: 1000.0
        )
        process.start()
        started.append(process)
        return process

    yield keep
    for process in started:
        process.stop()


def pid_of(process: KeeperProcess) -> int:
    assert process._process is not None
    return process._process.pid


def server_time(client: redis.Redis) -> float:
    seconds, micros = client.time()
    return float(seconds) + micros / 1e6


def help_is_there(client: redis.Redis, leases: Leases, process: KeeperProcess, queue: Queue) -> None:
    """Return once the keeper has refreshed a lease: it has opened its connection then."""
    process.refreshed(leases.refresh([queue]))
    before = len(client.client_list())
    wait_until(
        lambda: leases.refresh([queue]) and len(client.client_list()) > before, "the keeper refreshes the lease, too"
    )


def test_a_lease_that_its_worker_does_not_refresh_is_refreshed_by_the_keeper_until_it_is_stopped(
    make_leases: MakeLeases, keep: Keep, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    leases, other = make_leases(lease_s=LEASE_S), make_leases()
    process = keep(leases)
    lists.put("a")
    claims = claim_all(leases, queue)
    help_is_there(redis_client, leases, process, queue)
    until = server_time(redis_client) + 3 * LEASE_S
    wait_until(lambda: (redis_client.zscore(queue.workers, leases.worker) or until) > until, "it was refreshed often")
    other.claim([queue], 0, 0)
    assert lists.leased() == {claims[0].tag}
    process.stop()
    wait_until(other.sweep, "the lease has run out")


def test_a_beat_that_comes_together_with_the_charge_counts(redis_url: str, redis_client: redis.Redis) -> None:
    """The worker may have held the GIL ever since."""
    redis_client.zadd("workers", {"w": 1e12})
    parameters = {name: client_of(redis_url).connection_pool.connection_kwargs[name] for name in ("host", "port", "db")}
    charge = {"pid": os.getpid(), "worker": "w", "lease_s": 5, "connection": "Connection", "parameters": parameters}
    beat = {"at": time.monotonic(), "limit_s": 1000, "keys": ["workers"], "refreshed_at": 0.0}
    with subprocess.Popen([sys.executable, "-P", keeper.__file__], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(charge).encode() + b"\n" + json.dumps(beat).encode() + b"\n")
        process.stdin.flush()
        wait_until(lambda: (redis_client.zscore("workers", "w") or 0.0) < 1e12, "the lease is refreshed")
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_keeper_that_died_is_started_again(
    make_leases: MakeLeases, keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    process = keep(make_leases(lease_s=LEASE_S))
    first = pid_of(process)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pid_of(process) != first, "there is another one")
    assert "is started again" in caplog.text


def test_a_stop_signal_to_the_whole_group_does_not_end_the_keeper_before_its_worker(
    make_leases: MakeLeases, keep: Keep, redis_client: redis.Redis, queue: Queue
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    process = keep(leases)
    help_is_there(redis_client, leases, process, queue)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid_of(process), number)
    later = server_time(redis_client) + 2 * LEASE_S
    wait_until(lambda: (redis_client.zscore(queue.workers, leases.worker) or later) > later, "it works on")


def test_the_keeper_imports_neither_celery_nor_batchery() -> None:
    code = f"import runpy, sys; runpy.run_path({keeper.__file__!r}); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "redis" in modules.split()
    assert not {"celery", "batchery", "numpy", "torch"} & set(modules.split())


# -- What it does when, on a clock of ours -----------------------------------------------------------------------------


class Watched:
    """A keeper with what it does written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.charge = keeper.Charge(pid=1, worker="w", lease_s=30, connection="Connection", parameters={}, beat_at=0.0)
        self.keeper = keeper.Keeper(self.charge)
        self.done: list[str] = []
        self.works = True
        monkeypatch.setattr(self.keeper, "_refresh", self._refresh)
        monkeypatch.setattr(self.keeper, "_kill", lambda _: self.done.append("kill"))

    def _refresh(self) -> bool:
        self.done.append("refresh")
        return self.works

    def beat(self, at: float, refreshed_at: float) -> None:
        self.charge.note({"at": at, "limit_s": 100.0, "keys": ["k"], "refreshed_at": refreshed_at})


def test_the_keeper_of_a_worker_that_refreshes_by_itself_only_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    for now in range(0, 1000, 10):
        watched.beat(now, now)
        assert watched.keeper.turn(now) == now + 15, "later than the next beat, so that it wakes once for each"
    assert watched.done == []


def test_a_silent_worker_keeps_its_lease_up_to_its_limit_and_is_killed_one_lease_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    watched.beat(0, 0)
    times = []
    now = 0.0
    while "kill" not in watched.done:
        now = watched.keeper.turn(now)
        times.append(now)
    assert times[:-1] == [15, 30, 45, 60, 75, 90, 105, 130]
    assert watched.done == ["refresh"] * 6 + ["kill"]


def test_a_worker_that_beats_but_cannot_reach_the_server_is_helped_and_never_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    now = 0.0
    while now < 1000:
        watched.beat(now, 0)
        now = watched.keeper.turn(now)
    assert "kill" not in watched.done
    assert "refresh" in watched.done


def test_a_refresh_that_fails_is_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.beat(0, 0)
    watched.works = False
    assert watched.keeper.turn(15) == 18


# -- Connections that another process can make -------------------------------------------------------------------------


def carried(connection_class: type[Any] = redis.Connection, **parameters: Any) -> Any:
    """What the keeper of a worker with this connection is given."""
    from batchery.worker.broker.keeper_process import _carried

    pool = connect(connection_class, parameters).connection_pool
    return _carried(pool.connection_class, pool.connection_kwargs)


def test_address_credentials_and_tls_are_carried_over() -> None:
    plain: dict[str, Any] = {"host": "h", "port": 1, "db": 3, "username": "u", "password": "p"}
    assert carried(**plain) == {"connection": "Connection", "parameters": plain}
    tls = {**plain, "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem"}
    expected = {**plain, "ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"}
    assert carried(redis.SSLConnection, **tls) == {"connection": "SSLConnection", "parameters": expected}


class OddConnection(redis.Connection):
    """A connection that only this process can make."""


@pytest.mark.parametrize(
    ("connection_class", "parameters"),
    [
        (OddConnection, {}),
        (redis.Connection, {"credential_provider": redis.CredentialProvider()}),
        (redis.SSLConnection, {"ssl_min_version": ssl.TLSVersion.TLSv1_3}),
    ],
)
def test_a_worker_whose_connection_cannot_be_carried_over_says_that_it_has_no_keeper(
    connection_class: type[Any], parameters: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(connection_class, {"host": "127.0.0.1", "port": 1, **parameters})
    process = KeeperProcess(client, worker="w", lease_s=1, limit_s=lambda: 1.0)
    process.start()
    process.refreshed([])
    process.stop()
    assert "there is no keeper: " in caplog.text
