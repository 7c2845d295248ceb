"""Another server becomes the master: workers go on there by themselves, and probes tell the truth meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu.pools
import pytest
import redis
from batchery.worker import health
from celery import Celery

from tests.support.apps import APP
from tests.support.callers import calling, options, unsettled
from tests.support.failover import Pair, replicated, watched
from tests.support.proxy import proxied
from tests.support.waiting import wait_until
from tests.support.workers import Worker

WAIT = 30.0
SENTINEL = {"master_name": "mymaster"}

pytestmark = pytest.mark.worker


@pytest.fixture
def pair() -> Iterator[Pair]:
    with replicated() as pair:
        yield pair


@contextmanager
def working(url: str, **env: str) -> Iterator[Worker]:
    worker = Worker(APP, args=["-l", "INFO"], env={"REDIS_URL": url, **env})
    try:
        wait_until(lambda: worker.alive() and " ready." in worker.log, "the worker is ready", 60)
        yield worker
        assert worker.alive(), worker.log
    finally:
        worker.close()


def probe(url: str, worker: Worker, *more: str) -> int:
    return health.main(["--broker", url, "--node", worker.name, "--timeout", "1", *more])


@contextmanager
def caller(broker: str, backend: str | None = None, **conf: Any) -> Iterator[Celery]:
    """A caller whose connections are new: kombu keeps those of other apps, and takes a list for its first server."""
    kombu.pools.reset()
    with calling(broker, backend, **conf) as app:
        yield app


def answers(app: Celery, value: str) -> None:
    assert app.tasks["echo"].delay(value).get(timeout=WAIT) == value


def lines(worker: Worker, words: str) -> int:
    return sum(words in line for line in worker.log.splitlines())


def test_with_sentinel_a_worker_goes_on_at_the_new_master(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    conf: Any = {"broker_transport_options": SENTINEL, "result_backend_transport_options": SENTINEL}
    sentinel_options = ("--transport-options", json.dumps(SENTINEL))
    with watched(pair) as sentinel, working(sentinel.url, CONF=json.dumps(conf)) as worker:
        with caller(sentinel.url, **conf) as app:
            answers(app, "before")
        assert probe(sentinel.url, worker, *sentinel_options) == 0
        pair.master.pause()  # it loses its network: no connection is closed
        assert probe(sentinel.url, worker, *sentinel_options) == 1
        assert "cannot be used" in capsys.readouterr().out
        assert probe(sentinel.url, worker, *sentinel_options, "--alive") == 0
        wait_until(lambda: sentinel.master() == pair.replica.port, "there is a new master")
        known = time.monotonic()
        with caller(sentinel.url, **conf) as app:
            answers(app, "after")
            assert time.monotonic() - known < 10
            # The old one comes back, and Sentinel makes a replica of it.
            pair.master.resume()
            with redis.Redis(port=pair.master.port) as old, redis.Redis(port=pair.replica.port) as new:
                wait_until(lambda: old.role()[0] == b"slave", "the old master is a replica")
                for number in range(20):
                    answers(app, f"later {number}")
                wait_until(lambda: not unsettled(new), "everything is settled")
        wait_until(lambda: probe(sentinel.url, worker, *sentinel_options) == 0, "it is ready")
        assert lines(worker, "The master is another server now") == 1
        assert lines(worker, "Redis cannot be used") <= 1


def test_behind_one_address_a_worker_leaves_a_master_that_was_demoted(pair: Pair) -> None:
    with proxied(pair.master.port) as proxy, working(proxy.url, **options(lease_s=3)) as worker:
        with caller(proxy.url) as app:
            answers(app, "before")
        pair.swap()  # the connections to the old master stay open
        wait_until(lambda: probe(proxy.url, worker) == 1, "it is not ready, because the address leads to a replica")
        assert probe(proxy.url, worker, "--alive") == 0
        proxy.target = pair.replica.port  # the address leads to the new master
        known = time.monotonic()
        with caller(proxy.url) as app:
            answers(app, "after")
            assert time.monotonic() - known < 10
            wait_until(lambda: probe(proxy.url, worker) == 0, "it is ready, so Celery has connected anew, too")
            assert app.tasks["plain"].delay("plain").get(timeout=WAIT) == "plain"
        assert lines(worker, "Redis cannot be used") == lines(worker, "Redis can be used again")


def test_of_a_list_of_brokers_the_next_one_is_used_when_one_dies(pair: Pair) -> None:
    with redis.Redis(port=pair.replica.port) as client:
        client.replicaof("NO", "ONE")
    url = f"{pair.master.url};{pair.replica.url}"
    with working(url, RESULTS_URL=pair.replica.url) as worker:
        with caller(pair.master.url, pair.replica.url) as app:
            answers(app, "before")
        pair.master.kill()
        with caller(url, pair.replica.url) as app:
            answers(app, "after")
            wait_until(lambda: probe(pair.replica.url, worker) == 0, "it is ready")
        assert lines(worker, "The master is another server now") == 1
