"""The Celery bridge: what becomes of messages that Celery's own machinery has in hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from batchery.batchers import Batch, Job, JobState
from batchery.configs import WorkerOptions
from batchery.worker.broker import Claim, DeadLetter, LetterLimits, Queue
from batchery.worker.consumer.compat.bridge import CeleryBridge
from batchery.worker.consumer.compat.context import WorkerContext
from batchery.worker.consumer.compat.dead_letters import why_given_up
from batchery.worker.consumer.fast.settle import CelerySink
from batchery.worker.consumer.wire.kombu_message import LeaseChannel, to_kombu
from celery.exceptions import InvalidTaskError, Reject
from celery.worker import state
from kombu.exceptions import OperationalError

from tests.support.envelopes import message

QUEUE = Queue("celery")

ENVELOPE = {"body": "W10=", "content-type": "application/json", "properties": {"delivery_info": {}}}
READABLE = json.dumps({**ENVELOPE, "headers": {"task": "t", "id": "an-id"}}).encode()
UNREADABLE = b'{"headers": {"task": "t", "id": "an-id"}}'


class FakeLeases:
    """Holds claims, and notes what becomes of them."""

    held_bytes = 0

    def __init__(self) -> None:
        self.claims: dict[str, Claim] = {}
        self.acknowledged: list[str] = []
        self.given_back: list[str] = []
        self.buried: list[DeadLetter] = []
        #: Raised by `bury`.
        self.error: Exception | None = None
        self.scripts = self
        self.gone: list[str] = []

    def find(self, tag: str) -> Claim | None:
        return self.claims.get(tag)

    def holds(self, claim: Claim) -> bool:
        return claim.tag in self.claims

    def acknowledge(self, claim: Claim) -> None:
        self.acknowledged.append(claim.tag)

    def give_back_soon(self, claim: Claim, *, rejected: bool = False) -> None:
        self.given_back.append(claim.tag)

    def bury(self, claim: Claim, letter: DeadLetter, limits: LetterLimits) -> bool:
        if self.error is not None:
            raise self.error
        self.buried.append(letter)
        return True

    def let_go(self, claims: list[Claim]) -> None:
        self.gone += [claim.tag for claim in claims]


class FakeBackend:
    """Stores failures, or raises `error`."""

    def __init__(self) -> None:
        self.failures: dict[str, Exception] = {}
        self.error: Exception | None = None

    def exception_safe_to_retry(self, error: Exception) -> bool:
        return False

    def mark_as_failure(self, task_id: str, error: Exception) -> None:
        if self.error is not None:
            raise self.error
        self.failures[task_id] = error


class Bench:
    """A bridge, and all that it is connected to. Calls on the hub run at once; handled messages are kept."""

    def __init__(self) -> None:
        self.leases, self.backend = FakeLeases(), FakeBackend()
        self.submitted: list[Job] = []
        self.takes_jobs = True
        self.handled: list[Any] = []
        consumer = SimpleNamespace(
            accept={"application/json"},
            handle_message=self.handled.append,
            app=SimpleNamespace(backend=self.backend),
            hostname="worker@here",
        )
        self.bridge = CeleryBridge(
            WorkerContext(
                consumer=consumer,
                tasks={},
                options=WorkerOptions(),
                leases=self.leases,  # type: ignore[arg-type]
                hub=SimpleNamespace(call=self._call),  # type: ignore[arg-type]
                retry=None,  # type: ignore[arg-type]
                intake=SimpleNamespace(submit=self._submit, scheduler=SimpleNamespace(draining=False)),  # type: ignore[arg-type]
            )
        )

    def _call(self, function: Any, *args: Any, **_: Any) -> None:
        function(*args)

    def _submit(self, jobs: list[Job]) -> bool:
        self.submitted += jobs if self.takes_jobs else []
        return self.takes_jobs

    def claim(self, tag: str, message: bytes = READABLE) -> Claim:
        claim = self.leases.claims[tag] = Claim(tag, QUEUE, message, 1)
        return claim

    def request(self, tag: str, delivery_info: Any = None, **changes: Any) -> Any:
        """A request that Celery has accepted, of a message in its hands."""
        self.bridge.hand_over([self.claim(tag)])
        values: dict[str, Any] = {"id": "an-id", "args": [1], "kwargs": {}, "expires": None}
        info = delivery_info or {"priority": 3}
        message = SimpleNamespace(delivery_tag=tag, delivery_info=info, channel=self.bridge._channel)
        return Request(
            name="t", message=message, delivery_info=info, task=SimpleNamespace(name="t"), **{**values, **changes}
        )


class Request:
    """What the bridge reads of a request of Celery's own."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()
    state.reserved_requests.clear()


