"""What a worker is given to do while one call in its code fails: calls of many kinds, and what may happen to it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import chord

from tests.support.faulty_worker import REVOKED

if TYPE_CHECKING:
    from tests.support.fault_trials import Lane


class Sent(NamedTuple):
    """A call, and what its caller is to get: a value, or a word that its stored result contains."""

    id: str
    value: Any = None
    word: str = ""

    def answered(self, stored: bytes) -> bool:
        """Whether what is stored is the last word."""
        return bool(stored) and not any(state in stored for state in (b'"RETRY"', b'"STARTED"'))

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
    commands: Mapping[str, Any] = {"batching_set": set_size, "query_task": {"ids": ["x"]}}
    for name in ("batching", "stats", "active", "reserved", *commands):
        lane.app.control.broadcast(name, arguments=commands.get(name, {}), reply=False)
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


def killed(lane: Lane) -> Iterator[Sent]:
    """The worker is killed while it runs a batch; the next one finds what it held."""
    with lane.gate() as gate:
        yield from [Sent(lane.app.tasks["gated"].delay(gate.path, number).id, number) for number in range(6)]
        yield Sent(lane.app.tasks["plain"].apply_async(("late",), countdown=0.5).id, "late")
        lane.wait_at(gate)
        lane.kill()


def hung(lane: Lane) -> Iterator[Sent]:
    """User code hangs until the worker ends."""
    with lane.gate() as gate:
        yield Sent(lane.app.send_task("gated_preprocess", [gate.path, "held"]).id, "held")
        lane.wait_at(gate)
        lane.wait(lambda: not lane.alive(), 8, restart=False)


def nothing(lane: Lane) -> Iterator[Sent]:
    """An idle worker."""
    yield from ()


def probe(lane: Lane) -> Iterator[Sent]:
    """A few calls that come after a fault."""
    app = lane.app
    yield Sent(app.tasks["echo"].delay("after").id, "after")
    yield Sent(app.tasks["plain"].delay("after").id, "after")
    yield Sent(app.tasks["add"].delay("bad", 2).id, word="OddInput")


Scene = Callable[["Lane"], Iterator[Sent]]
SCENES: Mapping[str, Scene] = {
    "nothing": nothing,
    "fast": fast_calls,
    "bridged": bridged_calls,
    "odd": odd_messages,
    "control": remote_control,
    "cut": cut_connections,
    "killed": killed,
    "hung": hung,
}
