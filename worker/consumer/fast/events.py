"""Celery's task events, for Flower and every other monitor."""

from collections.abc import Sequence
from typing import Any

from celery.utils.saferepr import saferepr

from ....batchers import Outcome
from ....producer.codec.serializer import summarise
from ..wire.request import LightRequest


class Events:
    """Sends the events of ordinary jobs, if the worker sends events at all. On the hub's thread.

    The others' are sent by Celery's own request. Celery's dispatcher gathers task events and sends many as one message.
    """

    def __init__(self, consumer: Any) -> None:
        """Send through `consumer`'s dispatcher, which changes with every reconnect."""
        self._consumer = consumer

    def received(self, requests: Sequence[LightRequest]) -> None:
        """Tell that jobs were claimed."""
        for request in self._wanted(requests):
            headers = request.headers
            self._consumer.event_dispatcher.send(
                "task-received",
                uuid=request.id,
                name=request.name,
                args=headers.argsrepr,
                kwargs=headers.kwargsrepr,
                root_id=headers.root_id,
                parent_id=headers.parent_id,
                retries=headers.retries,
                eta=None,
                expires=headers.expires,
            )

    def started(self, requests: Sequence[LightRequest]) -> None:
        """Tell that jobs run."""
        for request in self._wanted(requests):
            self._consumer.event_dispatcher.send("task-started", uuid=request.id)

    def succeeded(self, pairs: Sequence[tuple[Outcome, bool]]) -> None:
        """Tell that jobs are through, with the runtime of their batch: of those pairs whose second is true."""
        if not self._enabled:
            return
        for outcome, is_ours in pairs:
            request: LightRequest = outcome.job.reply
            if is_ours and request.task.send_events:
                batch = outcome.batch
                self._consumer.event_dispatcher.send(
                    "task-succeeded",
                    uuid=request.id,
                    result=saferepr(summarise(outcome.value), request.task.resultrepr_maxsize),
                    runtime=batch.finished_at - batch.started_at if batch else 0.0,
                )

    @property
    def _enabled(self) -> bool:
        dispatcher = self._consumer.event_dispatcher
        # Without -E the dispatcher sends events all the same, but only those of the group "worker".
        return bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups))

    def _wanted(self, requests: Sequence[LightRequest]) -> Sequence[LightRequest]:
        return [request for request in requests if request.task.send_events] if self._enabled else ()
