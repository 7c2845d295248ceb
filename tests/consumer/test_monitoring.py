"""What Flower, `celery inspect` and event cameras see of batch tasks is what they see of any."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from celery import Celery
from celery.events.state import State

from tests.support.apps import APP
from tests.support.callers import unsettled
from tests.support.gates import Gate
from tests.support.waiting import wait_until
from tests.support.workers import Worker, celery_worker

WAIT = 15.0


@pytest.fixture(scope="module")
def worker_args() -> Sequence[str]:
    return ("-E",)


def ask(app: Celery, question: str, *args: Any) -> Any:
    """The file's worker's answer to `celery inspect`."""
    (answer,) = getattr(app.control.inspect(limit=1), question)(*args).values()
    return answer


def ids(requests: Sequence[dict[str, Any]]) -> set[str]:
    return {request["id"] for request in requests}


# --- Inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_runs_and_what_waits(app: Celery, client: redis.Redis, worker: Worker, gate: Gate) -> None:
    gated = app.tasks["gated"]
    running = gated.delay(gate.path, "running")
    gate.wait_for_model()
    waiting = [gated.delay(gate.path, index) for index in range(3)] + [gated.delay(gate.path, values="by name")]
    wait_until(lambda: len(ask(app, "reserved")) == 4, "all are known", WAIT)

    assert app.control.inspect(limit=1).ping() == {worker.name: {"ok": "pong"}}
    (active,) = ask(app, "active")
    assert (active["id"], active["name"], active["hostname"]) == (running.id, "gated", worker.name)
    assert active["args"] == [gate.path, "running"]
    assert active["time_start"] is not None
    assert active["acknowledged"] is False
    assert active["delivery_info"]["routing_key"] == "celery"
    assert isinstance(active["worker_pid"], int | None)
    reserved = ask(app, "reserved")
    assert ids(reserved) == {result.id for result in waiting}
    assert {request["time_start"] for request in reserved} == {None}
    assert [request["kwargs"] for request in reserved if request["id"] == waiting[-1].id] == [{"values": "by name"}]

    known = ask(app, "query_task", running.id, waiting[0].id, "nobody")
    assert {task_id: state for task_id, (state, _) in known.items()} == {
        running.id: "active",
        waiting[0].id: "reserved",
    }
    gate.open()
    assert [result.get(timeout=WAIT) for result in (running, *waiting)] == ["running", 0, 1, 2, "by name"]
    wait_until(lambda: not ask(app, "active") and not ask(app, "reserved"), "none is known any more", WAIT)


def test_inspect_tells_what_waits_for_its_eta(app: Celery) -> None:
    later = app.tasks["echo"].apply_async(("later",), countdown=3)
    scheduled = wait_until(lambda: ask(app, "scheduled"), "it is known", WAIT)
    assert ids([entry["request"] for entry in scheduled]) == {later.id}
    assert later.get(timeout=WAIT) == "later"
    assert ask(app, "scheduled") == []


def test_inspect_counts_jobs_as_tasks_and_batches_beside_them(app: Celery) -> None:
    before = ask(app, "stats")
    assert app.tasks["picky"].delay_many(range(32)).get(timeout=WAIT) == list(range(32))
    wait_until(lambda: ask(app, "stats")["total"].get("picky", 0) == before["total"].get("picky", 0) + 32, "all count")
    after = ask(app, "stats")
    assert after["batchery"]["batches"] - before["batchery"]["batches"] == 2
    assert after["batchery"]["jobs"] - before["batchery"]["jobs"] == 32


def test_inspect_lists_tasks_and_queues(app: Celery) -> None:
    assert {"echo", "gated", "texts", "plain"} <= set(ask(app, "registered"))
    assert [queue["name"] for queue in ask(app, "active_queues")] == ["celery"]
    assert ask(app, "conf")["task_default_queue"] == "celery"


def test_other_inspect_commands_answer_too(app: Celery) -> None:
    assert "ok" in ask(app, "report")
    assert ask(app, "revoked") is not None
    assert "clock" in ask(app, "clock")


# --- Queues -----------------------------------------------------------------------------------------------------------


def test_a_queue_is_served_from_when_it_is_added_until_it_is_cancelled(app: Celery, client: redis.Redis) -> None:
    early = app.tasks["echo"].apply_async(("early",), queue="extra")
    assert app.tasks["echo"].delay(1).get(timeout=WAIT) == 1
    assert client.llen("extra") == 1
    app.control.add_consumer("extra", reply=True, limit=1)
    try:
        assert early.get(timeout=WAIT) == "early"
        assert {queue["name"] for queue in ask(app, "active_queues")} == {"celery", "extra"}
        assert app.tasks["echo"].apply_async(("late",), queue="extra").get(timeout=WAIT) == "late"
    finally:
        app.control.cancel_consumer("extra", reply=True, limit=1)
    assert [queue["name"] for queue in ask(app, "active_queues")] == ["celery"]
    wait_until(lambda: not unsettled(client), "the last is settled", WAIT)
    # A claim that was under way looks at the queues as they were; the next one does not.
    assert app.tasks["echo"].delay(2).get(timeout=WAIT) == 2
    app.tasks["echo"].apply_async(("too late",), queue="extra")
    assert [app.tasks["echo"].delay(value).get(timeout=WAIT) for value in range(3)] == [0, 1, 2]
    assert client.llen("extra") == 1


# --- Events -----------------------------------------------------------------------------------------------------------


class Camera:
    """A stock receiver, and what it got."""

    def __init__(self, app: Celery, connection: Any) -> None:
        self.state = State(max_tasks_in_memory=10_000)
        self.events: list[dict[str, Any]] = []
        self.receiver = app.events.Receiver(connection, handlers={"*": self._take})

    def watch(self, connection: Any, condition: Callable[[], bool], description: str) -> None:
        """Take events until `condition`."""

        def met() -> bool:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            return condition()

        wait_until(met, description, WAIT)

    def heartbeats(self, hostname: str) -> int:
        return sum(event["type"] == "worker-heartbeat" and event["hostname"] == hostname for event in self.events)

    def of_task(self, kind: str) -> Counter[str]:
        """How many events of this kind came for each task id."""
        return Counter(event["uuid"] for event in self.events if event["type"] == kind)

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.state.event(event)


Watch = Callable[[Callable[[], bool], str], None]


@contextmanager
def camera_on(app: Celery, worker: Worker) -> Iterator[tuple[Camera, Watch]]:
    """A camera that is known to get `worker`'s events."""
    with app.connection_for_read() as connection:
        camera = Camera(app, connection)
        with camera.receiver.consumer_context() as (conn, channel, _):

            def watch(condition: Callable[[], bool], description: str) -> None:
                camera.watch(conn, condition, description)

            camera.receiver.wakeup_workers(channel=channel)
            watch(lambda: camera.heartbeats(worker.name) > 0, "a heartbeat comes")
            yield camera, watch