def test_a_message_is_handed_to_celerys_handler(bench: Bench) -> None:
    bench.bridge.hand_over([bench.claim("a")])
    (handled,) = bench.handled
    handled.ack()
    assert bench.leases.acknowledged == ["a"]


def test_an_unreadable_message_fails_the_call_that_it_names(bench: Bench) -> None:
    bench.bridge.hand_over([bench.claim("a", UNREADABLE)])
    assert isinstance(bench.backend.failures["an-id"], InvalidTaskError)
    assert bench.leases.acknowledged == ["a"]


def test_an_unreadable_message_that_names_no_call_is_dropped(bench: Bench) -> None:
    bench.bridge.hand_over([bench.claim("a", b"no message")])
    assert (bench.backend.failures, bench.leases.acknowledged) == ({}, ["a"])


def test_a_message_that_is_dropped_is_kept_with_a_reason_that_quotes_nothing(bench: Bench) -> None:
    bench.bridge.hand_over([bench.claim("a", UNREADABLE), bench.claim("b", b"secret")])
    letters = [(letter.id, letter.task, letter.worker) for letter in bench.leases.buried]
    assert letters == [("an-id", "t", "worker@here"), ("b", None, "worker@here")]
    assert {letter.reason for letter in bench.leases.buried} == {"The message was refused (InvalidTaskError)."}


def test_a_message_that_cannot_be_kept_comes_back(bench: Bench) -> None:
    bench.leases.error = redis.ConnectionError()
    bench.bridge.hand_over([bench.claim("a", UNREADABLE)])
    assert (bench.leases.acknowledged, bench.leases.gone, bench.backend.failures) == ([], ["a"], {})


def test_a_message_that_can_never_be_kept_is_answered_all_the_same(bench: Bench) -> None:
    """For example where access rules forbid it: otherwise its caller would wait for ever."""
    bench.leases.error = redis.exceptions.NoPermissionError("this user has no permissions")
    bench.bridge.hand_over([bench.claim("a", UNREADABLE)])
    assert list(bench.backend.failures) == ["an-id"]
    assert bench.leases.acknowledged == ["a"]


@pytest.mark.parametrize(
    ("answer", "runs"),
    [
        (True, True),
        (False, False),
        (redis.ConnectionError(), False),
        (redis.exceptions.NoPermissionError("this user has no permissions"), True),
    ],
    ids=repr,
)
def test_a_suspect_waits_for_its_server_but_not_for_rights_that_it_will_never_get(answer: Any, runs: bool) -> None:
    def may_run(claim: Claim) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    job = Job("an-id", "t", [1], {}, SimpleNamespace(claim=Claim("a", QUEUE, b"", 1)), 0.0, 1, deaths=1)
    sink: Any = SimpleNamespace(_leases=SimpleNamespace(scripts=SimpleNamespace(may_run_suspect=may_run)))
    assert CelerySink.admits(sink, Batch("t", [job], "suspect")) == runs


def test_a_batch_stays_noted_after_its_error_because_the_error_may_end_the_engine() -> None:
    """Other threads' work is noted while it lasts, and the device thread's until its next batch starts."""
    notes: list[list[str]] = []
    call = SimpleNamespace(claim=Claim("a", QUEUE, b"", 1))
    jobs = [Job("an-id", "t", [1], {}, call, 0.0, 1, redelivered=True)]
    sink: Any = SimpleNamespace(
        _note=SimpleNamespace(write=notes.append),
        _hub=SimpleNamespace(call=lambda *_: None),
        _device_thread=0,
        _started=None,
    )
    CelerySink.started(sink, Batch("t", jobs, "full", quick=True))
    CelerySink.working(sink, jobs, begins=True)
    CelerySink.working(sink, jobs, begins=False)
    assert notes == [["a"]]
    sink._device_thread = 0
    CelerySink.working(sink, jobs, begins=True)
    CelerySink.working(sink, jobs, begins=False)
    assert notes == [["a"], ["a"], []]


@pytest.mark.parametrize(("lost", "fails"), [(19, False), (20, True)])
def test_a_plain_call_fails_after_as_many_deliveries_as_a_batch_tasks(lost: int, fails: bool) -> None:
    raw = message(delivery_info={"batchery_lost": [lost, 0, 0]})
    channel = LeaseChannel(lambda tag: None, lambda tag: None)
    delivered = to_kombu(Claim("a", QUEUE, raw, 1), channel, {"application/json"})
    assert (why_given_up(delivered, ()) is not None) == fails
    assert why_given_up(delivered, ["echo"]) is None, "of a batch task the engine decides"


