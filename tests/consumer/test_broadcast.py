"""Calls that are sent to a broadcast queue run at every worker, batch tasks' and plain tasks' alike."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import redis
from celery import Celery

from tests.support.broadcasts import BROADCASTS, EVERYONE, QUEUES
from tests.support.callers import unsettled
from tests.support.models import BATCHES, SEEN
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker

OTHERS = {"OPTIONS": json.dumps({"tasks": ["quiet"]})}


def test_every_worker_runs_a_broadcast_call(caller: Celery, redis_client: redis.Redis, start: StartWorker) -> None:
    workers = [start(BROADCASTS), start(BROADCASTS, args=["-P", "solo"])]
    workers.append(start(BROADCASTS, args=["-Q", EVERYONE], env=OTHERS))  # it does not serve `echo`
    caller.conf.task_queues = QUEUES
    everyone: dict[str, Any] = {"queue": EVERYONE, "declare": [QUEUES[1].exchange]}  # the caller makes it a fanout
    for number in range(3):
        caller.tasks["echo"].apply_async((number,), ignore_result=True, **everyone)
        caller.tasks["quiet"].apply_async((number,), **everyone)
    caller.tasks["note_value"].apply_async(("plain",), ignore_result=True, **everyone)
    result = caller.tasks["echo"].apply_async(("answered",), **everyone)
    assert result.get(timeout=20) == "answered"

    def ran() -> Counter[object]:
        return Counter(value for batch in redis_client.lrange(BATCHES, 0, -1) for value in json.loads(batch))

    wait_until(lambda: ran() == {0: 2, 1: 2, 2: 2, "answered": 2}, "both workers have run all of them")

    def seen() -> Counter[str]:
        entries = [json.loads(entry) for entry in redis_client.lrange(SEEN, 0, -1)]
        values = [value for name, values in entries for value in (values if name == "quiet" else [values])]
        return Counter(map(str, values))

    wait_until(lambda: seen() == {"0": 3, "1": 3, "2": 3, "plain": 3}, "three workers have run the others")
    wait_until(lambda: not unsettled(redis_client), "every message is settled")
    assert redis_client.hlen("unacked") == 0
    assert redis_client.keys("batchery:broadcast:*") == []
    for worker in workers:
        assert worker.alive()
        assert "Traceback" not in worker.log
