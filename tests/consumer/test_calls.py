"""Whoever calls a batch task calls an ordinary Celery task."""

from __future__ import annotations

import json

import pytest
import redis
from celery import Celery

from tests.support.callers import held_back, unsettled
from tests.support.gates import Gate
from tests.support.models import BATCHES
from tests.support.waiting import wait_until

WAIT = 15.0

#: kombu's priorities at Redis, the most urgent first.
PRIORITIES = (0, 3, 6, 9)


def test_delay_and_apply_async_give_the_callers_own_result(app: Celery) -> None:
    echo = app.tasks["echo"]
    results = [echo.delay(index) for index in range(20)] + [echo.apply_async((index,)) for index in range(20, 40)]
    assert [result.get(timeout=WAIT) for result in results] == list(range(40))
    assert {result.state for result in results} == {"SUCCESS"}


def test_keywords_and_defaults_are_those_of_the_signature(app: Celery) -> None:
    texts, add = app.tasks["texts"], app.tasks["add"]
    results = [
        texts.delay(" a "),
        texts.delay("a", "?"),
        texts.delay(text="a", suffix="..."),
        texts.apply_async(("a",), {"suffix": ""}),
        add.delay(1, ys=2),
        add.delay(ys=[1], xs=[2]),
    ]
    assert [result.get(timeout=WAIT) for result in results] == ["A!", "A?", "A...", "A", 3, [2, 1]]


@pytest.mark.parametrize("call", [(), (1, 2, 3), (1,)], ids=["none", "too many", "too few"])
def test_arguments_that_do_not_fit_are_refused_at_the_caller(app: Celery, call: tuple[int, ...]) -> None:
    with pytest.raises(TypeError):
        app.tasks["add"].delay(*call)


def test_publishing_alone_wakes_the_caller(app: Celery, gate: Gate) -> None:
    """The result is not asked for, it has to come by itself."""
    result = app.tasks["gated"].delay(gate.path, "done")
    gate.wait_for_model()
    app.backend.add_pending_result(result)
    assert not result.ready()
    gate.open()
    wait_until(lambda: app.backend.result_consumer.drain_events(timeout=0.1) or result._cache, "the result comes", WAIT)
    assert result._cache["result"] == "done"


def test_a_service_that_has_only_celery_calls_by_name(app: Celery, server: str) -> None:
    with Celery(broker=server, backend=server, set_as_current=False) as service:
        results = [service.send_task("texts", ["a"], {"suffix": suffix}) for suffix in "?!"]
        assert [result.get(timeout=WAIT) for result in results] == ["A?", "A!"]
        with pytest.raises(Exception, match="bad"):
            service.send_task("add", ["bad", 1]).get(timeout=WAIT)
        service.backend.result_consumer.stop()
        service.backend.client.close()


def test_many_calls_are_answered_in_their_order(app: Celery) -> None:
    many = app.tasks["echo"].delay_many(range(500))
    assert many.get(timeout=WAIT) == list(range(500))
    assert [result.get(timeout=WAIT) for result in many] == list(range(500))
    pairs = app.tasks["add"].delay_many([(index, 1) for index in range(50)])
    assert [result.result for result in pairs.iterate(timeout=WAIT)] == list(range(1, 51))


def test_a_failure_among_many_is_raised_or_stands_in_its_place(app: Celery) -> None:
    many = app.tasks["add"].delay_many([(1, 1), ("bad", 1), (2, 2)])
    first, error, last = many.get(timeout=WAIT, propagate=False)
    assert (first, str(error), last) == (2, "bad", 4)
    with pytest.raises(Exception, match="bad"):
        many.get(timeout=WAIT)


def test_every_value_of_json_comes_back_as_it_was_sent(app: Celery) -> None:
    values = [None, True, 0, -1.5, "", "日本 \x00 \u2028", [], {}, {"a": [None, {"b": 2**70}]}, [[1], "x" * 100_000]]
    assert app.tasks["echo"].delay_many(values).get(timeout=WAIT) == values
    assert [app.tasks["echo"].delay(value).get(timeout=WAIT) for value in values] == values


def test_the_most_urgent_jobs_in_the_queue_run_first(app: Celery, client: redis.Redis) -> None:
    with held_back(app, client):
        results = [
            app.tasks["echo"].apply_async(([priority, index],), priority=priority)
            for priority in reversed(PRIORITIES)
            for index in range(16)
        ]
    assert [result.get(timeout=WAIT)[0] for result in results] == [p for p in reversed(PRIORITIES) for _ in range(16)]
    ran = [tuple(value) for batch in client.lrange(BATCHES, 0, -1) for value in json.loads(batch)]
    assert ran == [(priority, index) for priority in PRIORITIES for index in range(16)]


def test_the_most_urgent_jobs_in_the_worker_run_first(app: Celery, client: redis.Redis, gate: Gate) -> None:
    gated = app.tasks["gated"]
    results = [gated.delay(gate.path, "first")]
    gate.wait_for_model()
    for priority in reversed(PRIORITIES):
        results += [gated.apply_async((gate.path, [priority, index]), priority=priority) for index in range(4)]
        expected = len(results)
        wait_until(lambda expected=expected: sum(unsettled(client).values()) == expected, "all are claimed", WAIT)  # type: ignore[misc]
    assert [stats["batchery"]["held"] for stats in app.control.inspect(limit=1).stats().values()] == [17]
    gate.open()
    for result in results:
        result.get(timeout=WAIT)
    batches = [json.loads(batch) for batch in client.lrange(BATCHES, 0, -1)]
    assert batches == [["first"], *([[priority, index] for index in range(4)] for priority in PRIORITIES)]
