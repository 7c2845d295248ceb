"""Celery's task events, for Flower and every other monitor."""

from collections.abc import Sequence

from celery.worker.consumer import Consumer

from ....batchers import Outcome
from ....producer.codec.serializer import summarise
from ....producer.private import saferepr
from ..wire.request import FastRequest


class Events:
    """Sends the events of fast calls, if the worker sends events at all. On the hub's thread.

    Celery's own request sends the events of all other calls. Celery's dispatcher sends many task events as one message.
    """

    def __init__(self, consumer: Consumer) -> None:
        """Send through `consumer`'s dispatcher, which changes with every reconnect."""
        self._consumer = consumer

    def received(self, requests: Sequence[FastRequest]) -> None:
        """Announce that jobs were claimed."""
        for request in self._announced(requests):
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

    def started(self, requests: Sequence[FastRequest]) -> None:
        """Announce that jobs run."""
        for request in self._announced(requests):
            self._consumer.event_dispatcher.send("task-started", uuid=request.id)

    def succeeded(self, outcomes: Sequence[Outcome]) -> None:
        """Announce that jobs are done, with the runtime of their batch."""
        if not self._enabled:
            return
        for outcome in outcomes:
            request: FastRequest = outcome.job.reply
            if request.task.send_events:
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
        # A worker without -E has an enabled dispatcher, too, but one for events of the group "worker" only.
        return bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups))

    def _announced(self, requests: Sequence[FastRequest]) -> Sequence[FastRequest]:
        return [request for request in requests if request.task.send_events] if self._enabled else ()
