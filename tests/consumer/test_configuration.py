"""A worker that is configured by a file, asked and changed by remote control, and the calls that it does not serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from batchery.configs import TASK_OPTION_NAMES
from celery import Celery

from tests.support.apps import APP
from tests.support.callers import held_back, options
from tests.support.models import BATCHES
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Worker, celery_worker

WAIT = 30.0
#: The queue of this file's worker; the tasks that it does not serve are sent to the app's other queue.
QUEUE = "served"

FILE = """
preset = "cpu"

[worker]
tasks = ["echo", "gated", "texts"]
lease_s = 1

[defaults]
max_wait_ms = 1
max_batch_size = 5

[tasks.echo]
max_batch_size = 3

[tasks.picky]
max_batch_size = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("configuration") / "deployment.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def worker_args() -> Sequence[str]:
    return ("-Q", QUEUE)


@pytest.fixture(scope="module")
def worker_env(file: Path) -> Mapping[str, str]:
    # A batch of six then pays, whatever noise there is in what batches were measured to cost.
    return {"BATCHERY_CONFIG": str(file), "LAUNCH_S": "0.03"}


def inspect(app: Celery, worker: Worker) -> dict[str, Any]:
    answers = app.control.inspect(destination=[worker.name], limit=1)._request("batching")
    answer: dict[str, Any] = answers[worker.name]
    return answer


def set_option(app: Celery, worker: Worker, *values: Any) -> dict[str, str]:
    arguments = dict(zip(("task", "option", "value"), values, strict=True))
    (answer,) = app.control.broadcast("batching_set", arguments, destination=[worker.name], reply=True, limit=1)
    reply: dict[str, str] = answer[worker.name]
    return reply


def batches_of(app: Celery, client: redis.Redis, count: int) -> list[int]:
    """The sizes of the batches in which so many calls ran that were claimed together."""
    client.delete(BATCHES)
    with held_back(app, client, QUEUE):
        results = [app.tasks["echo"].apply_async((value,), queue=QUEUE) for value in range(count)]
    assert [result.get(timeout=WAIT) for result in results] == list(range(count))
    return [len(json.loads(batch)) for batch in client.lrange(BATCHES, 0, -1)]


def celery(url: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Celery's command line, which says at its end whether it imported torch."""
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
        "from celery.__main__ import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "-A", APP, *command],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": url},
        text=True,
        capture_output=True,
    )


# --- A file -----------------------------------------------------------------------------------------------------------


def test_batches_have_the_size_that_the_file_says(app: Celery, client: redis.Redis) -> None:
    assert batches_of(app, client, 6) == [3, 3]


def test_inspect_tells_each_value_and_where_it_comes_from(app: Celery, worker: Worker, file: Path) -> None:
    told = inspect(app, worker)
    assert told["configuration"] == f"{file}, on top of preset cpu (by BATCHERY_CONFIG)"
    assert told["worker"]["options"]["tasks"] == ["echo", "gated", "texts"]
    assert told["worker"]["from"]["device"] == "preset cpu [worker]"
    assert told["worker"]["from"]["lease_s"] == f"{file} [worker]"
    assert told["worker"]["from"]["drain_timeout_s"] == "default"
    assert set(told["tasks"]) == {"echo", "gated", "texts"}
    assert "picky" in told["unserved_tasks"]
    echo = told["tasks"]["echo"]
    assert [*echo["options"]] == [*echo["from"]] == [*TASK_OPTION_NAMES]
    assert (echo["options"]["max_batch_size"], echo["from"]["max_batch_size"]) == (3, f"{file} [tasks.echo]")
    assert (echo["options"]["max_wait_ms"], echo["from"]["max_wait_ms"]) == (1, f"{file} [defaults]")
    assert told["tasks"]["gated"]["from"]["max_batch_size"] == "code"
    assert told["engine"]["batches"] >= echo["figures"]["batches"] >= 2
    assert echo["figures"]["closed_by"]["full"] >= 2


# --- Remote control ---------------------------------------------------------------------------------------------------


