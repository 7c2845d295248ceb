"""The Celery bridge: what becomes of messages that Celery's own machinery has in hand."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from batchery.batchers import Batch, Job, JobState
from batchery.configs import TaskOptions, WorkerOptions
from batchery.worker import tuning
from batchery.worker.broker import Claim, DeadLetter, HeldAs, LetterLimits, Queue
from batchery.worker.broker.held import HeldClaims
from batchery.worker.broker.retry import RedisRetry
from batchery.worker.consumer.compat.admission import CELERY, PLAIN
from batchery.worker.consumer.compat.bridge import CeleryBridge
from batchery.worker.consumer.compat.context import WorkerContext
from batchery.worker.consumer.compat.dead_letters import why_given_up
from batchery.worker.consumer.compat.in_hand import IN_HAND
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


class FakeLeases(HeldClaims):
    """Holds claims, and notes what becomes of them."""

    def __init__(self) -> None:
        super().__init__(lease_s=30)
        #: What the server has, by tag.
        self.stored: dict[str, bytes] = {}
        self.acknowledged: list[str] = []
        self.given_back: list[str] = []
        self.buried: list[DeadLetter] = []
        #: Raised by `bury`.
        self.error: Exception | None = None
        self.scripts = self

    def hold(self, claim: Claim) -> None:
        self._take([[claim]])
        self.stored[claim.tag] = claim.message

    def lose(self, claim: Claim) -> None:
        self._forget([claim])

    def fetch(self, claims: list[Claim]) -> list[bytes | None]:
        return [self.stored.get(claim.tag) for claim in claims]

    def acknowledge(self, claim: Claim) -> None:
        self.acknowledged.append(claim.tag)

    def give_back_soon(self, claim: Claim, *, rejected: bool = False) -> None:
        self.given_back.append(claim.tag)

    def bury(self, claim: Claim, letter: DeadLetter, limits: LetterLimits) -> bool:
        if self.error is not None:
            raise self.error
        self.buried.append(letter)
        return True

    @property
    def forgotten(self) -> list[str]:
        return [*self._let_go]


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

    def __init__(self, **worker_options: Any) -> None:
        self.leases, self.backend = FakeLeases(), FakeBackend()
        self.submitted: list[Job] = []
        self.takes_jobs = True
        self.number = 0
        self.handled: list[Any] = []
        self.conf = SimpleNamespace(worker_eta_task_limit=None)
        consumer = SimpleNamespace(
            accept={"application/json"},
            handle_message=self.handled.append,
            app=SimpleNamespace(backend=self.backend, conf=self.conf),
            hostname="worker@here",
            pool=SimpleNamespace(num_processes=2),
            prefetch_multiplier=4,
        )
        self.bridge = CeleryBridge(
            WorkerContext(
                consumer=consumer,
                tasks={"b": SimpleNamespace(options=TaskOptions())},  # type: ignore[dict-item]
                options=WorkerOptions(**worker_options),
                leases=self.leases,  # type: ignore[arg-type]
                hub=SimpleNamespace(call=self._call),  # type: ignore[arg-type]
                retry=RedisRetry(),
                intake=SimpleNamespace(submit=self._submit, scheduler=SimpleNamespace(draining=False)),  # type: ignore[arg-type]
            )
        )

    def _call(self, function: Any, *args: Any, **_: Any) -> None:
        function(*args)

    def _submit(self, jobs: list[Job]) -> bool:
        self.submitted += jobs if self.takes_jobs else []
        return self.takes_jobs

    def claim(self, tag: str, message: bytes = READABLE) -> Claim:
        self.number += 1
        claim = Claim(tag, QUEUE, message, self.number, size=len(message))
        self.leases.hold(claim)
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
    assert (bench.leases.acknowledged, bench.leases.forgotten, bench.backend.failures) == ([], ["a"], {})


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
    ("error", "acknowledged", "forgotten"), [(TypeError(), ["a"], []), (ConnectionError(), [], ["a"])], ids=repr
)
def test_a_failure_that_cannot_be_stored_is_tried_again_unless_it_never_can_be(
    bench: Bench, error: Exception, acknowledged: list[str], forgotten: list[str]
) -> None:
    bench.backend.error = error
    bench.bridge.fail("an-id", bench.claim("a"), ValueError("bad"))
    assert (bench.leases.acknowledged, bench.leases.forgotten) == (acknowledged, forgotten)


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
    bench.leases.lose(bench.leases.held()[0])
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


def test_what_celery_drops_when_it_reconnects_is_given_back_except_what_its_pool_has(bench: Bench) -> None:
    running, _waits = bench.request("running"), bench.request("waits")
    assert bench.bridge.enter_pool(running)
    bench.bridge.connection_lost()
    assert bench.leases.given_back == ["waits"]
    assert bench.bridge.in_hand.in_pool == {"running"}


def test_a_plain_task_whose_message_was_lost_does_not_enter_the_pool(bench: Bench) -> None:
    request = bench.request("a")
    bench.leases.lose(bench.leases.held()[0])
    assert not bench.bridge.enter_pool(request)


def calls(bench: Bench, count: int, task: str = "t", **headers: Any) -> list[Claim]:
    """Messages for a plain task, `t`, or for a batch task, `b`."""
    message = json.dumps({**ENVELOPE, "headers": {"task": task, "id": "an-id", **headers}}).encode()
    return [bench.claim(f"{task}{bench.number}", message) for _ in range(count)]


def in_hours(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


def test_celery_gets_as_many_plain_calls_as_its_pool_prefetches_and_the_others_go_back(bench: Bench) -> None:
    assert bench.bridge.admission.capacity()[PLAIN].jobs == 8
    delivered = bench.bridge.hand_over(calls(bench, 10))
    assert len(bench.handled) == 8
    assert bench.leases.given_back == ["t8", "t9"]
    assert set(delivered) == {("celery", PLAIN)}
    bench.handled[0].ack()
    bench.leases.lose(bench.leases.held()[1])  # its lease was lost, so that nobody will acknowledge it
    bench.bridge.admission.capacity()
    assert bench.bridge.admission.capacity()[PLAIN].jobs == 2


def test_calls_with_an_eta_and_those_of_batch_tasks_do_not_count_among_the_prefetched_ones(bench: Bench) -> None:
    bench.bridge.hand_over([*calls(bench, 8), *calls(bench, 20, eta=in_hours(1)), *calls(bench, 20, "b")])
    assert len(bench.handled) == 48
    assert bench.leases.given_back == []


def test_the_queues_of_plain_tasks_are_looked_at_now_and_then_while_the_pool_is_full(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.bridge.hand_over(calls(bench, 8))
    assert bench.bridge.admission.capacity()[PLAIN].jobs == tuning.PROBE_MAX_JOBS
    assert PLAIN not in bench.bridge.admission.capacity()
    monkeypatch.setattr(tuning, "PROBE_S", 0.0)
    bench.bridge.admission._probe_at = 0.0
    assert PLAIN in bench.bridge.admission.capacity()


def test_messages_with_an_eta_beyond_their_part_of_the_memory_are_parked_until_they_are_due() -> None:
    bench = Bench(held_max_bytes=400_000)
    claims = calls(bench, 10, "b", eta=in_hours(1), meta="x" * 1000)
    assert bench.bridge.hand_over(claims) == set()
    held = bench.leases
    assert (held.count(HeldAs.ETA), held.count(HeldAs.PARKED)) == (4, 6)
    assert held.bytes_of(HeldAs.JOB, *IN_HAND) < 50_000
    assert bench.bridge.admission.capacity().keys() == {CELERY, PLAIN}
    bench.bridge.hand_over_due()
    assert len(bench.handled) == 4
    entries, bench.bridge.admission.parking._parked = bench.bridge.admission.parking._parked, []
    bench.bridge.admission.parking._parked = [(0.0, *entry[1:]) for entry in entries]
    bench.leases.lose(entries[0][2])  # its lease was lost
    del bench.leases.stored[entries[1][2].tag]  # and this one, which only the server knows
    bench.bridge.hand_over_due()
    assert len(bench.handled) == 8
    assert held.count(HeldAs.PARKED) == 0


def test_celerys_own_limit_of_eta_tasks_holds(bench: Bench) -> None:
    bench.conf.worker_eta_task_limit = 3
    bench.bridge.hand_over(calls(bench, 10, "b", eta=in_hours(1)))
    assert len(bench.handled) == 3


@pytest.mark.parametrize("eta", ["soon", "2030-01-01T00:00:00", "9999-99-99", 7, None, "0001-01-01T00:00:00+00:00"])
def test_what_is_no_eta_in_the_future_is_left_to_celery(bench: Bench, eta: object) -> None:
    bench.conf.worker_eta_task_limit = 0
    bench.bridge.hand_over(calls(bench, 1, "b", eta=eta))
    assert len(bench.handled) == 1


def test_what_celery_has_in_hand_is_bounded_in_bytes() -> None:
    bench = Bench(held_max_bytes=400_000)
    bench.bridge.hand_over(calls(bench, 9, "b"))
    assert bench.bridge.admission.capacity() == {}
    bench.handled[0].ack()
    assert bench.bridge.admission.capacity().keys() == {CELERY, PLAIN}


def test_compressed_messages_that_do_not_fit_together_are_handed_over_one_after_the_other() -> None:
    bench = Bench(held_max_bytes=400_000)
    body = base64.b64encode(zlib.compress(bytes(60_000))).decode()
    claims = calls(bench, 3, "b", compression="application/x-gzip")
    for claim in claims:
        document = {**json.loads(claim.message), "body": body}
        document["properties"]["body_encoding"] = "base64"
        claim.message = bench.leases.stored[claim.tag] = json.dumps(document).encode()
    bench.bridge.hand_over(claims)
    held = bench.leases
    for number in range(1, 4):
        assert len(bench.handled) == number
        assert held.count(HeldAs.PARKED) == 3 - number
        bench.handled[-1].ack()
        parked = bench.bridge.admission.parking._parked
        bench.bridge.admission.parking._parked = [(0.0, *entry[1:]) for entry in parked]
        bench.bridge.hand_over_due()


def test_a_message_that_was_given_back_before_celery_got_it_is_not_handed_over(bench: Bench) -> None:
    (claim,) = calls(bench, 1)
    bench.bridge.admission.admit([claim])
    bench.bridge.connection_lost()
    bench.bridge._deliver([claim])
    assert bench.handled == []
    assert bench.leases.given_back == [claim.tag]


def test_a_request_of_celerys_counts_the_workers_that_died(bench: Bench) -> None:
    for counts in (None, [4, 2, 1], "2"):
        bench.bridge.take(bench.request("a", delivery_info={"priority": 3, "batchery_lost": counts}))
    assert [(job.lost, job.deaths, job.lone_deaths) for job in bench.submitted] == [(0, 0, 0), (4, 2, 1), (0, 0, 0)]
