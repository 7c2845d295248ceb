"""The app of a worker that gets SIGTERM, as in a rolling deploy, when it has claimed calls but not begun with them.

It leaves as a worker does that is unlucky: after Celery has dropped what had not begun, this worker claims once more.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import redis
from batchery.worker.consumer.consumer import BatchConsumer
from celery import signals

from tests.support.apps import app
from tests.support.waiting import wait_until

#: The name of this module, as `celery -A` takes it, and how many calls it claims before it leaves.
LEAVING, CLAIMED = "tests.support.leaving", 50

__all__ = ["CLAIMED", "LEAVING", "LateClaims", "app"]


def wait_until_claimed() -> None:
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        held = "batchery:unacked:celery"
        wait_until(lambda: client.hlen(held) >= CLAIMED or not client.llen("celery"), "calls are claimed")


class LateClaims(BatchConsumer):
    """Claims once more while it is being closed."""

    def on_close(self) -> None:
        super().on_close()
        self._leases.flush()  # what Celery has dropped is back in the queue
        wait_until_claimed()


app.conf.worker_consumer = "tests.support.leaving:LateClaims"


@signals.worker_ready.connect
def leave(**_: Any) -> None:
    """Get the signal on the thread of Celery's event loop, which has not looked at any message yet."""
    wait_until_claimed()
    os.kill(os.getpid(), signal.SIGTERM)
