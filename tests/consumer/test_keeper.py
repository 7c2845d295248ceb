"""A model that holds the GIL: no thread of its worker runs meanwhile, and other workers must not take its jobs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.callers import options, unsettled
from tests.support.gates import Gate
from tests.support.models import BATCHES, SEEN
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker, Worker

LEASE_S = 1.0
WAIT = 60.0


def keeper_of(worker: Worker) -> int:
    """The process id of a worker's keeper, once it is ready: it ignores SIGTERM then."""

    def find() -> int:
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                is_child = int(lines["PPid"]) == worker.pid and int(lines["SigIgn"], 16) >> (signal.SIGTERM - 1) & 1
                if is_child and b"keeper.py" in status.with_name("cmdline").read_bytes():
                    return int(status.parent.name)
        return 0

    found: int = wait_until(find, "the worker has a keeper")
    return found


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def limited(folder: Path, limit_s: float) -> dict[str, str]:
    """The environment of a worker whose tasks all have this limit."""
    config = folder / "limited.toml"
    config.write_text(f"[worker]\nlease_s = {LEASE_S}\n[defaults]\nbatch_time_limit_s = {limit_s}\n")
    return {"BATCHERY_CONFIG": str(config)}


def runs(client: redis.Redis) -> Counter[Any]:
    return Counter(item for batch in client.lrange(BATCHES, 0, -1) for item in json.loads(batch))


def test_jobs_whose_model_holds_the_gil_for_three_leases_run_once_each(
    start: StartWorker, caller: Celery, redis_client: redis.Redis
) -> None:
    """With either pool, beside a worker that would take them."""
    workers = [start(env=options(lease_s=LEASE_S), args=["-P", pool]) for pool in ("solo", "threads")]
    keepers = [keeper_of(worker) for worker in workers]
    wait_until(lambda: redis_client.zcard("batchery:workers:celery") == 2, "both are in")
    results = caller.tasks["gil"].delay_many([(3 * LEASE_S + 0.5, index) for index in range(24)])
    assert results.get(timeout=WAIT) == [*range(24)]
    assert runs(redis_client) == dict.fromkeys(range(24), 1)
    wait_until(lambda: not unsettled(redis_client), "everything is settled")
    workers[0].terminate()
    assert workers[0].wait() == 0
    wait_until(lambda: is_gone(keepers[0]), "its keeper has ended with it")
    assert redis_client.zcard("batchery:workers:celery") == 1
    os.kill(workers[1].pid, signal.SIGKILL)
    wait_until(lambda: is_gone(keepers[1]), "so has the keeper of a worker that was killed")


def test_a_worker_whose_model_holds_the_gil_beyond_its_time_limit_is_killed_and_the_other_goes_on(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, tmp_path: Path
) -> None:
    env = limited(tmp_path, 2)
    doomed = start(env=env)
    keeper_of(doomed)
    holding = caller.tasks["gil"].delay(600, "hangs once")
    wait_until(lambda: redis_client.exists("test:once:hangs once"), "the model holds the GIL")
    begun = time.monotonic()
    other = start(env=env)
    assert caller.tasks["echo"].delay("beside it").get(timeout=WAIT) == "beside it"
    assert doomed.wait() == -signal.SIGKILL
    assert time.monotonic() - begun < WAIT, "ten seconds, and what starting a worker takes"
    wait_until(lambda: "something holds the GIL" in doomed.log, "the keeper says why")
    assert holding.get(timeout=WAIT) == "hangs once"
    assert other.alive()
    wait_until(lambda: not unsettled(redis_client), "everything is settled")


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_jobs_of_a_worker_that_was_killed_run_again_soon_after_its_lease(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate, pool: str
) -> None:
    """Its keeper does not keep its lease alive."""
    doomed = start(env=options(lease_s=LEASE_S), args=["-P", pool])
    results = list(caller.tasks["gated"].delay_many([(gate.path, index) for index in range(8)]))
    gate.wait_for_model()
    start(env=options(lease_s=LEASE_S))
    begun = time.monotonic()
    os.kill(doomed.pid, signal.SIGKILL)  # the process alone: its keeper has to notice
    gate.open()
    assert [result.get(timeout=WAIT) for result in results] == [*range(8)]
    assert time.monotonic() - begun < LEASE_S + 10
    wait_until(lambda: not unsettled(redis_client), "everything is settled")


def test_plain_tasks_and_etas_of_a_worker_that_hangs_run_once(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate, tmp_path: Path
) -> None:
    """It keeps its lease for the plain task that runs in Celery's pool, and gives back what waits for its ETA."""
    env, plain_gate, noted = limited(tmp_path, 0.5), Gate(tmp_path / "plain-gate"), caller.tasks["plain_noted"]
    doomed = start(env=env)
    running = noted.delay(plain_gate.path, "running")
    plain_gate.wait_for_model()
    later = [noted.apply_async(("open", "later"), countdown=4), caller.tasks["echo"].apply_async((5,), countdown=4)]
    hanging = caller.tasks["gated"].delay(gate.path, 1)
    gate.wait_for_model()
    start(env=env)
    wait_until(lambda: "User code has hung for too long" in doomed.log, "it ends, because its batch hangs")
    gate.open()
    until = time.monotonic() + 3 * LEASE_S
    wait_until(lambda: time.monotonic() > until, "its lease would have run out, if it were not refreshed")
    assert hanging.get(timeout=WAIT) == 1
    plain_gate.open()
    assert running.get(timeout=WAIT) == "running"
    assert [result.get(timeout=WAIT) for result in later] == ["later", 5]
    assert doomed.wait() == os.EX_SOFTWARE
    seen = [json.loads(value) for value in redis_client.lrange(SEEN, 0, -1)]
    assert sorted(seen) == ["later", "running"]
    wait_until(lambda: not unsettled(redis_client), "everything is settled")
