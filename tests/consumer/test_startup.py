"""What a worker refuses to start with, and with which words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.apps import APP, make_app
from tests.support.workers import StartWorker, Worker

StartRaw = Callable[..., Worker]


@pytest.fixture
def start_raw(redis_url: str) -> Iterator[StartRaw]:
    """Start a worker that is not expected to answer."""
    with ExitStack() as stack:

        def start(*args: str, **env: str) -> Worker:
            worker = Worker(APP, args=args, env={"REDIS_URL": redis_url, **env})
            stack.callback(worker.close)
            return worker

        yield start


def conf(**values: Any) -> str:
    return json.dumps(values)


@pytest.mark.worker
def test_a_forked_pool_is_refused_with_the_reason(start_raw: StartRaw) -> None:
    worker = start_raw("-P", "processes")
    assert worker.wait(timeout=15) != 0
    assert "Batchery cannot run with the pool" in worker.log
    assert "-P threads" in worker.log


@pytest.mark.worker
def test_a_forked_pool_that_the_app_asks_for_is_refused(start_raw: StartRaw) -> None:
    worker = start_raw(CONF=conf(worker_pool="prefork"))
    assert worker.wait(timeout=15) != 0
    assert "Batchery cannot run with the pool" in worker.log


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_serves_in_each_pool_that_can_work(start: StartWorker, caller: Celery, pool: str) -> None:
    start(args=["-P", pool])
    assert caller.tasks["echo"].delay(1).get(timeout=15) == 1
    assert caller.tasks["plain"].delay(2).get(timeout=15) == 2


def test_a_pool_that_the_app_asks_for_is_left_alone(start: StartWorker, caller: Celery) -> None:
    start(env={"CONF": conf(worker_pool="solo")})
    (stats,) = caller.control.inspect(limit=1).stats().values()
    assert "solo" in stats["pool"]["implementation"]


@pytest.mark.parametrize("args", [(), ("-P", "prefork")], ids=["no -P", "Celery's default"])
def test_without_any_choice_plain_tasks_run_in_threads(start: StartWorker, caller: Celery, args: Sequence[str]) -> None:
    """Celery cannot tell `-P prefork`, its default, from no choice, and takes the pool that `setup` has set."""
    start(args=args)
    (stats,) = caller.control.inspect(limit=1).stats().values()
    assert "thread" in stats["pool"]["implementation"]


@pytest.mark.worker
def test_a_broker_that_is_not_redis_is_refused_with_the_reason(start_raw: StartRaw) -> None:
    worker = start_raw(REDIS_URL="memory://", RESULTS_URL="cache+memory://")
    assert worker.wait(timeout=15) != 0
    assert "Batchery claims from Redis or Valkey" in worker.log


@pytest.mark.worker
def test_celerys_own_consumer_is_refused_with_the_reason(start_raw: StartRaw) -> None:
    worker = start_raw(CONF=conf(worker_consumer="celery.worker.consumer:Consumer"))
    assert worker.wait(timeout=15) != 0
    assert "Remove that setting" in worker.log


LOAD_ERRORS = ["RuntimeError", "FileNotFoundError", "ConnectionError", "KeyError", "SystemExit"]


@pytest.mark.worker
@pytest.mark.parametrize("error", LOAD_ERRORS)
def test_a_model_that_does_not_load_ends_its_worker_which_consumes_nothing(
    start_raw: StartRaw, redis_url: str, redis_client: redis.Redis, error: str
) -> None:
    make_app(redis_url).send_task("echo", ["waits"], ignore_result=True)
    worker = start_raw(LOAD_ERROR=error)
    assert worker.wait(timeout=15) != 0
    assert "the model is not there" in worker.log
    assert redis_client.llen("celery") == 1
    assert not redis_client.keys("batchery:unacked*")


def test_a_callers_app_is_not_changed_by_setup() -> None:
    app = make_app("redis://127.0.0.1:1/0")
    before: Mapping[str, Any] = dict(app.conf)
    assert "batchery" not in str(before["worker_consumer"])
