"""Celery's `worker.state`, which `inspect`, Flower and heartbeats read: updated for many requests at a time.

All of this runs on the hub's thread, because Celery iterates over these collections there.
"""

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

from celery.worker import state
from celery.worker.request import Request

from ....producer.private import add_to_weak_set, discard_from_weak_set
from ..wire.request import FastRequest

_id, _name = attrgetter("id"), attrgetter("name")


def is_cold_shutdown() -> bool:
    """Whether the worker was told to end without waiting for what runs."""
    return state.should_terminate is not None and state.should_terminate is not False


def reserved(requests: Sequence[FastRequest | Request]) -> None:
    """Note requests that wait, as `state.task_reserved` does for one."""
    state.requests.update(zip(map(_id, requests), requests, strict=True))
    add_to_weak_set(state.reserved_requests, requests)


def accepted(requests: Sequence[FastRequest | Request]) -> None:
    """Note requests that run, as `state.task_accepted` does for one."""
    add_to_weak_set(state.active_requests, requests)
    state.total_count.update(Counter(map(_name, requests)))
    state.all_total_count[0] += len(requests)


def forget(requests: Sequence[FastRequest | Request]) -> None:
    """Forget requests that are through or were given back.

    Does what `state.task_ready` does for one, but does not keep the ids of successful requests: only Celery's own
    tracer asks for them.
    """
    forget_one = state.requests.pop
    for task_id in map(_id, requests):
        forget_one(task_id, None)
    discard_from_weak_set(state.active_requests, requests)
    discard_from_weak_set(state.reserved_requests, requests)
