"""A claimed call as the rest of Celery's worker sees it."""

from collections.abc import Callable
from typing import Any

from ..broker import Claim
from .message import Headers


class LightRequest:
    """Stands for Celery's `Request` as long as nobody looks closely.

    `worker.state` keeps it, `inspect` reads it, events are made of it. Whatever else is asked of it is answered by
    Celery's own request, which is only built then: it costs more than everything else we do for a job.
    """

    __slots__ = (
        "__weakref__",
        "_build",
        "_full",
        "acknowledged",
        "claim",
        "eventer",
        "headers",
        "name",
        "result",
        "task",
        "time_start",
    )

    def __init__(self, claim: Claim, headers: Headers, task: Any, build: Callable[[Claim], Any]) -> None:
        """Stand for `claim`'s request; `build(claim)` makes Celery's own."""
        self.claim = claim
        self.headers = headers
        self.task = task
        self.name = headers.shadow or headers.task
        self.acknowledged = False
        self.eventer = None
        self.time_start: float | None = None
        #: The encoded result, between postprocess and settle.
        self.result = b""
        self._build = build
        self._full: Any = None

    @property
    def id(self) -> str:
        """The task's id."""
        return self.headers.id

    @property
    def full(self) -> Any:
        """Celery's own `Request` for this call."""
        if self._full is None:
            self._full = self._build(self.claim)
            self._full.time_start = self.time_start
        return self._full

    def __getattr__(self, name: str) -> Any:
        """Ask Celery's own request."""
        return getattr(self.full, name)

    def __repr__(self) -> str:
        """Return Celery's short form."""
        return f"<LightRequest: {self.name}[{self.id}]>"
