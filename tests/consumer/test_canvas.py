"""Groups, chains, chords and links of batch tasks, as Celery has them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group

from tests.support.models import BATCHES, SEEN
from tests.support.waiting import wait_until

WAIT = 20.0

FULL = 16  # `picky` waits until that many calls make a full batch


def engine_stats(app: Celery) -> dict[str, Any]:
    (stats,) = app.control.inspect(limit=1).stats().values()
    return dict(stats["batchery"])


def seen(client: redis.Redis) -> list[Any]:
    return [json.loads(entry) for entry in client.lrange(SEEN, 0, -1)]


def test_a_groups_results_are_in_order(app: Celery) -> None:
    result = group(app.tasks["echo"].s(index) for index in range(50)).apply_async()
    assert result.get(timeout=WAIT) == list(range(50))


def test_a_group_runs_in_batches(app: Celery, client: redis.Redis) -> None:
    values = list(range(2 * FULL))
    assert group(app.tasks["picky"].s(value) for value in values).apply_async().get(timeout=WAIT) == values
    assert [json.loads(batch) for batch in client.lrange(BATCHES, 0, -1)] == [values[:FULL], values[FULL:]]


def test_a_chain_hands_results_on(app: Celery) -> None:
    add, echo, plain = app.tasks["add"], app.tasks["echo"], app.tasks["plain"]
    assert chain(add.s(1, 2), add.s(10), plain.s(), echo.s(), add.s(100))().get(timeout=WAIT) == 113


def test_a_chains_results_know_their_parents(app: Celery) -> None:
    result = chain(app.tasks["add"].s(1, 2), app.tasks["add"].s(10))()
    assert result.get(timeout=WAIT) == 13
    assert result.parent.get(timeout=WAIT) == 3
    assert [child.id for child in result.parent.children] == [result.id]


def test_a_chain_ends_at_the_link_that_fails(app: Celery) -> None:
    add = app.tasks["add"]
    result = chain(add.s("bad", 2), add.s(10))()
    with pytest.raises(Exception, match="bad"):
        result.get(timeout=WAIT)
    assert result.parent.state == "FAILURE"


def test_many_chains_at_once_keep_apart(app: Celery) -> None:
    add = app.tasks["add"]
    results = [chain(add.s(index, 1), add.s(1000), add.s(index))() for index in range(30)]
    assert [result.get(timeout=WAIT) for result in results] == [1001 + 2 * index for index in range(30)]


def test_a_link_gets_the_result_and_a_failure_calls_none(app: Celery, client: redis.Redis) -> None:
    add, link = app.tasks["add"], app.tasks["note_value"].s()
    results = [add.apply_async((value, 1), link=link) for value in (1, "bad", 3)]
    assert [result.get(timeout=WAIT, propagate=False) for result in results[::2]] == [2, 4]
    assert results[1].get(timeout=WAIT, propagate=False).args == ("bad",)
    wait_until(lambda: len(seen(client)) == 2, "both links ran", WAIT)
    assert sorted(seen(client)) == [["link", 2], ["link", 4]]


def test_an_error_link_gets_the_error_of_its_job_alone(app: Celery, client: redis.Redis) -> None:
    add, errback = app.tasks["add"], app.tasks["note_error"].s()
    results = [add.apply_async((value, 1), link_error=errback) for value in (1, "bad", 3)]
    assert [result.get(timeout=WAIT) for result in results[::2]] == [2, 4]
    with pytest.raises(Exception, match="bad"):
        results[1].get(timeout=WAIT)
    wait_until(lambda: seen(client), "the error link ran", WAIT)
    assert seen(client) == [["errback", results[1].id, "bad"]]


def test_a_chord_of_many_runs_in_batches(app: Celery) -> None:
    count = 13 * FULL
    before = engine_stats(app)
    header = [app.tasks["picky"].s(index) for index in range(count)]
    assert chord(header)(app.tasks["total"].s()).get(timeout=WAIT) == sum(range(count))
    after = engine_stats(app)
    assert after["jobs"] - before["jobs"] == count + 1
    assert after["batches"] - before["batches"] == 13 + 1


def test_a_chord_whose_header_fails_fails(app: Celery) -> None:
    add = app.tasks["add"]
    result = chord([add.s(1, 1), add.s("bad", 1), add.s(2, 2)])(app.tasks["total"].s())
    with pytest.raises(Exception, match="bad"):
        result.get(timeout=WAIT)


def test_a_chord_of_groups_that_end_in_chains(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    header = group(chain(add.s(index, 1), add.s(10)) for index in range(20))
    assert chord(header)(total.s()).get(timeout=WAIT) == sum(index + 11 for index in range(20))


def test_a_chain_through_a_group_and_on(app: Celery) -> None:
    add, total, echo = app.tasks["add"], app.tasks["total"], app.tasks["echo"]
    canvas = chain(add.s(1, 1), group(add.s(index) for index in range(10)), total.s(), echo.s())
    assert canvas().get(timeout=WAIT) == sum(2 + index for index in range(10))


def test_a_chain_that_ends_in_a_group(app: Celery) -> None:
    add = app.tasks["add"]
    result = chain(add.s(1, 1), group(add.s(index) for index in range(10)))()
    assert result.get(timeout=WAIT) == [2 + index for index in range(10)]


def test_a_map_of_calls_runs_in_the_pool(app: Celery) -> None:
    """`starmap` calls the task inside a plain one: as a batch of one."""
    result = app.tasks["add"].starmap([(1, 2), (3, 4)]).delay()
    assert result.get(timeout=WAIT) == [3, 7]


def test_stamps_come_along(app: Celery) -> None:
    result = group(app.tasks["echo"].s(index) for index in range(3))
    result.stamp(tenant="a")
    assert result.apply_async().get(timeout=WAIT) == [0, 1, 2]
