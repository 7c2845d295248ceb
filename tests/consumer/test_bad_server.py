"""Servers that are full, read-only or away: whoever is not answered with an error is answered when that is over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import pytest
import redis
from celery import Celery, chord
from kombu.exceptions import OperationalError

from tests.support.apps import APP
from tests.support.callers import calling, options
from tests.support.gates import Gate
from tests.support.models import SEEN
from tests.support.servers import Valkey
from tests.support.waiting import wait_until
from tests.support.workers import Worker

WAIT = 30.0
MB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of this file's own, whose settings its tests change."""
    valkey = Valkey(maxmemory_policy="noeviction")
    try:
        valkey.start()
        yield valkey.url
    finally:
        valkey.close()


@pytest.fixture
def admin(server: str, client: redis.Redis) -> Iterator[redis.Redis]:
    """Changes settings that are back to normal afterwards."""
    with redis.Redis.from_url(server) as admin:
        yield admin
        admin.replicaof("no", "one")
        admin.config_set("maxmemory", 0)


@pytest.fixture(scope="module")
def worker_args() -> Sequence[str]:
    return ("-c", "4")


@pytest.fixture(scope="module")
def worker_env() -> Mapping[str, str]:
    """The file's worker takes 1 MB for the largest result; what it lets go soon goes back."""
    return {"TUNING": json.dumps({"MAX_RESULT_BYTES": MB}), **options(lease_s=5)}


def test_a_result_larger_than_redis_takes_fails_alone_and_is_acknowledged(app: Celery, worker: Worker) -> None:
    swell = app.tasks["swell"]
    assert swell.delay(1).get(timeout=WAIT) == "x"
    small, large, other = swell.delay_many([10, 2 * MB, 20])
    linked = swell.apply_async((3 * MB,), link=app.tasks["note_value"].s())  # it goes Celery's own way
    assert (small.get(timeout=WAIT), other.get(timeout=WAIT)) == ("x" * 10, "x" * 20)
    for result in (large, linked):
        with pytest.raises(Exception, match=rf"The result is \d+ bytes, but Redis takes {MB} at most") as caught:
            result.get(timeout=5)
        assert type(caught.value).__name__ == "BatchFailed"


def test_a_full_server_refuses_calls_but_stores_the_results_of_claimed_jobs(
    app: Celery, admin: redis.Redis, gate: Gate
) -> None:
    silent = app.tasks["silent"]
    ids = [result.id for result in silent.delay_many([(gate.path, index) for index in range(12)])]
    gate.wait_for_model()
    admin.config_set("maxmemory", 1)
    with pytest.raises((OperationalError, redis.OutOfMemoryError), match=r"(?i)maxmemory"):
        silent.apply_async((gate.path, "one more"), retry=False, ignore_result=True)
    gate.open()
    keys = [f"celery-task-meta-{task_id}" for task_id in ids]
    wait_until(lambda: admin.exists(*keys) == 12, "all are answered", WAIT)
    admin.config_set("maxmemory", 0)
    assert app.tasks["echo"].delay("goes on").get(timeout=WAIT) == "goes on"


def test_a_server_that_turns_read_only_gets_the_results_when_it_is_writable_again(
    app: Celery, admin: redis.Redis, worker: Worker, gate: Gate
) -> None:
    ids = [result.id for result in app.tasks["silent"].delay_many([(gate.path, index) for index in range(12)])]
    gate.wait_for_model()
    before = len(worker.log)
    admin.replicaof("127.0.0.1", "1")
    gate.open()
    wait_until(lambda: "read only" in worker.log[before:], "the worker says that it cannot store", WAIT)
    admin.replicaof("no", "one")
    keys = [f"celery-task-meta-{task_id}" for task_id in ids]
    wait_until(lambda: admin.exists(*keys) == 12, "all are answered", WAIT)


@pytest.mark.parametrize("refuses", ["maxmemory", "read only"])
def test_what_plain_tasks_have_done_is_told_once_a_server_takes_writes_again_and_they_run_once(
    app: Celery, admin: redis.Redis, worker: Worker, gate: Gate, refuses: str
) -> None:
    noted, called = app.tasks["plain_noted"], app.tasks["note_value"]
    together = chord([noted.s(gate.path, 1), noted.s(gate.path, 2)], app=app)(called.s())
    linked = noted.apply_async((gate.path, 3), link=called.s())
    retried = app.tasks["plain_retried"].delay(gate.path, 4)
    wait_until(lambda: admin.llen(SEEN) == 3, "all are running", WAIT)
    gate.wait_for_model()
    before = len(worker.log)
    admin.config_set("maxmemory", 1) if refuses == "maxmemory" else admin.replicaof("127.0.0.1", "1")
    gate.open()
    wait_until(lambda: "Redis cannot be used" in worker.log[before:], "the worker waits for the server", WAIT)
    admin.replicaof("no", "one")
    admin.config_set("maxmemory", 0)
    assert together.get(timeout=WAIT) == [1, 2]
    assert (linked.get(timeout=WAIT), retried.get(timeout=WAIT)) == (3, 4)
    wait_until(lambda: admin.llen(SEEN) >= 5, "the callbacks have run", WAIT)
    seen = sorted(map(json.loads, admin.lrange(SEEN, 0, -1)), key=str)
    assert seen == [1, 2, 3, ["link", 3], ["link", [1, 2]]]


@pytest.mark.worker
def test_a_worker_that_starts_on_a_server_that_refuses_writes_serves_once_it_takes_them() -> None:
    """Celery itself writes before it consumes, and a stock worker would end."""
    server = Valkey(maxmemory_policy="noeviction")
    try:
        server.start()
        with calling(server.url) as caller, redis.Redis.from_url(server.url) as client:
            result = caller.tasks["echo"].delay("at last")
            client.config_set("maxmemory", 1)
            worker = Worker(APP, args=["-l", "INFO"], env={"REDIS_URL": server.url})
            try:
                wait_until(lambda: "maxmemory" in worker.log, f"it says that the server is full:\n{worker.log}", WAIT)
                client.replicaof("127.0.0.1", "1")
                client.config_set("maxmemory", 0)
                wait_until(lambda: "read only" in worker.log, f"it says that this is a replica:\n{worker.log}", WAIT)
                assert worker.alive()
                assert " ready." not in worker.log
                client.replicaof("no", "one")
                assert result.get(timeout=WAIT) == "at last"
            finally:
                worker.close()
    finally:
        server.close()


@pytest.mark.worker
def test_a_worker_that_starts_before_its_server_serves_once_that_is_there() -> None:
    server = Valkey()
    worker = Worker(APP, args=(), env={"REDIS_URL": server.url})
    try:
        wait_until(lambda: "Cannot connect to" in worker.log, f"it says what is wrong:\n{worker.log}", WAIT)
        server.start()
        with calling(server.url) as caller:
            assert caller.tasks["echo"].delay("at last").get(timeout=WAIT) == "at last"
    finally:
        worker.close()
        server.close()
