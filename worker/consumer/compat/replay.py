"""Outcomes that go over the Celery bridge are given to Celery's own tracer.

Celery handles errors, retries, callbacks, chains, chords and signals in one function, its tracer, around a call of the
task. Here the outcome exists already, so the tracer gets a task whose body replays the outcome.
"""

import logging
import threading
from collections.abc import Callable

import redis
from celery import Task
from celery.app.trace import build_tracer
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend
from celery.exceptions import Reject, WorkerLostError, WorkerShutdown, WorkerTerminate
from celery.worker.request import Request

from ....batchers import BatchFailed, Outcome, WorkerDied, without_text
from ....producer import private
from ... import tuning
from ..wire.request import FastRequest, full_request
from . import control_flow, worker_state
from .bridge import CeleryBridge
from .context import WorkerContext
from .postpone import PerhapsPostponed, Postponed, SentElsewhere, SteadyClient, answered, passes, steady

logger = logging.getLogger(__name__)

#: What Celery's pools hand to `Request.on_success`: whether the job failed, its result or error, its runtime.
_Answer = tuple[int, object, float]

#: These end the worker, whoever raises them.
_SHUTDOWN = (WorkerShutdown, WorkerTerminate, KeyboardInterrupt)


class OutcomeReplay:
    """Lets Celery store and announce outcomes, and acknowledge their messages. Settle thread."""

    def __init__(self, context: WorkerContext, bridge: CeleryBridge, backend_of: Callable[[Task], Backend]) -> None:
        """`backend_of` tells where a task's results are stored."""
        self._context = context
        self._bridge = bridge
        self._backend_of = backend_of
        #: How often the next outcome is tried: once after one that was postponed for good.
        self._patience = tuning.REPLAY_TRIES
        self._tasks = {name: _replaying(task) for name, task in context.tasks.items()}

    def tell(self, outcome: Outcome) -> None:
        """Tell Celery one outcome, if its message is still ours or nobody has answered it. Raises nothing."""
        reply, claim = outcome.job.reply, outcome.job.reply.claim
        if outcome.error is not None and not isinstance(outcome.error, Exception):
            outcome.error = BatchFailed(f"The model raised {outcome.error!r}.")
        is_given_up = isinstance(outcome.error, WorkerDied)
        if is_given_up:
            outcome.error = WorkerLostError(f"{outcome.error}")  # what callers know from Celery
        try:
            wanted = self._is_wanted(outcome) and (not is_given_up or self._keep(outcome))
            answer = self._answer(outcome) if wanted else None
        except Postponed as exc:
            logger.error(
                "Celery could not be told the outcome of %s. It runs again after the length of a lease: %s", reply, exc
            )
            answer = None
        except BaseException as exc:  # SystemExit, too: a receiver of a signal may raise anything
            logger.error("Celery could not take the outcome of %s[%s]: %s", reply.name, reply.id, without_text(exc))
            self._bridge.give_up(reply, exc)
            return
        if answer is None:
            self._context.leases.let_go([claim])
        else:
            self._context.hub.call(self._finish, full_request(reply), answer, soon=True)
        if answer is None or isinstance(reply, FastRequest):
            self._context.hub.call(worker_state.forget, [reply])

    def _keep(self, outcome: Outcome) -> bool:
        """Keep the message of a job that is given up; return False if its failure is not to be stored now."""
        job = outcome.job
        return self._bridge.dead_letters.keep(job.reply.claim, f"{outcome.error}", job, patient=True)

    def _is_wanted(self, outcome: Outcome) -> bool:
        """Whether a job's message is still ours, or else nobody has answered: the server may have lost the message."""
        leases, retry, reply = self._context.leases, self._context.retry, outcome.job.reply
        if leases.holds(reply.claim):
            held = retry.until_stopped(lambda: leases.still_held([reply.claim]))
            if held != [False]:
                return held is not None  # else the worker stops, and the job runs again
        request = full_request(reply)
        if request.chord:
            return True  # a chord counts each part once
        if request.ignore_result:
            return False
        backend = self._backend_of(reply.task)
        return retry.until_stopped(lambda: answered(backend, reply.id)) is False

    def _answer(self, outcome: Outcome) -> _Answer | None:
        """Let Celery's tracer store and announce an outcome; return its answer, or None if the worker stops first.

        Raises:
            Postponed: a server is away, and it was tried often enough.
        """
        reply = outcome.job.reply
        backend, leases = self._backend_of(reply.task), self._context.leases
        is_known = isinstance(backend, RedisBackend) and type(backend.client) is redis.Redis
        client = SteadyClient(backend.client, self._context.retry) if is_known else None
        tries = 0

        def attempt() -> _Answer:
            nonlocal tries
            if tries:
                leases.check_server(reply.claim.queue)  # while this fails no try counts
                if client is not None:
                    client.begin_again()
            tries += 1
            outcome.error = control_flow.refusal(backend, reply, outcome.error)
            try:
                answer = self._trace(full_request(reply), outcome, steady(backend, outcome, client))
            except SentElsewhere:
                raise
            except Postponed as exc:
                if tries < self._patience:
                    raise redis.ConnectionError(f"the outcome of a job is postponed by {exc}") from exc
                self._patience = 1
                if not isinstance(exc, PerhapsPostponed) or outcome.error is not None:
                    raise
                outcome.error = BatchFailed(f"The result could not be stored: {exc}")
                answer = self._trace(full_request(reply), outcome, steady(backend, outcome, client))
            self._patience = tuning.REPLAY_TRIES
            return answer

        return self._context.retry.while_transient(attempt)

    def _finish(self, request: Request, answer: _Answer) -> None:
        """Let Celery acknowledge and announce what its tracer has stored. On the hub's thread."""
        try:
            request.on_success(answer)
        except _SHUTDOWN:
            self._bridge.acknowledge(request.message.delivery_tag)
            raise
        except BaseException as exc:  # Celery raises the MemoryError of a task once more
            told = without_text(exc)
            logger.error("Celery could not announce the outcome of %s[%s]: %s", request.name, request.id, told)
            self._bridge.give_up(request, exc)

    def _trace(self, request: Request, outcome: Outcome, backend: Backend) -> _Answer:
        """Call Celery's tracer, which stores in `backend`."""
        task, app = self._tasks[outcome.job.task], self._context.consumer.app
        if task.__trace__ is None:
            task.__trace__ = build_tracer(task.name, task, app.loader, request.hostname, app=app)
        args, kwargs, embed = private.payload_of(request)
        embed = embed if isinstance(embed, dict) else {}
        context = {**request.request_dict, "args": args, "kwargs": kwargs, "is_eager": False, **embed}
        task.outcomes.current, task.outcomes.backend = outcome, backend
        try:
            # The tracer calls hooks of the task, receivers of signals and backends, any of which may hang.
            with self._context.intake.user_code([outcome.job]):
                result, info, runtime, text = task.__trace__(request.id, args, kwargs, context)
        finally:
            del task.outcomes.current, task.outcomes.backend
        rejected = info.retval if info else None
        if isinstance(rejected, Reject) and passes(reason := rejected.reason):  # a retry that could not be sent
            raise Reject(reason, requeue=True) if rejected is outcome.error else Postponed(repr(reason))
        if isinstance(outcome.error, WorkerLostError):
            # By its type Celery would store it again, and give the message back if task_reject_on_worker_lost is set.
            result.exception = BatchFailed(f"{outcome.error}")
        return (1, result, runtime) if info else (0, text, runtime)


def _replaying(task: Task) -> Task:
    """Return a task like `task`, whose body returns or raises the outcome in `outcomes.current`.

    Where `task` has `autoretry_for`, Celery's wrapper goes around this body, so that each job is retried by itself.
    """
    outcomes = threading.local()

    def run(*_: object, **__: object) -> object:
        outcome: Outcome = outcomes.current
        if control_flow.asks_for_retry(outcome.error):
            control_flow.retry(replay, outcome.error)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    retried = private.retried(task, run)

    def call(_self: Task, *args: object, **kwargs: object) -> object:
        # After a worker's death a retry would be a new message, whose deaths nobody has counted. A retry that the task
        # asks for is not retried by `autoretry_for` as well, which might count with another `max_retries`.
        error = outcomes.current.error
        as_it_is = isinstance(error, WorkerLostError) or control_flow.asks_for_retry(error)
        return (run if as_it_is else retried)(*args, **kwargs)

    backend = property(lambda _self: outcomes.backend)
    kind = type("Replay", (type(task),), {"backend": backend})
    setattr(kind, "__call__", call)  # noqa: B010 - a batch task may not define it
    replay: Task = object.__new__(kind)
    vars(replay).update(vars(task), outcomes=outcomes, __trace__=None)
    return replay