@pytest.mark.parametrize(
    ("error", "acknowledged", "gone"), [(TypeError(), ["a"], []), (ConnectionError(), [], ["a"])], ids=repr
)
def test_a_failure_that_cannot_be_stored_is_tried_again_unless_it_never_can_be(
    bench: Bench, error: Exception, acknowledged: list[str], gone: list[str]
) -> None:
    bench.backend.error = error
    bench.bridge.fail("an-id", bench.claim("a"), ValueError("bad"))
    assert (bench.leases.acknowledged, bench.leases.gone) == (acknowledged, gone)


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), OperationalError("away"), Reject("no", requeue=True)])
def test_a_request_for_which_a_server_was_away_goes_back_to_its_queue(bench: Bench, error: Exception) -> None:
    request = bench.request("a")
    request.task.backend = bench.backend
    bench.bridge.give_up(request, error)
    assert (bench.leases.acknowledged, bench.leases.given_back) == ([], ["a"])


def test_a_message_that_celery_cannot_take_while_a_server_is_away_goes_back_to_its_queue(bench: Bench) -> None:
    def handle(_: Any) -> None:
        raise redis.ConnectionError("the revocation of a call could not be stored")

    bench.bridge._consumer.handle_message = handle
    bench.bridge.hand_over([bench.claim("a")])
    assert (bench.leases.acknowledged, bench.leases.given_back, bench.backend.failures) == ([], ["a"], {})


def test_a_request_joins_the_waiting_jobs_of_its_task(bench: Bench) -> None:
    request = bench.request("b")
    bench.bridge.take(request)
    (job,) = bench.submitted
    assert (job.id, job.task, job.args, job.priority, job.reply) == ("an-id", "t", [1], 3, request)
    assert request.claim.tag == "b"


def test_a_request_goes_back_to_its_queue_if_the_engine_drains(bench: Bench) -> None:
    bench.takes_jobs = False
    bench.bridge.take(bench.request("b"))
    assert bench.leases.given_back == ["b"]


def test_a_request_whose_lease_was_lost_is_left_to_its_new_worker(bench: Bench) -> None:
    request = bench.request("b")
    del bench.leases.claims["b"]
    bench.bridge.take(request)
    assert bench.submitted == []


@pytest.mark.parametrize("odd", [{"id": 5}, {"args": "text"}, {"kwargs": [1]}], ids=str)
def test_a_request_that_can_be_no_job_fails(bench: Bench, odd: dict[str, Any]) -> None:
    bench.bridge.take(bench.request("b", **odd))
    assert bench.submitted == []
    assert isinstance(bench.backend.failures["an-id"], InvalidTaskError)


def test_a_job_that_has_not_expired_by_celerys_clock_is_submitted_as_a_new_job(bench: Bench) -> None:
    """The engine may not have dropped the old job yet, and a job that it holds cannot be submitted."""
    request: Any = Request(claim=bench.claim("c"), revoked=lambda: False, id="an-id")
    job = Job("an-id", "t", [1], {}, request, 0.0, 1, deadline=1.0, state=JobState.CHOSEN)
    bench.bridge.withdraw(job)
    (again,) = bench.submitted
    assert again is not job
    assert (again.id, again.reply, again.deadline, again.state) == ("an-id", request, None, JobState.NEW)


def test_what_celery_drops_when_it_reconnects_is_given_back_except_what_runs(bench: Bench) -> None:
    running, _waits = bench.request("running"), bench.request("waits")
    assert bench.bridge.enter_pool(running)
    bench.bridge.connection_lost()
    assert bench.leases.given_back == ["waits"]


def test_a_plain_task_whose_lease_was_lost_while_it_waited_for_its_eta_does_not_run(bench: Bench) -> None:
    lost, ours = bench.request("lost"), bench.request("ours")
    del bench.leases.claims["lost"]
    assert [bench.bridge.enter_pool(request) for request in (lost, ours)] == [False, True]
    assert bench.bridge.in_hand.in_pool == {"ours"}
    bench.bridge.acknowledge("ours")
    assert bench.bridge.in_hand.in_pool == set()


def test_celery_gets_no_more_messages_than_may_wait(bench: Bench) -> None:
    before = bench.bridge.capacity
    bench.bridge.hand_over([bench.claim(str(number)) for number in range(10)])
    after = bench.bridge.capacity
    assert before is not None
    assert after is not None
    assert before.jobs - after.jobs == 10
    bench.leases.claims.clear()
    bench.bridge.in_hand.forget_lost()
    assert bench.bridge.capacity == before


def test_a_request_of_celerys_counts_the_workers_that_died(bench: Bench) -> None:
    for counts in (None, [4, 2, 1], "2"):
        bench.bridge.take(bench.request("a", delivery_info={"priority": 3, "batchery_lost": counts}))
    assert [(job.lost, job.deaths, job.lone_deaths) for job in bench.submitted] == [(0, 0, 0), (4, 2, 1), (0, 0, 0)]
