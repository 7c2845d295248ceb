"""Trials of a worker's faults: calls of many kinds are sent while one call in the worker's code fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import redis
from celery import Celery, chord

from tests.support.callers import calling
from tests.support.faults import OTHERS, Orders
from tests.support.faulty_worker import REVOKED
from tests.support.gates import Gate
from tests.support.paths import ROOT
from tests.support.servers import Valkey
from tests.support.waiting import wait_until

LEASE_S = 1.0

ENV = {
    "OPTIONS": json.dumps({"lease_s": LEASE_S, "warm_up_s": 0, "device": "cpu", "drain_timeout_s": 3}),
    "TUNING": json.dumps({"ARRIVAL_WAIT_S": 0.2, "LEASE_TURN_S": 0.3}),
    "CONF": json.dumps({"task_annotations": {"*": {"batch_time_limit_s": 1.5}}}),
}


class Sent(NamedTuple):
    """A call, and what its caller is to get: a value, or a word that its stored result contains."""

    id: str
    value: Any = None
    word: str = ""

    def verdict(self, stored: bytes) -> str:
        """Return "right", "failed" (an error of this job's own), or "wrong"."""
        if self.word:
            if self.word.encode() in stored:
                return "right"
        elif b'"SUCCESS"' in stored:
            return "right" if json.loads(stored)["result"] == self.value else "wrong"
        return "failed" if b'"FAILURE"' in stored else "wrong"


# Tasks that are classes are called by their names: a class belongs to one app of a process, and there are several.


def fast_calls(lane: Lane) -> Iterator[Sent]:
    """Fast calls, and chords of them."""
    app, tasks = lane.app, lane.app.tasks
    for number, result in enumerate(tasks["echo"].delay_many(range(4))):
        yield Sent(result.id, number)
    yield Sent(app.send_task("texts", ["text"]).id, "TEXT!")
    yield Sent(tasks["double"].delay([1]).id, word="SUCCESS")
    tasks["quiet"].delay(1)
    yield Sent(tasks["echo"].apply_async(("soon",), expires=3600).id, "soon")
    yield Sent(chord([tasks["echo"].s("a"), tasks["echo"].s("b")])(tasks["echo"].s()).id, ["a", "b"])


def bridged_calls(lane: Lane) -> Iterator[Sent]:
    """Calls that go over the Celery bridge, and errors."""
    app, tasks = lane.app, lane.app.tasks
    yield Sent(tasks["plain"].delay("plain").id, "plain")
    yield Sent(tasks["echo"].apply_async(("late",), countdown=0.01, expires=3600).id, "late")
    yield Sent(tasks["plain"].apply_async(("late",), countdown=0.01).id, "late")
    yield Sent(tasks["echo"].apply_async(("linked",), link=tasks["note_value"].s()).id, "linked")
    yield Sent(tasks["add"].delay("bad", 1).id, word="OddInput")
    yield Sent(tasks["add"].delay(1, 1).id, 2)
    yield Sent(app.send_task("hooked", ["hooked"]).id, "hooked")
    yield Sent(app.send_task("prepared", [f"retry{uuid.uuid4().hex}"]).id, word="SUCCESS")
    yield Sent(tasks["unserializable"].delay("bad").id, word="FAILURE")
    yield Sent(tasks["greedy"].delay("too much").id, word="FAILURE")


def odd_messages(lane: Lane) -> Iterator[Sent]:
    """Calls that end before they run, and messages that are none of Celery's."""
    app, echo = lane.app, lane.app.tasks["echo"]
    lane.client.delete(f"celery-task-meta-{REVOKED}")
    yield Sent(echo.apply_async(("expired",), expires=-5).id, word="REVOKED")
    yield Sent(echo.apply_async(("revoked",), task_id=REVOKED).id, word="REVOKED")
    stamps = {"stamped_headers": ["a"], "stamps": {"a": "b"}}
    yield Sent(echo.apply_async(("stamped",), headers=stamps).id, "stamped")
    yield Sent(app.send_task("nobody's").id, word="NotRegistered")
    yield Sent(echo.apply_async(("packed",), compression="zlib").id, "packed")
    yield Sent(app.tasks["plain"].apply_async(("packed",), compression="zlib").id, "packed")
    lane.client.lpush("celery", b"no message", b'{"body": "e30=", "headers": {}, "properties": {}}')
    yield Sent(echo.delay("behind").id, "behind")


def remote_control(lane: Lane) -> Iterator[Sent]:
    """Remote control; its answers are not looked at, because Celery itself gives none if a command fails."""
    set_size = {"task": "echo", "option": "max_batch_size", "value": "16"}
    commands: Mapping[str, Any] = {
        "batching": {}, "batching_set": set_size, "stats": {}, "active": {}, "reserved": {}, "query_task": {"ids": ["x"]}
    }  # fmt: skip
    for command, arguments in commands.items():
        lane.app.control.broadcast(command, arguments=arguments, reply=False)
    yield Sent(lane.app.tasks["echo"].delay("controlled").id, "controlled")


def cut_connections(lane: Lane) -> Iterator[Sent]:
    """All connections of the worker are cut while a batch runs, and while calls wait for their time."""
    echo, plain = lane.app.tasks["echo"], lane.app.tasks["plain"]
    with lane.gate() as gate:
        yield from [Sent(lane.app.tasks["gated"].delay(gate.path, number).id, number) for number in range(3)]
        yield Sent(echo.apply_async(("late",), countdown=0.5).id, "late")
        yield Sent(plain.apply_async(("late",), countdown=0.5).id, "late")
        lane.wait_at(gate)
        lane.cut()


def nothing(lane: Lane) -> Iterator[Sent]:
    """An idle worker."""
    yield from ()


Scene = Callable[["Lane"], Iterator[Sent]]
SCENES: Mapping[str, Scene] = {
    "nothing": nothing,
    "fast": fast_calls,
    "bridged": bridged_calls,
    "odd": odd_messages,
    "control": remote_control,
    "cut": cut_connections,
}


class Report(NamedTuple):
    """What one fault did."""

    #: What is wrong; empty if nothing.
    problem: str = ""
    fired: bool = True
    #: Calls that failed because of the fault.
    failed: int = 0
    #: Exit code of the worker, if it ended.
    ended: int | None = None
    log: str = ""


class Nursery:
    """The process that forks workers."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faulty_worker"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, do: str, **command: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps({'do': do, **command})}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Lane:
    """A server, and one worker at a time, which is started again when it has ended."""

    def __init__(self, nursery: Nursery, app: Celery, client: redis.Redis, url: str, directory: Path, **env: str) -> None:
        self.app, self.client = app, client
        self.orders = Orders(directory / "orders")
        self.orders.clear()
        self.log_file = directory / "log"
        self.log_file.touch()
        self._nursery = nursery
        self._env = {**ENV, "REDIS_URL": url, **env}
        self.pid = 0
        self.threads = 0

    def start(self) -> None:
        """Start a worker."""
        args = ["-c", "2", "-E", "-l", "INFO", "--without-mingle", "--without-gossip"]
        self.pid = self._nursery.ask(
            "start", orders=str(self.orders_file), log=str(self.log_file), env=self._env, args=args
        )

    @property
    def orders_file(self) -> Path:
        return self.log_file.parent / "orders"

    def exit_code(self) -> int | None:
        return self._nursery.ask("poll", pid=self.pid) if self.pid else -1  # type: ignore[no-any-return]

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal_number)
        codes: list[int] = []
        wait_until(lambda: (code := self.exit_code()) is not None and not codes.append(code), "the worker ends", 20)
        return codes[0]

    @contextmanager
    def gate(self) -> Iterator[Gate]:
        """A gate that is open afterwards."""
        gate = Gate(self.log_file.parent / uuid.uuid4().hex)
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
        descriptors = Path(f"/proc/{self.pid}/fd")
        sockets = {os.readlink(path) for path in descriptors.iterdir() if path.is_symlink()} if self.pid else set()
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ports = {int(line[1].rpartition(":")[2], 16) for line in lines if f"socket:[{line[9]}]" in sockets}
        for client in self.client.client_list():
            if int(client["addr"].rpartition(":")[2]) in ports:
                self.client.client_kill_filter(_id=client["id"])

    def log_since(self, position: int) -> str:
        with self.log_file.open("rb") as opened:
            opened.seek(position)
            return opened.read().decode(errors="replace")

    def unsettled(self) -> int:
        keys = [*self.client.scan_iter("batchery:unacked:*", count=1000)]
        return sum(self.client.hlen(key) for key in keys) + sum(self.client.llen(queue) for queue in ("celery",))

    def send(self, scene: Scene) -> list[Sent]:
        return list(scene(self))

    def missing(self, sent: Sequence[Sent]) -> list[Sent]:
        if not sent:
            return []
        stored = self.client.mget([f"celery-task-meta-{call.id}" for call in sent])
        return [
            call for call, result in zip(sent, stored, strict=True)
            if result is None or b'"RETRY"' in result or b'"STARTED"' in result
        ]  # fmt: skip

    def judge(self, sent: Sequence[Sent]) -> tuple[list[str], int]:
        """Return the wrong answers, and how many failed."""
        stored = self.client.mget([f"celery-task-meta-{call.id}" for call in sent]) if sent else []
        verdicts = [call.verdict(result or b"") for call, result in zip(sent, stored, strict=True)]
        wrong = [f"{call} got {result!r:.200}" for call, result, verdict in zip(sent, stored, verdicts, strict=True) if verdict == "wrong"]
        return wrong, verdicts.count("failed")


@contextmanager
def lane(nursery: Nursery, directory: Path, **env: str) -> Iterator[Lane]:
    """A lane whose server is gone afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        server = Valkey()
        stack.callback(server.close)
        server.start()
        app = stack.enter_context(calling(server.url))
        client = stack.enter_context(redis.Redis.from_url(server.url))
        made = Lane(nursery, app, client, server.url, directory, **env)
        stack.callback(lambda: made.pid and made.exit_code() is None and made.stop(signal.SIGKILL))
        yield made


def trial(lane: Lane, place: int, kind: str, scene: Scene, *, patience_s: float = 6.0, hang_s: float = 3.0) -> Report:
    """Let the call at `place` fail while a worker serves the calls of `scene`."""
    if lane.exit_code() is not None:
        lane.start()
    position = lane.log_file.stat().st_size
    ended: int | None = None
    lane.orders.give(place, kind)
    sent = lane.send(scene)
    deadline = time.monotonic() + (2.0 if scene is nothing else 3.0)
    while not lane.orders.fired and time.monotonic() < deadline:
        time.sleep(0.005)
    fired, fired_at = lane.orders.fired, time.monotonic()
    lane.orders.memory.place = -1
    if fired:
        sent += lane.send(probe)
    deadline = time.monotonic() + patience_s
    problem = ""
    while True:
        if kind == "hang" and time.monotonic() > fired_at + hang_s:
            lane.orders.memory.released = 1
        if (code := lane.exit_code()) is not None:
            ended = code
            if ended in (0, -1) or not any(word in lane.log_since(position) for word in ("CRITICAL", "ERROR")):
                problem = f"ended with {code} and no word. "
            lane.start()
        missing = lane.missing(sent)
        if not missing and not lane.unsettled():
            break
        if time.monotonic() > deadline:
            problem += f"{len(missing)} of {len(sent)} without an answer, {lane.unsettled()} unsettled: {missing[:3]}"
            break
        time.sleep(0.01)
    lane.orders.clear()
    wrong, failed = lane.judge(sent)
    if wrong:
        problem += f" wrong: {wrong[:3]}"
    if not problem and (dead := _dead_threads(lane)):
        problem = f"{dead} threads are gone"
    if problem and lane.exit_code() is None:  # the next trial needs a sound worker
        lane.stop(signal.SIGKILL)
    if problem:
        lane.client.flushdb()
    return Report(problem.strip(), fired, failed - _expected(sent), ended, lane.log_since(position))


def _expected(sent: Sequence[Sent]) -> int:
    return 0


def _dead_threads(lane: Lane) -> int:
    """How many threads of ours are gone from a worker that is well."""
    with suppress(TimeoutError):
        wait_until(lambda: lane.orders.memory.threads >= lane.threads, "all threads", 1.0)
    return max(0, lane.threads - lane.orders.memory.threads)


def probe(lane: Lane) -> Iterator[Sent]:
    """A few calls that come after a fault."""
    app = lane.app
    yield Sent(app.tasks["echo"].delay("after").id, "after")
    yield Sent(app.tasks["plain"].delay("after").id, "after")
    yield Sent(app.tasks["add"].delay("bad", 2).id, word="OddInput")


def life(lane: Lane, place: int, kind: str, *, patience_s: float = 15.0, hang_s: float = 3.0) -> Report:
    """Let the call at `place` fail while a worker starts, serves, and stops."""
    if lane.exit_code() is None:
        lane.stop()
    lane.client.flushdb()
    position = lane.log_file.stat().st_size
    sent = [*fast_calls(lane), *bridged_calls(lane)]
    lane.orders.give(place, kind)
    lane.start()
    problem, ended = "", None
    started = time.monotonic()

    def over() -> bool:
        nonlocal ended
        if lane.orders.fired and kind == "hang" and time.monotonic() > started + hang_s:
            lane.orders.memory.released = 1
        ended = lane.exit_code()
        return ended is not None or not (lane.missing(sent) or lane.unsettled())

    try:
        wait_until(over, "answers", patience_s)
        if ended is None:
            sent.append(Sent(lane.app.tasks["echo"].apply_async(("eta",), countdown=1).id, "eta"))
            sent.append(Sent(lane.app.tasks["plain"].delay("last").id, "last"))
            sent.append(Sent(lane.app.tasks["echo"].delay("last").id, "last"))
            with suppress(ProcessLookupError):
                os.kill(lane.pid, signal.SIGTERM)
            stopped = time.monotonic()

            def left() -> bool:
                nonlocal ended
                if lane.orders.fired and kind == "hang" and time.monotonic() > stopped + hang_s:
                    lane.orders.memory.released = 1
                ended = lane.exit_code()
                return ended is not None

            wait_until(left, "the worker stops", 20)
        if ended and not any(word in lane.log_since(position) for word in ("CRITICAL", "ERROR", "Error:")):
            problem = f"ended with {ended} and no word. "
    except TimeoutError as error:
        problem = f"{error} ended {ended}; {lane.unsettled()} unsettled, missing {lane.missing(sent)[:3]}"
        lane.stop(signal.SIGKILL)
    fired = lane.orders.fired
    lane.orders.clear()
    lane.start()
    try:
        wait_until(lambda: not (lane.missing(sent) or lane.unsettled()), "all is answered by the next worker", patience_s)
    except TimeoutError as error:
        problem += f"{error} {lane.unsettled()} unsettled, missing {lane.missing(sent)[:3]}"
        lane.client.flushdb()
    wrong, failed = lane.judge(sent)
    if wrong:
        problem += f" wrong: {wrong[:3]}"
    return Report(problem, fired, failed, ended, lane.log_since(position))


def survey(lane: Lane) -> tuple[dict[int, str], dict[int, str], set[int]]:
    """Return the places that run, by the scene in which they run; those of starts and stops; and those of others' code."""
    by_scene: dict[int, str] = {}
    foreign: set[int] = set()
    lane.start()
    sound(lane)
    in_life = lane.orders.seen()
    for name, scene in SCENES.items():
        seen: dict[int, int] = {}
        for _ in range(3):
            sent = lane.send(scene)
            wait_until(lambda: not lane.missing(sent) and not lane.unsettled(), f"{name}: all answers", 10)
            time.sleep(0.3)
            seen |= lane.orders.seen()
        by_scene |= {number: name for number in seen if number not in by_scene}
        foreign |= {number for number, mark in seen.items() if mark == OTHERS}
    lane.stop()
    in_life |= lane.orders.seen()
    return by_scene, {number: "life" for number in in_life if number not in by_scene}, foreign | {number for number, mark in in_life.items() if mark == OTHERS}


def sound(lane: Lane) -> None:
    """Wait until the worker answers."""
    sent = [*probe(lane)]
    wait_until(lambda: not lane.missing(sent), "the worker answers", 10)
    wait_until(lambda: lane.orders.memory.threads >= 7, "its threads run", 5)
    lane.threads = lane.orders.memory.threads