def test_an_option_set_by_remote_control_holds_from_the_next_batch(
    app: Celery, client: redis.Redis, worker: Worker
) -> None:
    before = inspect(app, worker)["tasks"]["echo"]["options"]["max_batch_size"]
    assert set_option(app, worker, "echo", "max_batch_size", 2) == {"ok": "echo: max_batch_size is 2 now"}
    assert batches_of(app, client, 6) == [2, 2, 2]
    assert set_option(app, worker, "echo", "max_batch_size", "6") == {"ok": "echo: max_batch_size is 6 now"}
    assert batches_of(app, client, 6) == [6]
    assert inspect(app, worker)["tasks"]["echo"]["from"]["max_batch_size"] == "remote control"
    set_option(app, worker, "echo", "max_batch_size", before)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("echo", "max_batch_size", "many"), "max_batch_size = 'many' is not possible: it must be a whole number"),
        (("echo", "max_batch_siz", 3), 'Did you mean "max_batch_size"?'),
        (("picky", "max_batch_size", 3), "This worker serves no task 'picky'."),
    ],
)
def test_a_refused_change_is_explained_in_the_reply_and_changes_nothing(
    app: Celery, worker: Worker, values: tuple[Any, ...], reason: str
) -> None:
    before = inspect(app, worker)["tasks"]
    assert reason in set_option(app, worker, *values)["error"]
    assert inspect(app, worker)["tasks"] == before


def test_the_command_line_knows_both_commands_and_does_not_import_torch(
    app: Celery, worker: Worker, server: str
) -> None:
    asked = celery(server, "inspect", "batching", "--json", "-d", worker.name)
    assert json.loads(asked.stdout) == {worker.name: inspect(app, worker)}, asked.stderr
    assert asked.stderr == "False\n"
    age = inspect(app, worker)["tasks"]["texts"]["options"]["max_age_ms"]
    done = celery(server, "control", "batching_set", "texts", "max_age_ms", f"{age}", "-d", worker.name)
    assert f"texts: max_age_ms is {age} now" in done.stdout, done.stderr


# --- Tasks that a worker does not serve -------------------------------------------------------------------------------


def test_calls_that_a_worker_does_not_serve_wait_for_one_that_does(
    app: Celery, worker: Worker, client: redis.Redis, server: str
) -> None:
    ordinary = app.tasks["add"].apply_async((1, 2), queue=QUEUE)
    unusual = app.tasks["add"].apply_async((3, 4), queue=QUEUE, link=app.tasks["echo"].s().set(queue=QUEUE))
    told = "A call of add was sent to a queue of this worker, which does not serve that task."
    wait_until(lambda: told in worker.log, "the worker tells that it does not serve them")
    assert app.tasks["echo"].apply_async(("served",), queue=QUEUE).get(timeout=WAIT) == "served"
    assert not ordinary.ready()
    assert not unusual.ready()
    with celery_worker(APP, server, args=("-Q", QUEUE)):
        app.control.cancel_consumer(QUEUE, destination=[worker.name], reply=True)
        assert [ordinary.get(timeout=WAIT), unusual.get(timeout=WAIT)] == [3, 7]
    app.control.add_consumer(QUEUE, destination=[worker.name], reply=True)
    assert worker.log.count(told) == 1


def test_a_worker_without_batch_tasks_serves_plain_ones(app: Celery, server: str) -> None:
    with celery_worker(APP, server, args=("-Q", "plain"), env=options(tasks=[])) as plain:
        assert app.tasks["plain"].apply_async((7,), queue="plain").get(timeout=WAIT) == 7
        assert inspect(app, plain)["tasks"] == {}


# --- What a worker does not start with --------------------------------------------------------------------------------


@pytest.mark.worker
def test_a_worker_with_a_wrong_file_leaves_at_once_with_all_that_is_wrong(tmp_path: Path, server: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(
        "[tasks.ecko]\nmax_batch_size = 3\n[tasks.plain]\n[tasks.total]\nmax_batch_tokens = 3\nmax_wait = 1"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "worker"],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": server, "BATCHERY_CONFIG": str(file)},
        text=True,
        capture_output=True,
    )
    assert ran.returncode == os.EX_CONFIG
    shown = ran.stderr[ran.stderr.index("Error: ") :].splitlines()
    assert shown[0] == f"Error: This configuration cannot be used: {file} (by BATCHERY_CONFIG)"
    assert [line[:40] for line in shown[1:]] == [
        "  - [tasks.total] max_wait: there is no ",
        "  - [tasks.ecko] names no batch task of ",
        "  - [tasks.plain] names a plain task; on",
        "  - Task total: max_batch_tokens = 3 nee",
    ]
    assert "Traceback" not in ran.stderr
