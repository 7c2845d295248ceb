"""A producer of a chaos run, in a process of its own: `python -m benchmarks.chaos.producer`.

It writes a line before and after each send, so that the driver knows which calls the server has taken for sure.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, TextIO

from celery import Celery, chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from .calls import Call, Send, plan

#: Seconds that a caller waits for its answer at most.
CALLER_WAITS_S = 60.0
APPS = {"batchery": "batchery_app", "stock": "stock_app", "celery-batches": "batches_app"}


def signature(app: Celery, call: Call) -> Any:
    return app.tasks[call.task].s(call.spec).set(task_id=call.id)


class Callers:
    """Threads that wait for their answers, as those of a service do, and write down how that ended."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._pool = ThreadPoolExecutor(max_workers=8)

    def wait(self, result: AsyncResult) -> None:
        self._pool.submit(self._wait, result)

    def _wait(self, result: AsyncResult) -> None:
        line: dict[str, Any] = {"waits": result.id, "t": time.time()}
        try:
            result.get(timeout=CALLER_WAITS_S)
        except Exception as error:  # whatever a caller may get to see
            line |= {"error": repr(error), "timeout": isinstance(error, CeleryTimeoutError)}
        print(json.dumps({**line, "done": time.time()}), file=self._file)

    def close(self) -> None:
        self._pool.shutdown()


def publish(app: Celery, send: Send, callers: Callers) -> list[str]:
    """Send it, and return the ids of its calls."""
    signatures = [signature(app, call) for call in send.calls]
    ids = [call.id for call in send.calls]
    if send.kind == "many" and hasattr(app.tasks[send.calls[0].task], "delay_many"):
        return list(app.tasks[send.calls[0].task].delay_many([call.spec for call in send.calls]).ids)
    if send.kind in ("many", "group"):
        group(signatures).apply_async()
    elif send.kind in ("chord", "failing chord"):
        *parts, body = signatures
        chord(parts)(body)
    elif send.kind == "chain":
        chain(signatures).apply_async()
    elif send.kind == "link":
        signatures[0].apply_async(link=signatures[1])
    else:
        result = signatures[0].apply_async(**send.options)
        if send.kind == "waited for":
            callers.wait(result)
        if send.kind == "revoke":
            app.control.revoke(ids)
    return ids


def main(system: str, seed: int, producer: int, seconds: float, rate: float, poisons: bool, log: str) -> None:
    app = import_module(f"benchmarks.chaos.{APPS[system]}").app
    app.finalize()
    sends = plan(system, seed, producer, seconds, rate, poisons)
    print("ready", flush=True)
    started = float(sys.stdin.readline())
    with open(log, "a", buffering=1) as file:
        callers = Callers(file)
        for number, send in enumerate(sends):
            time.sleep(max(0.0, started + send.at - time.time()))
            before = time.time()
            print(json.dumps({"n": number, "t": before}), file=file)
            try:
                line: dict[str, Any] = {"ids": publish(app, send, callers)}
            except Exception as error:  # a server that is away or full: the calls may be there or not
                line = {"error": repr(error)}
            print(json.dumps({"n": number, "t": before, "done": time.time(), **line}), file=file)
        callers.close()


if __name__ == "__main__":
    name, seed_, producer_, seconds_, rate_, poisons_, log_ = sys.argv[1:]
    main(name, int(seed_), int(producer_), float(seconds_), float(rate_), poisons_ == "poisons", log_)
