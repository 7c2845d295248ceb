"""Worker processes in which calls fail by order: `python -m tests.support.faulty_worker` forks them from one process.

That process has imported everything, so that a worker starts within a moment. It reads commands from its standard input
as lines of JSON, answers each with a line, and ends with all its workers when its input ends.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from tests.support.faults import Hook, Orders, threads_of_ours

#: A call with this id counts as revoked.
REVOKED = "revoked-before-it-was-sent"

#: What a worker needs, but no app: that is each worker's own.
_IMPORTED = (
    "celery.apps.worker",
    "celery.bin.worker",
    "celery.concurrency.thread",
    "celery.events.dispatcher",
    "celery.worker.control",
    "batchery.worker.consumer.consumer",
    "tests.support.models",
)

children: set[int] = set()


def start(orders: str, log: str, env: dict[str, str], args: list[str]) -> int:
    """Start a worker; return its process id."""
    if (pid := os.fork()) == 0:
        children.clear()
        _work(Orders(Path(orders)), log, env, args)
    children.add(pid)
    return pid


def poll(pid: int) -> int | None:
    """Return the exit code of a worker; None while it runs."""
    if pid not in children:
        return -1
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(status)


def _work(orders: Orders, log: str, env: dict[str, str], args: list[str]) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.environ.update(env)
    Hook.obey(orders)
    threading.Thread(target=_count_threads, args=(orders,), daemon=True, name="counts threads").start()

    from celery.__main__ import main
    from celery.worker import state

    state.revoked.add(REVOKED)
    sys.argv = ["celery", "-A", "tests.support.apps", "worker", *args]
    sys.exit(main())


def _count_threads(orders: Orders) -> None:
    while True:
        orders.memory.threads = len(list(threads_of_ours()))
        time.sleep(0.05)


def serve() -> None:
    """Do what the standard input says."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no worker is left
    Hook.install()
    for module in _IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        command = json.loads(line)
        answer = {"start": start, "poll": poll}[command.pop("do")](**command)  # type: ignore[operator]
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        serve()
    finally:
        for child in children:
            os.killpg(child, signal.SIGKILL)
