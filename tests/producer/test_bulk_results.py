"""The results of many calls: each is fetched once, an ignored one is not waited for, and connections may be lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError

from batchery import BatchTask, BulkResult
from tests.support.callers import disconnect
from tests.support.waiting import wait_until

# Celery's own way to store a result.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def caller(redis_url: str) -> Iterator[Celery]:
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)

    @app.task(base=BatchTask, name="echo", shared=False)
    def echo(values: list[Any]) -> list[Any]:
        return values

    @app.task(base=BatchTask, name="quiet", shared=False, ignore_result=True)
    def quiet(values: list[Any]) -> list[Any]:
        return values

    app.finalize()
    yield app
    disconnect(app)


def answer(backend: Any, results: BulkResult, *places: int) -> None:
    for place in places:
        backend.store_result(results.ids[place], place, "SUCCESS")


def with_route(app: Celery) -> None:
    """Let every call be published by itself."""
    app.conf.task_routes = [lambda *_, **__: {}]


@pytest.mark.parametrize("way", ["in bulk", "one by one"])
@pytest.mark.parametrize(("task", "options"), [("quiet", {}), ("echo", {"ignore_result": True})])
def test_nobody_waits_for_results_that_are_ignored(
    caller: Celery, task: str, options: dict[str, Any], way: str
) -> None:
    """As `delay().get()` of such a call, which is None."""
    if way == "one by one":
        with_route(caller)
    results = caller.tasks[task].delay_many(range(3), **options)
    assert results.get() == results.get(timeout=0) == [None] * 3
    assert [result.get() for result in results] == [result.get() for result in results.iterate()] == [None] * 3
    assert results[1:].get() == [None] * 2
    assert results.ready()


def test_a_call_may_want_its_result_though_its_task_ignores_results(caller: Celery) -> None:
    results = caller.tasks["quiet"].delay_many(range(2), ignore_result=False)
    assert not results.ready()
    answer(caller.backend, results, 0, 1)
    assert results.get(timeout=5) == [0, 1]


def test_a_result_that_is_known_is_not_fetched_again(caller: Celery, redis_client: redis.Redis) -> None:
    results = caller.tasks["echo"].delay_many(range(600))
    answer(caller.backend, results, *range(1, 600))
    with redis_client.monitor() as monitor, ThreadPoolExecutor(1) as pool:  # type: ignore[no-untyped-call]
        asked = (command["command"] for command in monitor.listen() if command["command"].startswith("MGET"))
        got = pool.submit(results.get, 20)
        counts = [next(asked).count(" ") for _ in range(3)]
        answer(caller.backend, results, 0)
        assert got.result(20) == [*range(600)]
    assert counts == [500, 1, 1], "the first is all that is missing among the next 500"


def test_a_timeout_says_how_many_results_are_missing(caller: Celery) -> None:
    results = caller.tasks["echo"].delay_many(range(3))
    answer(caller.backend, results, 0)
    with pytest.raises(CeleryTimeoutError, match="2 of 3"):
        results.get(timeout=0.05)


def test_results_are_read_from_the_tasks_own_backend(caller: Celery, redis_url: str) -> None:
    own = RedisBackend(app=caller, url=redis_url)
    own.task_keyprefix = b"own-"

    @caller.task(base=BatchTask, name="own", shared=False, backend=own)
    def task(values: list[Any]) -> list[Any]:
        return values

    results = caller.tasks["own"].delay_many(range(2))
    answer(own, results, 0, 1)
    assert results.get(timeout=5) == [0, 1]
    assert [result.get(timeout=5) for result in results] == [0, 1]
    own.result_consumer.stop()
    own.client.close()


def test_a_connection_that_is_lost_while_results_are_waited_for_is_made_again(
    caller: Celery, redis_client: redis.Redis
) -> None:
    results = caller.tasks["echo"].delay_many(range(2))
    answer(caller.backend, results, 0)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(results.get, 20)
        wait_until(lambda: "mget" in {each["cmd"] for each in redis_client.client_list()}, "it asks")
        for _ in range(5):
            redis_client.client_kill_filter(_type="normal", skipme=True)
        answer(caller.backend, results, 1)
        assert got.result(20) == [0, 1]


def test_threads_that_call_while_connections_are_cut_see_celerys_errors_only(
    caller: Celery, redis_client: redis.Redis
) -> None:
    """The channel that a cut closed used to raise an AttributeError."""
    done, errors = threading.Event(), []

    def call() -> int:
        sent = 0
        while not done.is_set():
            try:
                caller.tasks["echo"].apply_async((1,), ignore_result=True)
                sent += 1
            except Exception as exc:
                errors.append(exc)
        return sent

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call) for _ in range(4)]
        for _ in range(150):
            redis_client.client_kill_filter(_type="normal", skipme=True)
            done.wait(0.01)
        done.set()
        sent = sum(each.result(20) for each in calls)
    assert [error for error in errors if not isinstance(error, OperationalError)] == []
    assert redis_client.llen("celery") >= sent > 0
