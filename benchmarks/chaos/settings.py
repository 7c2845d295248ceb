"""What driver, producers and workers of one chaos run have in common."""

from __future__ import annotations

import os
from typing import Any

#: The environment of workers and producers: where they write down what they do.
RUNS, WORKER = "CHAOS_RUNS", "CHAOS_WORKER"

#: Seconds. Short ones, so that a few minutes show what takes hours with the defaults.
LEASE_S, BATCH_TIME_LIMIT_S, DRAIN_TIMEOUT_S = 3.0, 5.0, 10.0
#: Seconds for which a call holds the GIL: longer than the lease, and shorter than the time limit of a batch.
GIL_S = 4.2
MAX_BATCH_SIZE = 8
#: Jobs above which a batch with a `tight` call runs out of memory.
TIGHT = 3
#: Attempts of calls that ask for a retry half of the time.
MAX_RETRIES = 60

#: The name by which Sentinel knows the primary.
MASTER = "mymaster"
#: How a silent connection is found: without it a caller waits for ever for an answer that was swallowed.
SOCKETS = {"socket_timeout": 10, "socket_connect_timeout": 5}
#: What other systems than Batchery need to find the messages of a dead worker soon. It has to be longer than any task
#: and any ETA, because a message that is held for longer runs twice.
VISIBILITY = {**SOCKETS, "visibility_timeout": 15, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def conf(**more: Any) -> dict[str, Any]:
    """The configuration of the apps of all systems."""
    found = {
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "redis_socket_timeout": SOCKETS["socket_timeout"],
        "broker_transport_options": SOCKETS,
        "worker_hijack_root_logger": False,
        **more,
    }
    if url().startswith("sentinel:"):
        found["broker_transport_options"] = {**found["broker_transport_options"], "master_name": MASTER}
        found["result_backend_transport_options"] = {"master_name": MASTER}
    return found


def url() -> str:
    return os.environ["REDIS_URL"]
