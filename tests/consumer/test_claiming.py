"""What a worker claims: what it cannot run now keeps nobody's work waiting, and no line between threads grows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.callers import unsettled
from tests.support.envelopes import message
from tests.support.gates import Gate
from tests.support.models import BATCHES
from tests.support.waiting import wait_until
from tests.support.workers import Worker

WAIT = 30.0

#: Queues beside the default one.
MANY = [f"many{number}" for number in range(30)]

OPTIONS = {"held_max_bytes": 2_000_000, "lease_s": 5}


@pytest.fixture(scope="module")
def worker_args() -> Sequence[str]:
    return ["-Q", ",".join(["celery", *MANY]), "-c", "1", "--prefetch-multiplier", "2"]


@pytest.fixture(scope="module")
def worker_env() -> Mapping[str, str]:
    tuning = {"PROBE_S": 0.2, "PARK_AGAIN_S": 0.2}
    return {"OPTIONS": json.dumps(OPTIONS), "TUNING": json.dumps(tuning), "LAUNCH_S": "0.01"}


def ran(client: redis.Redis) -> list[Any]:
    return [item for batch in client.lrange(BATCHES, 0, -1) for item in json.loads(batch)]


def peak_mb(worker: Worker) -> int:
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def test_plain_tasks_are_held_as_celery_prefetches_and_batch_tasks_behind_them_run(
    app: Celery, client: redis.Redis, gate: Gate
) -> None:
    flood = [app.tasks["plain_gated"].delay(gate.path, number) for number in range(12)]
    gate.wait_for_model()
    late = app.tasks["echo"].delay("late")
    assert late.get(timeout=WAIT) == "late"
    wait_until(lambda: client.llen("celery") == 9, "one runs and two are prefetched", 10)
    assert sum(unsettled(client).values()) <= 2
    gate.open()
    assert [result.get(timeout=WAIT) for result in flood] == list(range(12))


def test_messages_with_an_eta_that_fill_their_part_of_the_memory_stop_nothing_else(
    app: Celery, client: redis.Redis, worker: Worker
) -> None:
    large = "x" * 100_000
    waiting = [app.tasks["silent"].apply_async(["", f"{large}{number}"], countdown=8) for number in range(20)]
    plain = app.tasks["plain"].apply_async([large], countdown=8)
    wait_until(lambda: client.llen("celery") == 0, "all are under a lease")
    assert app.tasks["echo"].delay("at once").get(timeout=WAIT) == "at once"
    assert app.tasks["plain"].delay("at once").get(timeout=WAIT) == "at once"
    assert not any(result.ready() for result in waiting)
    assert [result.get(timeout=WAIT) for result in waiting] == [f"{large}{number}" for number in range(20)]
    assert plain.get(timeout=WAIT) == large


def test_compressed_messages_are_decompressed_within_a_bound_for_all_of_them_together(
    app: Celery, client: redis.Redis, worker: Worker
) -> None:
    before = peak_mb(worker)
    body = zlib.compress(b'[[], {"unknown": "' + b"x" * 20_000_000 + b'"}, {}]')
    ids = [f"compressed-{number}" for number in range(60)]
    for number, task_id in enumerate(ids):
        # Every other call goes over the Celery bridge, because it has an unknown header.
        header: dict[str, Any] = {"odd": 1} if number % 2 else {}
        raw = message(body, id=task_id, correlation_id=task_id, compression="application/x-gzip", **header)
        client.lpush("celery", raw)
    for task_id in ids:
        with pytest.raises(TypeError):
            app.AsyncResult(task_id).get(timeout=WAIT)
    # Together they have 1.2 GB of bytes, and as many again once they are decoded.
    assert peak_mb(worker) - before < 800


def test_a_flood_of_a_higher_priority_does_not_starve_a_lower_one(app: Celery, client: redis.Redis) -> None:
    app.control.broadcast("batching_set", {"task": "echo", "option": "max_age_ms", "value": 200}, reply=True)
    flood = app.tasks["echo"].delay_many(range(2000))
    late = app.tasks["echo"].apply_async(["late"], priority=9)
    assert late.get(timeout=WAIT) == "late"
    assert client.llen("celery") > 0, "it was answered while others of a higher priority still waited"
    assert flood.get(timeout=WAIT) == list(range(2000))


def test_an_idle_worker_asks_about_all_of_its_queues_together(client: redis.Redis) -> None:
    def calls() -> dict[str, int]:
        return {name: figures["calls"] for name, figures in client.info("commandstats").items()}

    client.config_resetstat()
    # It waits for a second each time.
    wait_until(lambda: calls().get("cmdstat_exists", 0) >= 4, "the worker has waited for a few times")
    assert sum(calls().get(f"cmdstat_{name}", 0) for name in ("exists", "llen", "set", "blpop", "hlen")) < 40
