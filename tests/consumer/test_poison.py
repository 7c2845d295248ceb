"""A job that ends its worker is found and fails, and the callers whose jobs were claimed with it get their answers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis
from batchery.worker.broker import DeadLetters, Leases, Queue
from billiard.exceptions import WorkerLostError
from celery import Celery

from tests.support.apps import APP
from tests.support.callers import options, unsettled
from tests.support.gates import Gate
from tests.support.leases import client_of
from tests.support.models import BATCHES, BREAKING, DEADLY, SEEN
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker, Worker

WAIT = 90.0
LEASE = options(lease_s=2)
#: Batches are noted however quick they are, so that the number of deaths is known.
ALWAYS_NOTED = {"TUNING": json.dumps({"QUICK_RUN_S": 0})}


class Supervisor(threading.Thread):
    """Starts a worker again whenever it dies, as a service manager does, until it is stopped."""

    def __init__(self, url: str, **env: str) -> None:
        super().__init__()
        self._env = {"REDIS_URL": url, **LEASE, **ALWAYS_NOTED, **env}
        self._stopped = threading.Event()
        self.deaths = 0
        self.log = ""

    def run(self) -> None:
        while not self._stopped.is_set():
            worker = Worker(APP, args=["-l", "INFO"], env=self._env)
            try:
                while worker.alive() and not self._stopped.wait(0.05):
                    pass
                self.deaths += not worker.alive()
            finally:
                self.log += worker.log
                worker.close()

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@contextmanager
def supervised(url: str, count: int, **env: str) -> Iterator[list[Supervisor]]:
    supervisors = [Supervisor(url, **env) for _ in range(count)]
    with ExitStack() as stack:
        for supervisor in supervisors:
            supervisor.start()
            stack.callback(supervisor.stop)
        yield supervisors


def runs(client: redis.Redis) -> Counter[str]:
    """How often each item was in a batch that ran."""
    return Counter(item for batch in client.lrange(BATCHES, 0, -1) for item in json.loads(batch))


def error_lines(supervisors: list[Supervisor], words: str) -> list[str]:
    lines = [line for supervisor in supervisors for line in supervisor.log.splitlines()]
    return [line for line in lines if "ERROR" in line and words in line]


@pytest.mark.worker
@pytest.mark.parametrize(
    ("workers", "deadly", "env"),
    [
        (1, DEADLY, {"CONF": json.dumps({"task_reject_on_worker_lost": True})}),
        (2, DEADLY, {}),
        (1, BREAKING, {"BROKEN_DEVICE": "1"}),
    ],
)
def test_a_job_that_ends_its_worker_fails_and_all_others_are_answered(
    redis_url: str, caller: Celery, redis_client: redis.Redis, workers: int, deadly: str, env: dict[str, str]
) -> None:
    """Once and for all: neither `autoretry_for` nor `task_reject_on_worker_lost` sends it again."""
    items = [str(index) for index in range(61)]
    items[30] = deadly
    results = dict(zip(items, caller.tasks["deadly"].delay_many(items), strict=True))
    poison = results.pop(deadly)
    with supervised(redis_url, workers, **env) as supervisors:
        assert [result.get(timeout=WAIT) for result in results.values()] == list(results)
        with pytest.raises(WorkerLostError, match="A worker died each of the 3 times that one ran this job"):
            poison.get(timeout=WAIT)
        wait_until(lambda: not unsettled(redis_client), "everything is settled")
    counts = runs(redis_client)
    assert counts.pop(deadly) == 3
    assert sum(supervisor.deaths for supervisor in supervisors) == 3
    assert set(counts) == set(results)
    assert max(counts.values()) <= 2, "an innocent job runs once more, alone"
    assert redis_client.llen("celery") == 0
    (line,) = error_lines(supervisors, poison.id)
    assert "Task deadly[" in line
    assert "3 times" in line


@pytest.mark.worker
def test_a_job_that_ends_its_worker_in_any_step_is_found_and_can_be_requeued(
    redis_url: str, caller: Celery, redis_client: redis.Redis
) -> None:
    items = [str(index) for index in range(40)]
    deadly = {10: f"{DEADLY} preprocess", 30: f"{DEADLY} postprocess"}
    results = list(caller.tasks["fatal"].delay_many([deadly.get(place, item) for place, item in enumerate(items)]))
    poisons = [results[place] for place in deadly]
    with supervised(redis_url, 1) as [supervisor]:
        innocents = {item: results[place] for place, item in enumerate(items) if place not in deadly}
        assert [result.get(timeout=WAIT) for result in innocents.values()] == list(innocents)
        for poison in poisons:
            with pytest.raises(WorkerLostError):
                poison.get(timeout=WAIT)
        wait_until(lambda: not unsettled(redis_client), "everything is settled")
        # The death in preprocess comes before anything is noted, because ordinary jobs are not noted there.
        assert supervisor.deaths <= 4 + 3
    letters = DeadLetters(redis_client, Queue)
    kept = {letter.id: letter for letter in letters.letters("celery")}
    assert {*kept} == {poison.id for poison in poisons}
    for letter in kept.values():
        assert (letter.task, letter.deaths) == ("fatal", 3)
        assert letter.reason.startswith("A worker died each of the 3 times that one ran this job")
        assert letters.requeue(letter)
    assert lost(redis_client) == [None, None]
    redis_client.delete("celery")


@pytest.mark.worker
def test_a_job_over_the_celery_bridge_is_counted_too(redis_url: str, caller: Celery, redis_client: redis.Redis) -> None:
    deadly = caller.tasks["deadly"]
    poison = deadly.apply_async((DEADLY,), link_error=caller.tasks["note_error"].s(), headers={"odd": 1})
    innocent = deadly.apply_async(("innocent",), headers={"odd": 1})
    with supervised(redis_url, 1) as [supervisor]:
        assert innocent.get(timeout=WAIT) == "innocent"
        with pytest.raises(WorkerLostError):
            poison.get(timeout=WAIT)
        wait_until(lambda: not unsettled(redis_client), "everything is settled")
        wait_until(lambda: redis_client.lrange(SEEN, 0, -1), "the errback was called")
        assert supervisor.deaths == 3
    assert runs(redis_client)[DEADLY] == 3
    [(name, task_id, _)] = [json.loads(call) for call in redis_client.lrange(SEEN, 0, -1)]
    assert (name, task_id) == ("errback", poison.id)


def lost(client: redis.Redis) -> list[object]:
    """How often every message in the queue was lost, the first in line first: at all, as it ran, as it ran alone."""
    infos = [json.loads(raw)["properties"]["delivery_info"] for raw in reversed(client.lrange("celery", 0, -1))]
    return [info.get("batchery_lost") for info in infos]


def test_a_batch_that_hangs_counts_as_a_death(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    conf = {"task_annotations": {"gated": {"batch_time_limit_s": 0.5}}}
    hung = start(env={**LEASE, "CONF": json.dumps(conf)})
    ids = [result.id for result in caller.tasks["gated"].delay_many([(gate.path, index) for index in range(8)])]
    gate.wait_for_model()
    wait_until(lambda: redis_client.llen("celery") == 8, "all are back in the queue")
    assert lost(redis_client) == [*[[1, 1, 0]] * 4, *[None] * 4]
    hung.kill()
    gate.open()
    start()
    keys = [f"celery-task-meta-{id_}" for id_ in ids]
    wait_until(lambda: redis_client.exists(*keys) == 8, "all are answered")
    wait_until(lambda: not unsettled(redis_client), "everything is settled")
    assert [json.loads(batch) for batch in redis_client.lrange(BATCHES, 1, -1)] == [[4, 5, 6, 7], [0], [1], [2], [3]]


def test_only_what_ran_when_a_worker_died_is_blamed(
    redis_url: str, start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    doomed = start(env=LEASE)
    caller.tasks["gated"].delay_many([(gate.path, index) for index in range(8)])
    gate.wait_for_model()
    wait_until(lambda: sum(unsettled(redis_client).values()) == 8, "it has claimed ahead")
    doomed.kill()
    sweep(redis_url, 8)
    assert lost(redis_client) == [*[[1, 1, 0]] * 4, *[[1, 0, 0]] * 4]
    redis_client.delete("celery")


def test_a_worker_that_died_without_a_running_batch_blames_nobody(
    redis_url: str, start: StartWorker, caller: Celery, redis_client: redis.Redis
) -> None:
    doomed = start(env=LEASE)
    assert caller.tasks["echo"].delay("before").get(timeout=WAIT) == "before"
    caller.tasks["picky"].delay_many(["waits", "for", "more"])
    wait_until(lambda: sum(unsettled(redis_client).values()) == 3, "it has claimed them")
    doomed.kill()
    sweep(redis_url, 3)
    assert lost(redis_client) == [[1, 0, 0]] * 3
    redis_client.delete("celery")


def sweep(url: str, count: int) -> None:
    """Give `count` orphans back once their leases have run out."""
    leases, queue = Leases(client_of(url), lease_s=30), Queue("celery")
    leases.claim([queue], 0, 0)
    found = 0
    while found < count:
        found += wait_until(leases.sweep, "leases have run out")


@pytest.mark.worker
def test_a_worker_that_is_stopped_before_its_batch_ends_blames_nobody(
    start: StartWorker, caller: Celery, redis_client: redis.Redis, gate: Gate
) -> None:
    """A rolling deploy with a short drain is no fault of the jobs: they run elsewhere at once, and are not counted."""
    stopped = start(env=options(drain_timeout_s=0.2))
    results = list(caller.tasks["gated"].delay_many([(gate.path, index) for index in range(3)]))
    gate.wait_for_model()
    stopped.terminate()
    stopped.wait()
    wait_until(lambda: redis_client.llen("celery") == 3, "all are back in the queue")
    assert not any(b'"redelivered"' in message for message in redis_client.lrange("celery", 0, -1))
    gate.open()
    start(env=LEASE)
    assert [result.get(timeout=WAIT) for result in results] == [0, 1, 2]


@pytest.mark.worker
def test_a_model_that_is_quick_costs_its_worker_one_more_death(
    redis_url: str, caller: Celery, redis_client: redis.Redis
) -> None:
    """Quick batches are noted only once a worker has died, because a note would cost each of them its latency."""
    with supervised(redis_url, 1, TUNING=json.dumps({"QUICK_RUN_S": 60})) as [supervisor]:
        assert caller.tasks["deadly"].delay("first").get(timeout=WAIT) == "first"
        results = list(caller.tasks["deadly"].delay_many([DEADLY, *map(str, range(20))]))
        assert [result.get(timeout=WAIT) for result in results[1:]] == [str(index) for index in range(20)]
        with pytest.raises(WorkerLostError):
            results[0].get(timeout=WAIT)
        wait_until(lambda: not unsettled(redis_client), "everything is settled")
        assert supervisor.deaths in (3, 4)
