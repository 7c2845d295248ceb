"""Outcomes that go over the Celery bridge are given to Celery's own tracer.

Celery handles errors, retries, callbacks, chains, chords and signals in one function, its tracer, around a call of the
task. Here the outcome exists already, so the tracer gets a task whose body replays the outcome.
"""

import logging
import threading

from celery import Task
from celery.app.trace import build_tracer
from celery.exceptions import WorkerLostError
from celery.worker.request import Request

from ....batchers import BatchFailed, Outcome, WorkerDied, without_text
from ....producer import private
from ..wire.request import FastRequest, full_request
from . import control_flow, worker_state
from .bridge import CeleryBridge
from .context import WorkerContext

logger = logging.getLogger(__name__)


class OutcomeReplay:
    """Lets Celery store and announce outcomes, and acknowledge their messages. Settle thread."""

    def __init__(self, context: WorkerContext, bridge: CeleryBridge) -> None:
        self._context = context
        self._bridge = bridge
        self._tasks = {name: _replaying(task) for name, task in context.tasks.items()}

    def tell(self, outcome: Outcome) -> None:
        """Tell Celery one outcome, if its message is still ours."""
        context, reply = self._context, outcome.job.reply
        if outcome.error is not None and not isinstance(outcome.error, Exception):
            outcome.error = BatchFailed(f"The model raised {outcome.error!r}.")
        if isinstance(outcome.error, WorkerDied):
            outcome.error = WorkerLostError(f"{outcome.error}")  # what callers know from Celery
        leases, claim = context.leases, reply.claim
        if not leases.holds(claim) or not context.retry.until_stopped(lambda: leases.still_held(claim)):
            context.hub.call(worker_state.forget, [reply])
            return
        try:
            request = full_request(reply)
            outcome.error = control_flow.refusal(request.task, request, outcome.error)
            answer = self._trace(request, outcome)
            context.hub.call(self._finish, request, answer, soon=True)
        except Exception as exc:
            logger.error("Celery could not take the outcome of %s[%s]: %s", reply.name, reply.id, without_text(exc))
            self._bridge.fail(reply.id, claim, exc)
        if isinstance(reply, FastRequest):
            context.hub.call(worker_state.forget, [reply])

    def _finish(self, request: Request, answer: tuple[int, object, float]) -> None:
        """Let Celery acknowledge and announce what its tracer has stored. On the hub's thread."""
        try:
            request.on_success(answer)
        except Exception as exc:  # Celery raises the MemoryError of a task once more
            told = without_text(exc)
            logger.error("Celery could not announce the stored outcome of %s[%s]: %s", request.name, request.id, told)
            self._bridge.acknowledge(request.message.delivery_tag)

    def _trace(self, request: Request, outcome: Outcome) -> tuple[int, object, float]:
        """Call Celery's tracer; return what Celery's pools hand to `Request.on_success`: (failed, result, runtime)."""
        task, app = self._tasks[outcome.job.task], self._context.consumer.app
        if task.__trace__ is None:
            task.__trace__ = build_tracer(task.name, task, app.loader, request.hostname, app=app)
        args, kwargs, embed = private.payload_of(request)
        embed = embed if isinstance(embed, dict) else {}
        context = {**request.request_dict, "args": args, "kwargs": kwargs, "is_eager": False, **embed}
        task.outcomes.current = outcome
        try:
            result, info, runtime, text = task.__trace__(request.id, args, kwargs, context)
        finally:
            del task.outcomes.current
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

    kind = type("Replay", (type(task),), {})
    setattr(kind, "__call__", call)  # noqa: B010 - a batch task may not define it
    replay: Task = object.__new__(kind)
    vars(replay).update(vars(task), outcomes=outcomes, __trace__=None)
    return replay
