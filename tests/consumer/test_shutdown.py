"""A worker that stops fails no call: what it has not finished is answered by the next worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from tests.support.callers import unsettled
from tests.support.gates import Gate
from tests.support.leaving import LEAVING
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker, Worker

WAIT = 60.0


def send(app: Celery, count: int) -> list[tuple[int, AsyncResult[Any]]]:
    return [(number, app.tasks[("plain", "echo")[number % 2]].delay(number)) for number in range(count)]


def assert_answered(results: Sequence[tuple[int, AsyncResult[Any]]]) -> None:
    assert [result.get(timeout=WAIT) for _, result in results] == [number for number, _ in results]


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_calls_that_a_stopping_worker_has_claimed_are_answered_by_the_next(
    caller: Celery, redis_client: redis.Redis, start_worker: StartWorker, redis_url: str, pool: str
) -> None:
    results = send(caller, 600)
    for _ in range(2):
        leaver = Worker(LEAVING, args=["-P", pool], env={"REDIS_URL": redis_url})
        try:
            assert leaver.wait(WAIT) == 0, leaver.log
            assert "Traceback" not in leaver.log
            assert not unsettled(redis_client)
        finally:
            leaver.close()
    start_worker("tests.support.apps", args=["-P", pool])
    assert_answered(results)


def test_workers_that_come_and_go_under_load_fail_no_call(
    caller: Celery, redis_client: redis.Redis, start_worker: StartWorker
) -> None:
    results = send(caller, 1500)
    for pool in ("threads", "solo"):
        worker = start_worker("tests.support.apps", args=["-P", pool])
        results += send(caller, 300)
        worker.terminate()
        worker.terminate()  # Celery ignores the second
        assert worker.wait(WAIT) == 0
        assert "Traceback" not in worker.log
    start_worker("tests.support.apps")
    assert_answered(results)
    wait_until(lambda: not unsettled(redis_client), "every message is settled")


@pytest.mark.parametrize("soft_s", [0, 1])
def test_a_cold_shutdown_waits_for_no_batch_and_loses_nothing(
    caller: Celery, redis_client: redis.Redis, start_worker: StartWorker, gate: Gate, soft_s: int
) -> None:
    conf = f'{{"worker_soft_shutdown_timeout": {soft_s}}}'
    worker = start_worker("tests.support.apps", env={"CONF": conf})
    held = caller.tasks["gated"].delay(gate.path, "held")
    gate.wait_for_model()
    results = send(caller, 200)
    wait_until(lambda: results[0][1].ready(), "plain tasks run")
    os.kill(worker.pid, signal.SIGQUIT)
    worker.wait(WAIT)
    assert not unsettled(redis_client)
    gate.open()
    start_worker("tests.support.apps")
    assert held.get(timeout=WAIT) == "held"
    assert_answered(results)
