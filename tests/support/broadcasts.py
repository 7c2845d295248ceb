"""The app of workers with a broadcast queue beside their ordinary one."""

from __future__ import annotations

from kombu import Queue
from kombu.common import Broadcast

from tests.support.apps import app

#: The name of this module, as `celery -A` takes it, and that of the queue.
BROADCASTS, EVERYONE = "tests.support.broadcasts", "everyone"

QUEUES = (Queue("celery"), Broadcast(EVERYONE))

__all__ = ["BROADCASTS", "EVERYONE", "QUEUES", "app"]

app.conf.task_queues = QUEUES
