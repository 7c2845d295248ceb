"""The app of a worker that gets SIGTERM, as in a rolling deploy, when it has claimed calls but not begun with them.

It leaves as an unlucky worker does: Celery's handler gets the calls after Celery's pool has stopped.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import redis
from batchery.worker.consumer.consumer import BatchConsumer
from celery import signals
from celery.utils.functional import noop

from tests.support.apps import app
from tests.support.waiting import wait_until

#: The name of this module, as `celery -A` takes it, and how many calls it claims before it leaves.
LEAVING, CLAIMED = "tests.support.leaving", 4

__all__ = ["CLAIMED", "LEAVING", "LateFlush", "app"]


def wait_until_claimed() -> None:
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        held = "batchery:unacked:celery"
        wait_until(lambda: client.hlen(held) >= CLAIMED or not client.llen("celery"), "calls are claimed")


class LateFlush(BatchConsumer):
    """Has a lease thread that does not come to give back, before the worker stops, what Celery has dropped."""

    def on_close(self) -> None:
        leases, calls = self.parts.leases, self.parts.hub_calls
        flush, run = leases.flush, calls.run

        def run_then_flush() -> bool:
            ran = run()
            vars(leases)["flush"] = flush
            return ran

        vars(leases)["flush"], vars(calls)["run"] = noop, run_then_flush
        super().on_close()


app.conf.worker_consumer = "tests.support.leaving:LateFlush"


@signals.worker_ready.connect
def leave(**_: Any) -> None:
    """Get the signal on the thread of Celery's event loop, which has not looked at any message yet."""
    wait_until_claimed()
    os.kill(os.getpid(), signal.SIGTERM)
