"""Celery's `worker.state`, which `inspect`, Flower and heartbeats read: updated for many requests at a time.

All of this runs on the hub's thread, because Celery iterates over these collections there.
"""

from collections.abc import Sequence

from celery.worker import state
from celery.worker.request import Request

from ..wire.request import FastRequest


def reserved(requests: Sequence[FastRequest | Request]) -> None:
    """Note requests that wait, as `state.task_reserved` does for one."""
    state.requests.update({request.id: request for request in requests})
    state.reserved_requests.update(requests)


def accepted(requests: Sequence[FastRequest | Request]) -> None:
    """Note requests that run, as `state.task_accepted` does for one."""
    state.active_requests.update(requests)
    state.total_count.update(request.name for request in requests)
    state.all_total_count[0] += len(requests)


def forget(requests: Sequence[FastRequest | Request]) -> None:
    """Forget requests that are through or were given back.

    Does what `state.task_ready` does for one, but does not keep the ids of successful requests: only Celery's own
    tracer asks for them.
    """
    for request in requests:
        state.requests.pop(request.id, None)
    state.active_requests.difference_update(requests)
    state.reserved_requests.difference_update(requests)
