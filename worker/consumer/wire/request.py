"""A claimed call as the rest of Celery's worker sees it."""

from collections.abc import Callable
from typing import Any

import msgspec
from celery.app.task import Context

from ...broker import Claim
from .decode import Headers


class LightRequest(msgspec.Struct, eq=False, weakref=True):
    """Stands for Celery's `Request` as long as nobody looks closely.

    `worker.state` keeps it, `inspect` reads it, events are made of it. Whatever else is asked of it is answered by
    Celery's own request, which is only built then: it costs more than everything else we do for a job.
    """

    claim: Claim
    headers: Headers
    task: Any
    #: Makes Celery's own request for a claim.
    build: Callable[[Claim], Any]
    id: str
    name: str
    in_chord: bool = False
    acknowledged: bool = False
    eventer: Any = None
    time_start: float | None = None
    #: The encoded result, between postprocess and settle; and what its chord's callback is to get.
    result: bytes = b""
    part: bytes = b""
    built: Any = None

    @property
    def full(self) -> Any:
        """Celery's own `Request` for this call."""
        if self.built is None:
            self.built = self.build(self.claim)
            self.built.time_start = self.time_start
        return self.built

    def __getattr__(self, name: str) -> Any:
        """Ask Celery's own request."""
        return getattr(self.full, name)

    def __repr__(self) -> str:
        """Return Celery's short form."""
        return f"<LightRequest: {self.name}[{self.id}]>"


def full_request(request: Any) -> Any:
    """Return Celery's own `Request`, for a light one too."""
    return request.full if isinstance(request, LightRequest) else request


def context_of(request: Any) -> Context:
    """Return what Celery's tracer makes of a request: what a task sees as `self.request`."""
    full = full_request(request)
    args, kwargs, embed = full._payload
    context = Context(full.request_dict, args=args, kwargs=kwargs, called_directly=False)
    context.update(embed or {}, is_eager=False)
    return context


class CurrentRequest:
    """`task.request` while a job's `preprocess` runs: Celery's own context, made when somebody looks at it."""

    def __init__(self, request: Any) -> None:
        """Stand for the context of `request`."""
        self._request = request
        self._context: Context | None = None

    def __getattr__(self, name: str) -> Any:
        """Ask the context."""
        if self._context is None:
            self._context = context_of(self._request)
        return getattr(self._context, name)