def test_each_event_of_a_job_is_sent_once(app: Celery, worker: Worker) -> None:
    good, bad = range(160), 40
    with camera_on(app, worker) as (camera, watch):
        calls = [(index, 1) for index in good] + [("bad", index) for index in range(bad)]
        results = list(app.tasks["add"].delay_many(calls))
        watch(lambda: camera.of_task("task-succeeded").total() >= len(good), "all successes are told")
        watch(lambda: camera.of_task("task-failed").total() >= bad, "all failures are told")
        last = app.tasks["add"].delay(1, 1)
        watch(lambda: last.id in camera.of_task("task-succeeded"), "what was told twice would be told by now")

        every = {result.id for result in results}
        failed = {result.id for result in results[len(good) :]}
        # Only these calls': the worker may tell of an earlier test's last one only now.
        told = {
            kind: Counter(
                {task_id: count for task_id, count in camera.of_task(f"task-{kind}").items() if task_id in every}
            )
            for kind in ("received", "started", "succeeded", "failed")
        }
        assert told == {
            "received": Counter(every),
            "started": Counter(every),
            "succeeded": Counter(every - failed),
            "failed": Counter(failed),
        }
        states: dict[str, set[str]] = defaultdict(set)
        for task_id in every:
            states[camera.state.tasks[task_id].state].add(task_id)
        assert states == {"SUCCESS": every - failed, "FAILURE": failed}

        task = camera.state.tasks[results[7].id]
        assert (task.name, task.args, task.result, task.worker.hostname) == ("add", "(7, 1)", "8", worker.name)
        assert task.received <= task.started <= task.succeeded
        assert task.runtime >= 0
        assert "OddInput" in camera.state.tasks[results[-1].id].exception


def test_each_event_of_a_job_on_the_celery_bridge_is_sent_once(app: Celery, worker: Worker) -> None:
    with camera_on(app, worker) as (camera, watch):
        results = [app.tasks["add"].apply_async((index, 1), link=app.tasks["echo"].s()) for index in range(20)]
        retried = app.tasks["flaky"].delay("flaky-events")
        watch(lambda: camera.of_task("task-succeeded").total() >= 41, "all are told")
        last = app.tasks["add"].delay(1, 1)
        watch(lambda: last.id in camera.of_task("task-succeeded"), "what was told twice would be told by now")
        for kind in ("received", "started", "succeeded"):
            counts = camera.of_task(f"task-{kind}")
            assert {result.id: counts[result.id] for result in results} == {result.id: 1 for result in results}
        assert camera.of_task("task-retried")[retried.id] == 2
        assert camera.of_task("task-succeeded")[retried.id] == 1


def test_a_revoked_job_has_its_event(app: Celery, worker: Worker, gate: Gate) -> None:
    with camera_on(app, worker) as (camera, watch):
        running = app.tasks["gated"].delay(gate.path, 0)
        gate.wait_for_model()
        doomed = app.tasks["echo"].delay("doomed")
        watch(lambda: doomed.id in camera.of_task("task-received"), "it is received")
        app.control.revoke(doomed.id, reply=True, limit=1)
        gate.open()
        watch(lambda: doomed.id in camera.of_task("task-revoked"), "it is told")
        watch(lambda: running.id in camera.of_task("task-succeeded"), "the other ran")
        assert camera.of_task("task-revoked")[doomed.id] == 1
        assert doomed.id not in camera.of_task("task-started")


def test_without_events_asked_for_none_are_sent_until_they_are(app: Celery, worker: Worker, server: str) -> None:
    with celery_worker(APP, server, args=("-Q", "unwatched")) as silent, camera_on(app, silent) as (camera, watch):
        echo = app.tasks["echo"]
        for index in range(20):
            assert echo.apply_async((index,), queue="unwatched").get(timeout=WAIT) == index
        app.control.broadcast("heartbeat", destination=[silent.name])
        beats = camera.heartbeats(silent.name)
        watch(lambda: camera.heartbeats(silent.name) > beats, "a heartbeat comes")
        assert [event for event in camera.events if event["type"].startswith("task-")] == []

        app.control.enable_events(destination=[silent.name], reply=True, limit=1)
        result = echo.apply_async(("told",), queue="unwatched")
        watch(lambda: result.id in camera.of_task("task-succeeded"), "it is told")
        assert camera.of_task("task-received")[result.id] == 1
