"""Trials of a worker: one call in its code fails while it serves a scene's calls, or while it starts, serves and stops.

Afterwards every caller must have an answer, no message may be left, and the worker must be sound, or have ended with a
reason in its log; then another one takes over, as a supervisor would start it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import redis
from celery import Celery

from tests.support.callers import calling
from tests.support.fault_scenes import SCENES, Sent, bridged_calls, fast_calls, probe
from tests.support.faults import Orders
from tests.support.gates import Gate
from tests.support.paths import ROOT
from tests.support.servers import Valkey
from tests.support.waiting import wait_until

LEASE_S = 1.0
#: Seconds that a call hangs: longer than a lease, and than user code may take.
HANG_S = 3.0
#: Seconds for everything to be answered. The longest way is that of a worker that ends and whose lease has to run out.
PATIENCE_S = 10.0
#: The name of the scene in which a worker starts, serves, and stops; and all scenes that take more than one worker.
LIFE = "life"
SLOW = (LIFE, "killed", "hung")
QUICK = [name for name in SCENES if name not in SLOW]

ENV = {
    "OPTIONS": json.dumps({"lease_s": LEASE_S, "warm_up_s": 0, "device": "cpu", "drain_timeout_s": 3}),
    "TUNING": json.dumps({"ARRIVAL_WAIT_S": 0.2, "LEASE_TURN_S": 0.3, "EXIT_GRACE_S": 1.0, "MEND_LEASES": 2}),
    "CONF": json.dumps({"task_annotations": {"*": {"batch_time_limit_s": 1.5}}}),
}


#: Settings with which a worker takes other ways: Celery stores all results, and a receiver looks at each task.
EXTENDED = {
    "CONF": json.dumps({**json.loads(ENV["CONF"]), "result_extended": True}),
    "SIGNALS": json.dumps(["task_received"]),
}


class Report(NamedTuple):
    """What one fault did."""

    #: What is wrong; empty if nothing is.
    problem: str
    fired: bool
    #: Calls that failed because of the fault.
    failed: int
    #: Exit codes of the workers that ended.
    ended: Sequence[int]
    #: What the workers wrote meanwhile.
    log: str


class Nursery:
    """The process that forks workers. Any thread."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faulty_worker"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout
        self._lock = threading.Lock()

    def ask(self, do: str, **command: Any) -> Any:
        with self._lock:
            self._input.write(f"{json.dumps({'do': do, **command})}\n")
            self._input.flush()
            return json.loads(self._output.readline())

    def close(self) -> None:
        self._input.close()
        self._process.wait()
        self._output.close()


