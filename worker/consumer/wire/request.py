"""A claimed call as the rest of Celery's worker sees it."""

from collections.abc import Callable

import msgspec
from celery import Task
from celery.app.task import Context
from celery.worker.request import Request

from ....producer import private
from ...broker import Claim
from .decode import Headers


class FastRequest(msgspec.Struct, eq=False, weakref=True):
    """A cheap stand-in for Celery's `Request` of a fast call.

    `worker.state` keeps it, `inspect` reads it, and events are made of it. It takes any other attribute from Celery's
    own request. That is built on first use only, because building it costs more than all other work for a job.
    """

    claim: Claim
    headers: Headers
    task: Task
    #: Makes Celery's own request for a claim.
    build: Callable[[Claim], Request]
    id: str
    name: str
    in_chord: bool = False
    acknowledged: bool = False
    eventer: object = None
    time_start: float | None = None
    built: Request | None = None

    @property
    def full(self) -> Request:
        """Celery's own `Request` for this call."""
        if self.built is None:
            self.built = self.build(self.claim)
            self.built.time_start = self.time_start
        return self.built

    @property
    def ignore_result(self) -> bool:
        """Whether nobody wants the result: the call says so, or else its task."""
        said = self.headers.ignore_result
        return bool(self.task.ignore_result) if said is None else said

    def __getattr__(self, name: str) -> object:
        return getattr(self.full, name)

    def __repr__(self) -> str:
        return f"<FastRequest: {self.name}[{self.id}]>"


def full_request(request: FastRequest | Request) -> Request:
    """Return Celery's own `Request` of either kind of request."""
    return request.full if isinstance(request, FastRequest) else request


def context_of(request: FastRequest | Request) -> Context:
    """Return what Celery's tracer makes of a request: what a task sees as `self.request`."""
    full = full_request(request)
    args, kwargs, embed = private.payload_of(full)
    context = Context(full.request_dict, args=args, kwargs=kwargs, called_directly=False)
    context.update(embed or {}, is_eager=False)
    return context


class CurrentRequest:
    """`task.request` while a job's `preprocess` runs: Celery's own context, made when somebody looks at it."""

    def __init__(self, request: FastRequest | Request) -> None:
        self._request = request
        self._context: Context | None = None

    def __getattr__(self, name: str) -> object:
        if self._context is None:
            self._context = context_of(self._request)
        return getattr(self._context, name)
