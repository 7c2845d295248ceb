"""A server and a network of every mood: a worker goes on, answers each call, says little, and keeps no connection."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
import redis
from batchery.worker import health
from celery import Celery

from tests.support.apps import APP
from tests.support.callers import calling, options, unsettled
from tests.support.proxy import Proxy, proxied
from tests.support.servers import Valkey
from tests.support.waiting import wait_until
from tests.support.workers import Worker

WAIT = 60.0

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    valkey = Valkey(maxmemory_policy="noeviction")
    try:
        valkey.start()
        yield valkey
    finally:
        valkey.close()


@pytest.fixture(scope="module")
def proxy(valkey: Valkey) -> Iterator[Proxy]:
    """What lies between the worker and the server. Callers reach the server without it."""
    with proxied(valkey.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def module_worker(proxy: Proxy) -> Iterator[Worker]:
    conf = {"broker_transport_options": {"health_check_interval": 1}}
    worker = Worker(APP, args=["-l", "INFO"], env={"REDIS_URL": proxy.url, "CONF": json.dumps(conf)})
    try:
        wait_until(lambda: worker.alive() and " ready." in worker.log, f"the worker is ready:\n{worker.log}", WAIT)
        yield worker
        assert worker.alive(), worker.log[-3000:]
    finally:
        worker.close()


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture
def worker(module_worker: Worker, client: redis.Redis) -> Iterator[Worker]:
    """The worker of all these tests; each leaves it with nothing to do."""
    yield module_worker
    assert module_worker.alive(), module_worker.log[-3000:]
    wait_until(lambda: not unsettled(client), f"every message is settled:\n{module_worker.log[-3000:]}", WAIT)


@pytest.fixture
def app(valkey: Valkey, worker: Worker) -> Iterator[Celery]:
    with calling(valkey.url) as app:
        yield app


def answers(app: Celery, task: str, value: object) -> float:
    """The seconds until a lone call was answered."""
    began = time.monotonic()
    assert app.tasks[task].delay(value).get(timeout=WAIT) == value
    return time.monotonic() - began


def test_fifty_lost_connections_and_forgotten_scripts_cost_no_call_and_no_connection(
    app: Celery, client: redis.Redis, proxy: Proxy, worker: Worker
) -> None:
    answers(app, "echo", "first")
    answers(app, "plain", "first")
    before, said = proxy.connections, len(worker.log)
    for number in range(50):
        results = app.tasks["echo"].delay_many(range(number, number + 5))
        proxy.cut()
        if number % 10 == 0:
            client.script_flush()
        assert results.get(timeout=WAIT) == [*range(number, number + 5)]
    answers(app, "plain", "last")
    wait_until(lambda: proxy.connections <= before + 2, f"connections are given back: {proxy.connections}, {before}")
    ours = [line for line in worker.log[said:].splitlines() if "Redis cannot be used" in line]
    assert len(ours) <= 5, ours


def test_a_lone_call_over_silent_connections_is_answered_within_seconds(
    app: Celery, proxy: Proxy, worker: Worker
) -> None:
    answers(app, "echo", "before")
    proxy.silence()
    idle_until = time.monotonic() + 1.5  # longer than `health_check_interval`
    wait_until(lambda: time.monotonic() > idle_until, "the connections are idle")
    assert answers(app, "echo", "after") < 10


def test_a_slow_server_is_waited_for(app: Celery, proxy: Proxy) -> None:
    proxy.delay_s = 0.2
    try:
        answers(app, "echo", "slowly")
    finally:
        proxy.delay_s = 0.0


def test_a_server_that_closes_idle_connections_is_no_news(app: Celery, client: redis.Redis, worker: Worker) -> None:
    client.config_set("timeout", 1)
    try:
        for number in range(3):
            said = len(worker.log)
            wait_until(lambda: no_command_is_younger_than(client, 1), "idle connections were closed")
            answers(app, "echo", number)
            assert "Redis cannot be used" not in worker.log[said:]
    finally:
        client.config_set("timeout", 0)


def no_command_is_younger_than(client: redis.Redis, seconds: int) -> bool:
    clients = [row for row in client.client_list() if "fcall" in row["cmd"] or "evalsha" in row["cmd"]]
    return all(int(row["idle"]) >= seconds for row in clients)


def test_a_server_that_is_away_costs_few_lines_and_little_time_and_a_restart_without_data_goes_on(
    app: Celery, valkey: Valkey, proxy: Proxy, worker: Worker
) -> None:
    answers(app, "echo", "before")
    said = len(worker.log)
    valkey.kill()
    wait_until(lambda: "Redis cannot be used" in worker.log[said:], "it says so", WAIT)
    assert probe(proxy, worker) == 1
    assert probe(proxy, worker, "--alive") == 0
    lines, cpu_s = len(worker.log.splitlines()), cpu_seconds(worker)
    until = time.monotonic() + 4
    wait_until(lambda: time.monotonic() > until, "it was away for a while")
    assert len(worker.log.splitlines()) - lines < 20
    assert cpu_seconds(worker) - cpu_s < 2
    valkey.start()
    with calling(valkey.url) as caller:
        answers(caller, "echo", "after")
        answers(caller, "plain", "after")
    wait_until(lambda: probe(proxy, worker) == 0, "it is ready", WAIT)
    words = worker.log[said:]
    assert words.count("Redis cannot be used") == words.count("Redis can be used again") == 1


@contextmanager
def configured(client: redis.Redis, name: str, value: str, usual: str) -> Iterator[None]:
    client.config_set(name, value)
    yield
    client.config_set(name, usual)


def full(client: redis.Redis) -> AbstractContextManager[None]:
    return configured(client, "maxmemory", "1", "0")


@contextmanager
def replica(client: redis.Redis) -> Iterator[None]:
    client.replicaof("127.0.0.1", "1")
    yield
    client.replicaof("no", "one")


@contextmanager
def replica_without_master(client: redis.Redis) -> Iterator[None]:
    with configured(client, "replica-serve-stale-data", "no", "yes"), replica(client):
        yield


def too_few_replicas(client: redis.Redis) -> AbstractContextManager[None]:
    return configured(client, "min-replicas-to-write", "1", "0")


@contextmanager
def busy(client: redis.Redis) -> Iterator[None]:
    """Run a script that does not end until it is killed."""

    def run() -> None:
        with suppress(redis.RedisError):
            client.eval("while true do end", 0)

    client.config_set("busy-reply-threshold", 50)
    script = threading.Thread(target=run)
    script.start()
    with redis.Redis(connection_pool=redis.ConnectionPool(**client.get_connection_kwargs())) as other:
        yield
        other.script_kill()
    script.join()


@pytest.mark.parametrize(
    ("mood", "code"),
    [
        (full, "maxmemory"),
        (replica, "read only"),
        (replica_without_master, "Link with MASTER"),
        (too_few_replicas, "NOREPLICAS"),
        (busy, "BUSY"),
    ],
)
def test_a_worker_that_reconnects_to_a_server_that_refuses_it_goes_on_when_that_is_over(
    app: Celery,
    client: redis.Redis,
    proxy: Proxy,
    worker: Worker,
    mood: Callable[[redis.Redis], AbstractContextManager[None]],
    code: str,
) -> None:
    answers(app, "echo", "before")
    said = len(worker.log)
    with mood(client):
        proxy.cut()
        wait_until(lambda: refusals(worker.log[said:], code) >= 2 or not worker.alive(), "Celery is refused", WAIT)
        assert worker.alive(), worker.log[-3000:]
        assert refusals(worker.log[said:], "") < 10, worker.log[-3000:]
    answers(app, "echo", "after")
    wait_until(lambda: probe(proxy, worker) == 0, f"it is ready:\n{worker.log[-3000:]}", WAIT)
    answers(app, "plain", "after")


def refusals(log: str, code: str) -> int:
    """How often Celery itself, not the engine, says that its connection was refused or lost, with these words."""
    signs = "Cannot connect to", "Connection to broker lost"
    return sum(code in line and any(sign in line for sign in signs) for line in log.splitlines())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT])
def test_a_worker_that_is_stopped_while_nothing_answers_ends_within_its_bound(
    valkey: Valkey, proxy: Proxy, how: signal.Signals
) -> None:
    env = {"REDIS_URL": proxy.url, **options(drain_timeout_s=1), "TUNING": json.dumps({"STOP_GRACE_S": 2})}
    worker = Worker(APP, args=["-l", "INFO"], env=env)
    try:
        wait_until(lambda: worker.alive() and " ready." in worker.log, f"the worker is ready:\n{worker.log}", WAIT)
        with calling(valkey.url) as app:
            answers(app, "echo", "before")
        proxy.black_hole()
        began = time.monotonic()
        os.kill(worker.pid, how)
        worker.wait(WAIT)
        assert time.monotonic() - began < 20
    finally:
        proxy.heal()
        worker.kill()
        worker.close()


def probe(proxy: Proxy, worker: Worker, *more: str) -> int:
    return health.main(["--broker", proxy.url, "--node", worker.name, "--timeout", "1", *more])


def cpu_seconds(worker: Worker) -> float:
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