class Lane:
    """A server, its caller, and one worker at a time. One thread."""

    def __init__(
        self, nursery: Nursery, app: Celery, client: redis.Redis, directory: Path, env: Mapping[str, str]
    ) -> None:
        self.app, self.client, self._directory, self._nursery = app, client, directory, nursery
        self.orders = Orders(directory / "orders")
        self.orders.clear()
        self._env = {**ENV, **env}
        self.pid = 0
        #: Threads of ours in a sound worker.
        self.threads = 0
        self._log = directory / "log"
        self._log.touch()
        self._log_position = 0
        self._fired_at = 0.0
        self.ended: list[int] = []

    # -- The worker --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a worker."""
        args = ["-c", "2", "-E", "-l", "INFO", "--without-mingle", "--without-gossip"]
        orders = str(self._directory / "orders")
        self.pid = self._nursery.ask("start", orders=orders, log=str(self._log), env=self._env, args=args)

    def alive(self) -> bool:
        """Whether the worker runs. If it has ended, note its exit code."""
        if not self.pid:
            return False
        code = self._nursery.ask("poll", pid=self.pid)
        if code is not None:
            self.ended.append(code)
            self.pid = 0
        return code is None

    def ask_to_stop(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            wait_until(lambda: not self.alive(), "the worker is gone")

    def become_sound(self) -> None:
        """Return once a worker answers and all its threads run."""
        if not self.alive():
            self.start()
        sent = [*probe(self)]
        if not self.wait(lambda: not self.missing(sent), 20):
            raise AssertionError(f"no worker answers:\n{self.log[-3000:]}")
        time.sleep(0.1)
        self.threads = max(self.threads, self.orders.memory.threads)

    # -- A trial -----------------------------------------------------------------------------------------------------

    def begin(self, place: int, kind: str) -> None:
        """Order a fault, and look at the log from now on."""
        self._log_position, self.ended, self._fired_at = self._log.stat().st_size, [], 0.0
        self.orders.give(place, kind)

    def wait(self, condition: Callable[[], bool], seconds: float, *, restart: bool = True) -> bool:
        """Return whether `condition` becomes true; meanwhile start the worker again if it ends."""
        deadline = time.monotonic() + seconds
        look_at = 0.0
        while not condition():
            if self.orders.fired:
                self._fired_at = self._fired_at or time.monotonic()
                if time.monotonic() > self._fired_at + HANG_S:
                    self.orders.memory.released = 1
            if restart and time.monotonic() > look_at:
                if not self.alive():
                    self.start()
                look_at = time.monotonic() + 0.1
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    @property
    def log(self) -> str:
        with self._log.open("rb") as opened:
            opened.seek(self._log_position)
            return opened.read().decode(errors="replace")

    # -- What a scene needs ------------------------------------------------------------------------------------------

    @contextmanager
    def gate(self) -> Iterator[Gate]:
        """A gate that is open afterwards."""
        gate = Gate(self._directory / uuid.uuid4().hex)
        try:
            yield gate
        finally:
            gate.open()

    def wait_at(self, gate: Gate) -> None:
        """Wait until a model waits at a gate, but not long, because a fault may keep it from that."""
        with suppress(TimeoutError):
            gate.wait_for_model(1.0)

    def cut(self) -> None:
        """Cut all connections of the worker to the server."""
        sockets: set[str] = set()
        for path in Path(f"/proc/{self.pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(os.readlink(path))
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ports = {int(line[1].rpartition(":")[2], 16) for line in lines if f"socket:[{line[9]}]" in sockets}
        for client in self.client.client_list():
            if int(client["addr"].rpartition(":")[2]) in ports:
                self.client.client_kill_filter(_id=client["id"])

    # -- What became of calls ----------------------------------------------------------------------------------------

    def missing(self, sent: Sequence[Sent]) -> list[Sent]:
        """The calls that have no answer yet."""
        return [call for call, stored in zip(sent, self._stored(sent), strict=True) if not call.answered(stored)]

    def is_done(self, sent: Sequence[Sent]) -> bool:
        """Whether all have an answer, and no message is left."""
        return not (self.missing(sent) or self.unsettled())

    def judge(self, sent: Sequence[Sent]) -> tuple[list[str], int]:
        """The calls that got a wrong answer, and how many failed."""
        stored = self._stored(sent)
        verdicts = [call.verdict(result) for call, result in zip(sent, stored, strict=True)]
        wrong = [
            f"{call} got {result!r:.200}"
            for call, result, verdict in zip(sent, stored, verdicts, strict=True)
            if verdict == "wrong"
        ]
        return wrong, verdicts.count("failed")

    def _stored(self, sent: Sequence[Sent]) -> list[bytes]:
        found: Any = self.client.mget([f"celery-task-meta-{call.id}" for call in sent]) if sent else []
        return [result or b"" for result in found]

    def unsettled(self) -> int:
        """Messages that are claimed, or that wait."""
        claimed = sum(self.client.hlen(key) for key in [*self.client.scan_iter("batchery:unacked:*", count=1000)])
        return claimed + self.client.llen("celery")


@contextmanager
def lane(nursery: Nursery, directory: Path, env: Mapping[str, str]) -> Iterator[Lane]:
    """A lane whose server and worker are gone afterwards; `env` is the worker's, beside `ENV`."""
    with ExitStack() as stack:
        server = Valkey()
        stack.callback(server.close)
        server.start()
        app = stack.enter_context(calling(server.url, result_backend_thread_safe=True))
        client = stack.enter_context(redis.Redis.from_url(server.url))
        made = Lane(nursery, app, client, directory, {**env, "REDIS_URL": server.url})
        stack.callback(made.kill)
        yield made


class Trial(NamedTuple):
    """A fault to try: where, of which kind, and in which scene."""

    place: int
    kind: str
    scene: str

    def run(self, lane: Lane) -> Report:
        """Try it; afterwards the lane is as it was."""
        if self.scene == LIFE:
            sent, problem = self._live(lane)
        else:
            sent, problem = self._serve(lane)
        fired = lane.orders.fired
        lane.orders.clear()
        done = lane.wait(partial(lane.is_done, sent), PATIENCE_S)
        if not done:
            missing = lane.missing(sent)
            problem += f"{len(missing)} calls have no answer, {lane.unsettled()} messages are left: {missing[:3]}. "
        if any(lane.ended) and not any(word in lane.log for word in ("CRITICAL", "ERROR", "Error:")):
            problem += f"A worker ended with {lane.ended} and no word. "
        wrong, failed = lane.judge([call for call in sent if call not in lane.missing(sent)])
        if wrong:
            problem += f"Wrong answers: {wrong}. "
        if not problem and not lane.wait(lambda: lane.orders.memory.threads >= lane.threads, PATIENCE_S):
            problem = f"Only {lane.orders.memory.threads} of {lane.threads} threads are left. "
        if problem:
            lane.kill()
            lane.client.flushdb()
        return Report(problem, fired, failed, [*lane.ended], lane.log)

    def _serve(self, lane: Lane) -> tuple[list[Sent], str]:
        """Let a worker serve the scene's calls, and then some more."""
        if not lane.alive():
            lane.become_sound()
        lane.begin(self.place, self.kind)
        sent = [*SCENES[self.scene](lane)]
        if not lane.wait(lambda: lane.orders.fired, 2.0):
            lane.orders.memory.place = -1
        sent += probe(lane)
        lane.wait(partial(lane.is_done, sent), HANG_S + 1 if self.kind == "hang" else 0)
        return sent, ""

    def _live(self, lane: Lane) -> tuple[list[Sent], str]:
        """Let a worker start, serve, and stop while it works."""
        lane.kill()
        lane.client.flushdb()
        sent = [*fast_calls(lane), *bridged_calls(lane)]
        lane.begin(self.place, self.kind)
        lane.start()
        problem = ""
        if not lane.wait(lambda: not lane.alive() or lane.is_done(sent), PATIENCE_S, restart=False):
            problem = f"The worker neither serves nor ends: {lane.missing(sent)[:3]}. "
        if lane.alive():
            with lane.gate() as gate:
                gated = lane.app.tasks["silent"]
                sent += [Sent(gated.delay(gate.path, number).id, number) for number in range(6)]
                sent.append(Sent(lane.app.tasks["echo"].apply_async(("late",), countdown=1).id, "late"))
                lane.wait_at(gate)
                lane.ask_to_stop()
                lane.wait(lambda: not lane.alive(), 0.3, restart=False)
            if not lane.wait(lambda: not lane.alive(), 15, restart=False):
                problem += "The worker does not stop. "
                lane.kill()
        return sent, problem


def survey(lane: Lane, scenes: Collection[str]) -> dict[int, tuple[str, int]]:
    """Return the places that run in these scenes, each with the first of them and its mark (see `Orders.seen`)."""
    found: dict[int, tuple[str, int]] = {}
    lane.become_sound()
    started = lane.orders.seen()
    for name in scenes:
        for _ in range(1 if name in SLOW else 2):
            if name == LIFE:
                sent, problem = Trial(-1, "value", LIFE)._live(lane)
                assert not problem, problem
                found = {place: (LIFE, mark) for place, mark in started.items()} | found
            else:
                sent = [*SCENES[name](lane)]
            done = lane.wait(partial(lane.is_done, sent), 10)
            assert done, f"{name}: {lane.missing(sent)} have no answer:\n{lane.log[-3000:]}"
            time.sleep(0.3)  # for what a worker does when it has nothing to do
            for place, mark in lane.orders.seen().items():
                found.setdefault(place, (name, mark))
    lane.become_sound()
    return found
