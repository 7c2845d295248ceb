"""Stores the results of fast calls and acknowledges them: in one step where that is what Celery would store."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import redis
from celery import Celery, Task, states
from celery.app.task import Context
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend

from ....batchers import Outcome
from ....producer import private
from ....producer.codec.json import encode_json
from ...broker import Leases, ResultRetention, Settled, Settlement
from ...broker.client import place_in_list, same_server
from ..compat.postpone import answered, may_pass
from ..wire.request import FastRequest
from .encode_result import SERIALIZERS
from .one_step import OneStep, too_large


class ResultStore:
    """Settles successes of fast calls in bulk.

    Where a task's backend is Celery's Redis backend, unchanged and at the broker's server, the settle script stores the
    results, too. Any other backend is asked to store each result, as Celery would ask it.
    """

    def __init__(
        self, app: Celery, leases: Leases, broker: "redis.Redis", user_code: Callable[..., AbstractContextManager[None]]
    ) -> None:
        """Store results in the backends of `app`'s tasks; `broker` is the client that the leases use.

        `user_code(jobs)` watches over backends while they work, because any of them may hang.
        """
        self._user_code = user_code
        self._app = app
        self._leases = leases
        self._broker = broker
        self._extended = app.conf.find_value_for_key("extended", "result")
        #: The backend of the thread that starts the worker, where apps change it, if they do.
        self._first_backend = app.backend
        #: By task: its own backend, or None if it has the app's.
        self._own: dict[str, Backend | None] = {}
        #: By a backend's id, which nobody else gets while it stands here, and the broker of a list that is used: the
        #: backend, and its way in one step.
        self._ways: dict[tuple[int, int], tuple[Backend, OneStep | None]] = {}
        self._way_of(self._first_backend)

    def settle(self, successes: Sequence[Outcome]) -> list[Settled]:
        """Store and acknowledge successes, and return what became of each.

        An outcome is `NEEDS_CELERY` if its value cannot be stored, which is then its error, if its backend is away, or
        if it is a part of a chord that only Celery can count. Can be repeated after an error of Redis: jobs that are
        settled already are skipped.
        """
        tasks = {outcome.job.task: outcome.job.reply.task for outcome in successes}
        ways = {name: self._way(task) for name, task in tasks.items()}
        if len(set(ways.values())) == 1:
            return self._settle(successes, next(iter(ways.values())))
        answers: dict[str, Settled] = {}
        for way in set(ways.values()):
            outcomes = [outcome for outcome in successes if ways[outcome.job.task] is way]
            tags = [outcome.job.reply.claim.tag for outcome in outcomes]
            answers.update(zip(tags, self._settle(outcomes, way), strict=True))
        return [answers[outcome.job.reply.claim.tag] for outcome in successes]

    def _settle(self, outcomes: Sequence[Outcome], way: OneStep | None) -> list[Settled]:
        """Settle outcomes that are stored in the same way."""
        settlements = self._store(outcomes) if way is None else way.encode(outcomes)
        settled = self._leases.settle(settlements, ResultRetention() if way is None else way.retention)
        if len(settled) == len(outcomes):
            return settled
        answers = dict(zip([settlement.claim.tag for settlement in settlements], settled, strict=True))
        return [answers.get(outcome.job.reply.claim.tag, Settled.NEEDS_CELERY) for outcome in outcomes]

    def refuse_too_large(self, outcome: Outcome) -> None:
        """Fail an outcome that Celery is to store if Redis does not take it, because Celery would try for 20 s."""
        request = outcome.job.reply
        backend = self.backend_of(request.task)
        ignored = request.ignore_result and not getattr(request, "in_chord", False)
        if outcome.error is not None or ignored or not isinstance(backend, RedisBackend):
            return
        try:
            encoded = encode_json(outcome.value) if backend.serializer == "json" else backend.encode(outcome.value)
        except Exception:  # the code that stores it meets the same error, and handles it
            return
        outcome.error = too_large(len(encoded))

    def backend_of(self, task: Task) -> Backend:
        """Return the backend that stores a task's results: its own, or its app's of this thread.

        An app that changes a method of its backend changes that of one thread, so all threads use the changed one.
        """
        own = self._own_backend(task)
        if own is not None:
            return own
        return self._first_backend if private.is_changed(self._first_backend) else self._app.backend

    def _own_backend(self, task: Task) -> Backend | None:
        try:
            return self._own[task.name]
        except KeyError:
            own = self._own[task.name] = task.backend if private.has_own_backend(task) else None
            return own

    def _way(self, task: Task) -> OneStep | None:
        """Return how a task's results are stored in one step; None if its backend has to be asked."""
        backend = self._own_backend(task)
        return self._way_of(self._first_backend if backend is None else backend)

    def _way_of(self, backend: Backend) -> OneStep | None:
        if self._extended or not private.stores_as_known(backend):  # asked each time: apps are changed at run time, too
            return None
        key = (id(backend), place_in_list(self._broker))
        if key not in self._ways:
            known = backend.serializer in SERIALIZERS and same_server(self._broker, backend.client)
            self._ways[key] = (backend, OneStep(self._app, backend) if known else None)
        return self._ways[key][1]

    def _store(self, outcomes: Sequence[Outcome]) -> list[Settlement]:
        """Store results through Celery's backends; return settlements of those that are stored or need not be.

        The leases are asked for just before. A result whose lease is lost is stored where there is none.
        """
        takes = [each for each in outcomes if each.error is None and not each.job.reply.in_chord]
        wanted = [each for each in takes if not each.job.reply.ignore_result]
        held = self._leases.still_held([each.job.reply.claim for each in wanted])
        stored = {each.job.reply.claim.tag for each in takes if each.job.reply.ignore_result}
        for outcome, is_ours in zip(wanted, held, strict=True):
            if self._put(outcome, is_ours):
                stored.add(outcome.job.reply.claim.tag)
            elif outcome.error is None:  # the backend is away
                break
        return [Settlement(each.job.reply.claim) for each in takes if each.job.reply.claim.tag in stored]

    def _put(self, outcome: Outcome, is_ours: bool) -> bool:
        """Let Celery's backend store a result; return whether it has. If it never can, that is the outcome's error."""
        request: FastRequest = outcome.job.reply
        backend = self.backend_of(request.task)
        context = Context(request.full.request_dict)
        if self._extended and outcome.batch is not None:
            # Celery adds a request's stamps to an extended result, so this is added as one more stamp.
            context.stamps = {**(context.stamps or {}), "batch": outcome.batch.provenance(outcome.job)}
            context.stamped_headers = [*(context.stamped_headers or ()), "batch"]
        try:
            with self._user_code([outcome.job]):
                if is_ours or not answered(backend, request.id):
                    backend.store_result(request.id, outcome.value, states.SUCCESS, request=context)
        except Exception as exc:
            if not may_pass(exc, backend):
                outcome.error = exc
            return False
        return True
