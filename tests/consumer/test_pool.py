"""A pool tells what Celery's own code raised while it ran a plain task, so that no message is kept for ever."""

from __future__ import annotations

from typing import Any

import pytest
from batchery.worker.consumer.compat.pool import report_errors
from celery.concurrency import solo, thread
from celery.exceptions import WorkerLostError

from tests.support.waiting import wait_until


class Request:
    """What the pool knows of a request."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.accepted = False
        self.result: Any = None

    def on_accepted(self, *_: Any) -> None:
        self.accepted = True

    def on_success(self, result: Any) -> None:
        if self.error is not None:
            raise self.error
        failed, self.result, _ = result
        assert not failed


def run(kind: type[Any], target: Any, request: Request) -> list[Any]:
    """Run one task in a pool; return what is reported."""
    pool = kind(limit=1)
    reported: list[Any] = []
    report_errors(pool, lambda *report: reported.append(report))
    pool.apply_async(target, ("a value",), {}, callback=request.on_success, accept_callback=request.on_accepted)
    wait_until(lambda: reported or request.result, "the task has ended", 5)
    pool.stop()
    assert request.accepted
    return reported


@pytest.fixture(params=[thread.TaskPool, solo.TaskPool], ids=["threads", "solo"])
def kind(request: pytest.FixtureRequest) -> type[Any]:
    pool: type[Any] = request.param
    return pool


def test_a_task_that_ends_well_is_told_to_its_request_alone(kind: type[Any]) -> None:
    request = Request()
    assert run(kind, lambda value: (0, value, 0.1), request) == []
    assert request.result == "a value"


@pytest.mark.parametrize("error", [ConnectionError("away"), MemoryError("m"), KeyError("k")], ids=repr)
def test_what_the_tracer_raises_is_reported(kind: type[Any], error: Exception) -> None:
    def tracer(_: Any) -> Any:
        raise error

    request = Request()
    assert run(kind, tracer, request) == [(request, error)]


def test_a_task_that_raises_system_exit_counts_as_lost(kind: type[Any]) -> None:
    def tracer(_: Any) -> Any:
        raise SystemExit(3)

    ((_, error),) = run(kind, tracer, Request())
    assert isinstance(error, WorkerLostError)
    assert "SystemExit" in str(error)


@pytest.mark.parametrize("error", [ConnectionError("away"), MemoryError("m"), SystemExit(3)], ids=repr)
def test_what_the_requests_callback_raises_is_reported(kind: type[Any], error: BaseException) -> None:
    request = Request(error)
    assert run(kind, lambda value: (0, value, 0.1), request) == [(request, error)]
