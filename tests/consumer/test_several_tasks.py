"""Several tasks in one worker: one task's flood, of jobs or of bytes, keeps no other from being claimed and run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.callers import options, unsettled
from tests.support.gates import Gate
from tests.support.models import BATCHES
from tests.support.waiting import wait_until

WAIT = 30.0
MB = 1024 * 1024

#: `gated` and `silent` run batches of 4; they look 8 of them ahead, and run, put together and settle one each.
BATCH, MOST_HELD = 4, 8 * 4 + 3 * 4


@pytest.fixture(scope="module")
def worker_args() -> Sequence[str]:
    return ["-Q", "celery,other", "-c", "1"]


@pytest.fixture(scope="module")
def worker_env() -> Mapping[str, str]:
    return options(held_max_bytes=100 * MB)


def claimed(client: redis.Redis, queue: str) -> int:
    return unsettled(client).get(f"batchery:unacked:{queue}".encode(), 0)


def batches(client: redis.Redis) -> list[Any]:
    return [json.loads(batch) for batch in client.lrange(BATCHES, 0, -1)]


def test_a_flood_in_one_queue_holds_up_the_first_job_of_another_by_its_look_ahead_only(
    app: Celery, client: redis.Redis, gate: Gate
) -> None:
    flood = app.tasks["gated"].delay_many([(gate.path, index) for index in range(100)])
    gate.wait_for_model()
    wait_until(lambda: claimed(client, "celery") > MOST_HELD * 7 / 8, "it holds all that it may of the flood")
    late = app.send_task("echo", ["late"], queue="other")
    wait_until(lambda: claimed(client, "other") == 1, "the other task's job is claimed while the flood stands still")
    assert claimed(client, "celery") <= MOST_HELD
    gate.open()
    assert late.get(timeout=WAIT) == "late"
    assert flood.get(timeout=WAIT) == list(range(100))
    assert batches(client).index(["late"]) <= MOST_HELD / BATCH


def test_a_flood_holds_up_a_job_behind_it_by_no_more_than_itself(app: Celery, client: redis.Redis, gate: Gate) -> None:
    """First come, first served: and not what comes behind, however much there is room for."""
    before = app.tasks["gated"].delay_many([(gate.path, index) for index in range(100)])
    gate.wait_for_model()
    late = app.tasks["echo"].delay("late")
    behind = app.tasks["gated"].delay_many([(gate.path, index) for index in range(100, 200)])
    gate.open()
    assert late.get(timeout=WAIT) == "late"
    assert [*before.get(timeout=WAIT), *behind.get(timeout=WAIT)] == list(range(200))
    place = batches(client).index(["late"])
    assert sum(map(len, batches(client)[:place])) <= 100 + BATCH


def test_large_messages_of_one_task_leave_room_for_another(app: Celery, client: redis.Redis, gate: Gate) -> None:
    flood = app.tasks["silent"].delay_many([(gate.path, "x" * (2 * MB)) for _ in range(8)])
    gate.wait_for_model()
    late = app.send_task("echo", ["late"], queue="other")
    wait_until(lambda: claimed(client, "other") == 1, "the other task's job is claimed while the flood stands still")
    assert claimed(client, "celery") < 8
    gate.open()
    assert late.get(timeout=WAIT) == "late"
    assert [len(text) for text in flood.get(timeout=WAIT)] == [2 * MB] * 8


def test_a_flood_of_plain_tasks_does_not_keep_batch_tasks_waiting(app: Celery, client: redis.Redis, gate: Gate) -> None:
    flood = [app.tasks["plain_gated"].delay(gate.path, index) for index in range(200)]
    gate.wait_for_model()
    late = app.send_task("echo", ["late"], queue="other")
    assert late.get(timeout=WAIT) == "late"
    assert not any(result.ready() for result in flood)
    gate.open()
    assert [result.get(timeout=WAIT) for result in flood] == list(range(200))
