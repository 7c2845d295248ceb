"""Pools that tell when Celery's own code raised while it ran a plain task."""

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import cast

from celery.concurrency.base import BasePool, apply_target
from celery.exceptions import WorkerLostError, WorkerShutdown, WorkerTerminate
from celery.utils.functional import noop
from celery.worker.request import Request


def report_errors(pool: BasePool, report: Callable[[Request, BaseException], None]) -> None:
    """Let a pool call `report` with what Celery's tracer, or the request's callback, raised; on the pool's thread.

    Celery's pool of threads drops such errors, so that nobody would ever acknowledge the message.
    """
    apply = pool.on_apply

    def on_apply(
        target: Callable[..., object],
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        callback: Callable[..., object] | None = None,
        accept_callback: Callable[..., object] | None = None,
        **_: object,
    ) -> object:
        def run() -> None:
            try:
                apply_target(target, args or (), kwargs, callback, accept_callback)
            except (WorkerShutdown, WorkerTerminate):
                raise
            except BaseException as exc:
                # Celery's callback cannot take what its pools make of a task that raises SystemExit.
                cause = exc.__context__ if isinstance(exc.__context__, WorkerLostError) else exc
                report(cast(MethodType, callback).__self__, cause)  # the request's `on_success`

        return apply(run, (), {}, noop)

    pool.on_apply = on_apply
