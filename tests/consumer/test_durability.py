"""Workers, connections and servers die; callers get their answers all the same, each once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
import redis
from celery import Celery, chord

from tests.support.apps import APP
from tests.support.callers import calling, options, unsettled
from tests.support.gates import Gate
from tests.support.models import BATCHES
from tests.support.servers import Valkey
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker, celery_worker

WAIT = 30.0


def ran(client: redis.Redis) -> list[Any]:
    """Every item that any batch ran, in order."""
    return [item for batch in client.lrange(BATCHES, 0, -1) for item in json.loads(batch)]


def kill_connections(client: redis.Redis) -> None:
    """Cut every connection to the server; those of this process are then forgotten."""
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub", skipme=True)
    kombu.pools.reset()


def test_what_a_killed_worker_held_is_answered_by_another(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    doomed = start(env=options(lease_s=2))
    results = list(caller.tasks["gated"].delay_many([(gate.path, index) for index in range(40)]))
    gate.wait_for_model()
    wait_until(lambda: sum(unsettled(redis_client).values()) > 4, "it has claimed ahead")
    doomed.kill()
    gate.open()
    start(env=options(lease_s=2))
    assert [result.get(timeout=WAIT) for result in results] == list(range(40))
    assert sorted(set(ran(redis_client))) == list(range(40))
    assert len(ran(redis_client)) == 44, "only the batch that ran was run again"
    wait_until(lambda: not unsettled(redis_client), "everything is settled")
    assert redis_client.llen("celery") == 0


def test_a_chord_survives_its_worker(start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate) -> None:
    doomed = start(env=options(lease_s=2))
    gated, echo = caller.tasks["gated"], caller.tasks["echo"]
    header = [echo.s("before"), *(gated.s(gate.path, index) for index in range(6)), echo.s("behind")]
    result = chord(header)(echo.s())
    gate.wait_for_model()
    doomed.kill()
    gate.open()
    start(env=options(lease_s=2))
    assert caller.AsyncResult(result.id).get(timeout=WAIT) == ["before", *range(6), "behind"]
    wait_until(lambda: not unsettled(redis_client), "everything is settled")
    assert not list(redis_client.scan_iter("celery-taskset-meta-*.j"))


def test_sigterm_finishes_what_runs_and_gives_back_the_rest_in_order(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    worker = start()
    results = list(caller.tasks["gated"].delay_many([(gate.path, index) for index in range(12)]))
    gate.wait_for_model()
    wait_until(lambda: sum(unsettled(redis_client).values()) == 12, "it has claimed all")
    worker.terminate()
    wait_until(lambda: redis_client.llen("celery") == 8, "what does not run is given back")
    gate.open()
    assert worker.wait() == 0
    first = len(ran(redis_client))
    assert [result.get(timeout=WAIT) for result in results[:first]] == list(range(first))
    assert not any(result.ready() for result in results[first:])
    assert not unsettled(redis_client)
    start()
    assert [result.get(timeout=WAIT) for result in results] == list(range(12))
    assert ran(redis_client) == list(range(12))


def test_cut_connections_in_the_middle_of_a_batch_lose_nothing(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    start()
    results = list(caller.tasks["gated"].delay_many([(gate.path, index) for index in range(12)]))
    gate.wait_for_model()
    ids = [result.id for result in results]
    kill_connections(redis_client)
    gate.open()
    wait_until(lambda: all(redis_client.exists(f"celery-task-meta-{id_}") for id_ in ids), "all are answered", WAIT)
    wait_until(lambda: not unsettled(redis_client), "everything is settled")
    assert ran(redis_client) == list(range(12))


@pytest.mark.parametrize("task", ["echo", "plain"])
def test_a_task_that_waits_for_its_time_survives_a_cut_connection(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, task: str
) -> None:
    worker = start()
    result = caller.tasks[task].apply_async(("late",), countdown=3)
    key = f"celery-task-meta-{result.id}"
    wait_until(lambda: unsettled(redis_client), "it waits in the worker")
    kill_connections(redis_client)
    assert not redis_client.exists(key)
    wait_until(lambda: redis_client.exists(key), f"it is answered:\n{worker.log[-2000:]}", 15)
    wait_until(lambda: not unsettled(redis_client), "it is settled")


def test_plain_tasks_that_wait_for_a_thread_survive_a_cut_connection(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    start(args=["-c", "1"])
    ids = [caller.tasks["plain_gated"].delay(gate.path, index).id for index in range(3)]
    gate.wait_for_model()
    wait_until(lambda: sum(unsettled(redis_client).values()) == 2, "two wait: the one that runs is acknowledged")
    kill_connections(redis_client)
    gate.open()
    wait_until(lambda: all(redis_client.exists(f"celery-task-meta-{id_}") for id_ in ids), "all are answered", 15)
    wait_until(lambda: not unsettled(redis_client), "everything is settled", 15)


def test_sigterm_gives_back_plain_tasks_that_wait_for_a_thread(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    worker = start(args=["-c", "1"])
    ids = [caller.tasks["plain_gated"].delay(gate.path, index).id for index in range(3)]
    gate.wait_for_model()
    wait_until(lambda: sum(unsettled(redis_client).values()) == 2, "two wait: the one that runs is acknowledged")
    worker.terminate()
    gate.open()
    assert worker.wait() == 0
    answered = sum(redis_client.exists(f"celery-task-meta-{id_}") for id_ in ids)
    assert answered + redis_client.llen("celery") == 3
    assert not unsettled(redis_client)


def test_sigterm_gives_back_what_waits_for_its_time(
    start: StartWorker, caller: Celery, redis_client: redis.Redis
) -> None:
    worker = start()
    for task in ("echo", "plain"):
        caller.tasks[task].apply_async(("late",), countdown=3600, ignore_result=True)
    wait_until(lambda: sum(unsettled(redis_client).values()) == 2, "they wait in the worker")
    worker.terminate()
    assert worker.wait() == 0
    assert redis_client.llen("celery") == 2
    assert not unsettled(redis_client)


@pytest.mark.worker
def test_a_restarted_server_loses_nothing(gate: Gate) -> None:
    server = Valkey(appendonly="yes", appendfsync="always")
    try:
        server.start()
        with celery_worker(APP, server.url) as worker, redis.Redis.from_url(server.url) as client:
            with calling(server.url) as caller:
                ids = [result.id for result in caller.tasks["gated"].delay_many([(gate.path, n) for n in range(12)])]
            gate.wait_for_model()
            server.kill()
            gate.open()
            server.start()
            keys = [f"celery-task-meta-{id_}" for id_ in ids]
            wait_until(lambda: client.exists(*keys) == 12, f"all are answered:\n{worker.log[-2000:]}", WAIT)
            wait_until(lambda: not unsettled(client), "everything is settled")
            assert [json.loads(client.get(key) or b"")["result"] for key in keys] == list(range(12))
    finally:
        server.close()


def test_two_workers_share_a_queue(start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate) -> None:
    start()
    start()
    wait_until(lambda: redis_client.zcard("batchery:workers:celery") == 2, "both are in")
    results = list(caller.tasks["gated"].delay_many([(gate.path, index) for index in range(16)]))
    wait_until(lambda: len(redis_client.lrange(BATCHES, 0, -1)) == 2, "both run a batch")
    gate.open()
    assert [result.get(timeout=WAIT) for result in results] == list(range(16))
    assert sorted(ran(redis_client)) == list(range(16))


@pytest.mark.parametrize("task", ["gated", "gated_preprocess"])
def test_a_worker_whose_user_code_hangs_ends_by_itself_and_another_answers(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate, tmp_path: Path, task: str
) -> None:
    """A model or a hook that never returns costs its worker its life, because nothing else ends it."""
    config = tmp_path / "hangs.toml"
    config.write_text("[worker]\nlease_s = 1\n[defaults]\nbatch_time_limit_s = 0.5\n")
    doomed = start(env={"BATCHERY_CONFIG": str(config)})
    hanging = caller.tasks[task].delay(gate.path, 1)
    gate.wait_for_model()
    others = caller.tasks["echo"].delay_many(range(5))
    assert doomed.wait() == os.EX_SOFTWARE, "its supervisor is told that it cannot go on"
    gate.open()
    start(env={"BATCHERY_CONFIG": str(config)})
    assert hanging.get(timeout=WAIT) == 1
    assert others.get(timeout=WAIT) == [*range(5)]
    wait_until(lambda: not unsettled(redis_client), "everything is settled")
