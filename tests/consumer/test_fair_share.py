"""Workers share a queue by what can run, and nothing in a worker grows while one part of it stands still."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from tests.support.gates import Gate
from tests.support.leases import bytes_of
from tests.support.models import BATCHES
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker

WAIT = 30.0


def jobs_of(client: redis.Redis) -> list[int]:
    """How many messages each worker holds."""
    workers = [tag.partition(b":")[0] for tag in bytes_of(client.hkeys("batchery:unacked:celery"))]
    return sorted(map(workers.count, set(workers)))


def ran(client: redis.Redis) -> list[Any]:
    return [item for batch in client.lrange(BATCHES, 0, -1) for item in json.loads(batch)]


def test_what_waits_for_its_eta_is_no_work_in_the_share_of_two_workers(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate, tmp_path: Path
) -> None:
    one = start(args=["-c", "1"])
    later = [caller.tasks["echo"].apply_async([number], countdown=3600) for number in range(300)]
    wait_until(lambda: sum(jobs_of(redis_client)) == len(later), "the first worker has them all")
    other = start(args=["-c", "1"])
    wait_until(lambda: redis_client.zcard("batchery:workers:celery") == 2, "both claim")
    results = caller.tasks["gated"].delay_many([(gate.path, number) for number in range(40)])
    wait_until(lambda: sum(jobs_of(redis_client)) == 340, "all are claimed")
    fewer, more = jobs_of(redis_client)
    assert fewer >= 10
    assert more - 300 >= 10
    gate.open()
    assert results.get(timeout=WAIT) == list(range(40))

    # A worker that drains claims no more, so that nothing is left to it.
    held_up = Gate(tmp_path / "held-up")
    running = caller.tasks["gated"].delay(held_up.path, "running")
    held_up.wait_for_model()
    busy, idle = (one, other) if max(jobs_of(redis_client)) > 300 else (other, one)
    busy.terminate()
    quick = caller.tasks["echo"].delay_many(range(20))
    assert quick.get(timeout=10) == list(range(20))
    held_up.open()
    assert running.get(timeout=WAIT) == "running"
    assert busy.wait() == 0
    assert idle.alive()
    redis_client.flushdb()


def test_a_plain_task_in_a_solo_pool_does_not_let_the_line_to_the_event_loop_grow(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    start(args=["-P", "solo"], env={"OPTIONS": json.dumps({"held_max_bytes": 2_000_000})})
    blocks = caller.tasks["plain_gated"].delay(gate.path, "blocks")
    gate.wait_for_model()
    results = caller.tasks["echo"].delay_many(range(2000))
    wait_until(lambda: len(ran(redis_client)) > 20, "batches run while the event loop is blocked")
    wait_until(_stands_still(lambda: redis_client.llen("celery")), "no more is claimed")
    assert redis_client.llen("celery") > 1000
    gate.open()
    assert blocks.get(timeout=WAIT) == "blocks"
    assert results.get(timeout=WAIT) == list(range(2000))


def _stands_still(value: Callable[[], object]) -> Callable[[], bool]:
    """Whether a value was the same a hundred times in a row."""
    seen: list[object] = []

    def same() -> bool:
        seen.append(value())
        return len(seen) > 100 and len({*seen[-100:]}) == 1

    return same
