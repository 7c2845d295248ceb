"""A server is away for seconds, or comes back without its data: every caller is answered, and no message is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chord

from tests.support.apps import APP
from tests.support.callers import calling, options, unsettled
from tests.support.gates import Gate
from tests.support.models import SEEN
from tests.support.servers import Valkey
from tests.support.waiting import wait_until
from tests.support.workers import Worker, celery_worker

WAIT = 40.0

pytestmark = pytest.mark.worker


@contextmanager
def house(conf: dict[str, object], **server_options: str) -> Iterator[tuple[Valkey, Worker, Celery, redis.Redis]]:
    """A server of a test's own, a worker and a caller."""
    server = Valkey(**server_options)
    try:
        server.start()
        env = {**options(lease_s=3), "CONF": json.dumps(conf)}
        with (
            celery_worker(APP, server.url, env=env, args=["-c", "16"]) as worker,
            calling(server.url) as caller,
            redis.Redis.from_url(server.url) as client,
        ):
            yield server, worker, caller, client
    finally:
        server.close()


def away(server: Valkey, gate: Gate, worker: Worker, sign: str) -> None:
    """Take the server away, let what waits at the gate end, and bring it back once the worker has noticed."""
    before = len(worker.log)
    server.kill()
    gate.open()
    wait_until(lambda: worker.log.count(sign, before) > 0, f"the worker notices:\n{worker.log[-2000:]}", WAIT)
    server.start()


def answers(client: redis.Redis, ids: list[str], worker: Worker) -> list[object]:
    keys = [f"celery-task-meta-{task_id}" for task_id in ids]
    wait_until(lambda: client.exists(*keys) == len(keys), f"all are answered:\n{worker.log[-3000:]}", WAIT)
    metas = [json.loads(client.get(key) or b"") for key in keys]
    assert {meta["status"] for meta in metas} == {"SUCCESS"}, metas
    return [meta["result"] for meta in metas]


def test_what_ran_while_the_server_was_away_is_answered(tmp_path: Path) -> None:
    """Plain tasks in the pool, a batch, a call with a callback, and the last part of a chord."""
    with house({"task_acks_late": True}, appendonly="yes", appendfsync="always") as (server, worker, caller, client):
        gate = Gate(tmp_path / "gate")
        gated, plain, note = caller.tasks["gated"], caller.tasks["plain_gated"], caller.tasks["note_value"]
        echo = caller.tasks["echo"]
        results = [plain.delay(gate.path, index) for index in range(8)]
        results += gated.delay_many([(gate.path, index) for index in range(8, 11)])
        results.append(gated.apply_async((gate.path, 11), link=note.s()))
        whole = chord([echo.s(0), gated.s(gate.path, 1)])(echo.s())
        gate.wait_for_model()
        wait_until(lambda: [*unsettled(client).values()] == [14], "all are claimed", WAIT)
        away(server, gate, worker, "Trying again")
        assert answers(client, [result.id for result in results], worker) == [*range(12)]
        assert answers(client, [whole.id], worker) == [[0, 1]]
        wait_until(lambda: not unsettled(client), f"nothing is kept:\n{worker.log[-3000:]}", WAIT)
        assert ["link", 11] in [json.loads(entry) for entry in client.lrange(SEEN, 0, -1)]
        assert client.llen("celery") == 0


def test_a_server_that_comes_back_without_its_data_gets_what_was_computed(tmp_path: Path) -> None:
    with house({}) as (server, worker, caller, client):
        gate = Gate(tmp_path / "gate")
        results = caller.tasks["silent"].delay_many([(gate.path, index) for index in range(4)])
        gate.wait_for_model()
        ids = results.ids
        away(server, gate, worker, "Trying again")
        assert answers(client, ids, worker) == [*range(4)]
        assert not unsettled(client)
        assert client.llen("celery") == 0
        assert caller.tasks["echo"].delay("goes on").get(timeout=WAIT) == "goes on"


def test_connections_that_are_cut_all_the_time_fail_nobody() -> None:
    """Callbacks, chords, chains and retries go through Celery's own tracer, which takes each error for the job's."""
    with house({}) as (_, worker, caller, client):
        add, total, hopeless = (caller.tasks[name] for name in ("add", "total", "hopeless"))
        expected: dict[str, Any] = {}
        for number in range(12):
            expected[chord(add.s(index, number) for index in range(6))(total.s()).id] = 15 + 6 * number
            expected[(add.s(1, number) | add.s(2) | add.s(1)).delay().id] = 4 + number
            expected[hopeless.delay(number).id] = [number]  # it is retried once, and fails for its own reason
        keys, pause = [f"celery-task-meta-{task_id}" for task_id in expected], threading.Event()

        def answered() -> bool:
            found = [json.loads(value) for value in client.mget(keys) if value]
            return len([meta for meta in found if meta["status"] in ("SUCCESS", "FAILURE")]) == len(keys)

        for _ in range(400):
            if answered():
                break
            client.client_kill_filter(_type="normal", skipme=True)
            pause.wait(0.02)
        wait_until(answered, f"all are answered:\n{worker.log[-3000:]}", WAIT)
        found = {
            task_id: json.loads(client.get(f"celery-task-meta-{task_id}") or b"")["result"] for task_id in expected
        }
        own = {key: value["exc_message"] if isinstance(value, dict) else value for key, value in found.items()}
        assert own == expected, worker.log[-3000:]
        wait_until(lambda: not unsettled(client), "nothing is kept", WAIT)
