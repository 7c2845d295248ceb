"""`python -m batchery.worker.health`: what a probe is told, and when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis
from batchery.worker import health

from tests.support.callers import calling
from tests.support.gates import Gate
from tests.support.waiting import wait_until
from tests.support.workers import Worker

APP = """
import os
from batchery import BatchTask, setup
from celery import Celery

def pass_gate(path):
    if os.path.exists(path):
        open(path).read()

app = Celery("slow", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.broker_transport_options = {"global_keyprefix": "site:"}
setup(app)

class Slow(BatchTask):
    name = "slow"
    batch_time_limit_s = 0.1

    def load(self, device):
        pass_gate(os.environ["LOAD_GATE"])

    def predict(self, paths):
        for path in paths:
            pass_gate(path)
        return paths

app.register_task(Slow())
"""


@pytest.mark.worker
@pytest.mark.leaves_leases
def test_a_worker_is_ready_once_its_models_are_loaded_and_not_while_its_batch_hangs(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(node: str, *more: str) -> tuple[int, str]:
        # Long enough for a busy machine where an answer comes; where none comes, it is waited for in full.
        args = ["--broker", redis_url, "--node", node, "--key-prefix", "site:", "--timeout", "0.5", *more]
        return health.main(args), capsys.readouterr().out

    (tmp_path / "slow_app.py").write_text(APP)
    (tmp_path / "batch").mkdir()
    load_gate, gate = Gate(tmp_path / "gate"), Gate(tmp_path / "batch" / "gate")
    worker = Worker(
        "slow_app",
        args=[],
        env={"REDIS_URL": redis_url, "LOAD_GATE": load_gate.path, "PYTHONPATH": str(tmp_path)},
    )
    try:
        load_gate.wait_for_model()
        code, line = probe(worker.name)
        assert code == 1
        assert line.startswith(f"{worker.name} did not answer in 0.5 s: it does not run, is loading its models")

        load_gate.open()
        wait_until(lambda: probe(worker.name) == (0, f"{worker.name} is ready.\n"), f"it is ready:\n{worker.log}")

        with calling(redis_url, broker_transport_options={"global_keyprefix": "site:"}) as app:
            app.send_task("slow", [gate.path], ignore_result=True)
        gate.wait_for_model()
        hangs = f"{worker.name} hangs: its model or a hook has worked on a batch for longer than batch_time_limit_s.\n"
        wait_until(lambda: probe(worker.name) == (1, hangs), "it is said to hang")
        assert probe(worker.name, "--alive") == (1, hangs)
        gate.open()
        wait_until(lambda: probe(worker.name)[0] == 0, "it is ready again")
    finally:
        load_gate.open()
        gate.open()
        worker.close()


def test_a_broker_that_is_away_is_told_without_its_password_and_blamed_on_the_worker_only_if_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--broker", "redis://:secret@127.0.0.1:1/0", "--node", "one@host"]
    assert health.main(args) == 1
    line = capsys.readouterr().out
    assert line.startswith("redis://:**@127.0.0.1:1/0 cannot be used: ")
    assert health.main([*args, "--alive"]) == 0
    assert capsys.readouterr().out.endswith("one@host may well be alive.\n")


def test_a_worker_that_cannot_use_redis_is_not_ready_and_after_a_minute_not_alive() -> None:
    figures = {"hung": False, "redis_away_s": 12.5, "redis_error": "it is away"}
    said = "one@host cannot use Redis, for 12.5 s now: it is away"
    assert health.problem_of("one@host", figures, alive=False) == said
    assert health.problem_of("one@host", figures, alive=True) is None
    assert health.problem_of("one@host", {**figures, "redis_away_s": 61}, alive=True)
    assert health.problem_of("one@host", {**figures, "redis_away_s": 0}, alive=False) is None


def test_a_server_that_takes_no_writes_is_told_and_is_not_the_workers_fault(
    redis_url: str, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    redis_client.replicaof("127.0.0.1", "1")
    try:
        args = ["--broker", redis_url, "--node", "one@host", "--timeout", "0.5"]
        assert (health.main(args), health.main([*args, "--alive"])) == (1, 0)
        assert "read only" in capsys.readouterr().out
    finally:
        redis_client.replicaof("no", "one")


def test_probes_leave_nothing_behind(redis_url: str, redis_client: redis.Redis) -> None:
    for _ in range(3):
        assert health.main(["--broker", redis_url, "--node", "nobody@nowhere", "--timeout", "0.05"]) == 1
    assert not redis_client.keys("*reply*")


def test_a_probe_imports_no_torch_and_knows_the_node_of_a_worker_without_a_name(redis_url: str) -> None:
    code = (
        "import sys, socket\n"
        "from batchery.worker import health\n"
        "print(health.main(['--timeout', '0.05']), 'torch' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={"CELERY_BROKER_URL": redis_url}, text=True, capture_output=True
    )
    line, figures, _ = ran.stdout.split("\n")
    assert line.startswith("celery@")
    assert figures == "1 False", ran.stderr
