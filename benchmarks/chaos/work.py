"""What the tasks of a chaos run do, and how they write down each execution. The same for all systems.

A call's argument says what happens to it, so that the driver knows its answer without any worker.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .settings import RUNS, TIGHT, WORKER

Spec = dict[str, Any]

_numbers = itertools.count()


class ModelError(Exception):
    """The error of a call that is to fail. Its text names the call."""


class Flaky(Exception):
    """The error of a call that is tried again."""


def answer(spec: Spec) -> list[Any]:
    return [spec["key"], 3 * spec["x"] + 1]


def follow(previous: Any, spec: Spec) -> list[Any]:
    """The answer of a call that gets the answer of another."""
    return [spec["key"], previous[1] + 3 * spec["x"] + 1]


def gather(parts: Sequence[Any], spec: Spec) -> list[Any]:
    """The answer of a chord's callback."""
    return [spec["key"], sorted(part[0] for part in parts), sum(part[1] for part in parts)]


@contextmanager
def noted(stage: str, specs: Sequence[Spec], **more: Any) -> Iterator[None]:
    """Write down start and end of an execution. The lines survive a kill -9."""
    run = {"run": f"{os.getpid()}-{next(_numbers)}", "stage": stage, "keys": [spec["key"] for spec in specs], **more}
    _write(run, "start")
    try:
        yield
    except BaseException as error:
        _write(run, "fail", error=type(error).__name__)
        raise
    _write(run, "end")


def _write(run: dict[str, Any], event: str, **more: Any) -> None:
    line = {"t": time.time(), "event": event, "pid": os.getpid(), "worker": os.environ.get(WORKER, ""), **run, **more}
    # In one write, so that lines of several processes do not mix. Opened each time, because a pool's child may fork.
    file = os.open(os.environ[RUNS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


def run(specs: Sequence[Spec]) -> list[Any]:
    """Run one batch: an answer, or an exception, for each call."""
    with noted("predict", specs):
        for spec in specs:
            act(spec, "predict", len(specs))
        time.sleep(max(spec["ms"] for spec in specs) / 1000)
        return [_output(spec) for spec in specs]


def _output(spec: Spec) -> Any:
    if spec["do"] == "raise" and "stage" not in spec:
        return ModelError(spec["key"])
    if spec["do"] == "flaky" and random.random() < 0.5:
        return Flaky(spec["key"])
    return answer(spec)


def act(spec: Spec, stage: str, size: int = 1) -> None:
    """Do what a call does to its worker in this stage."""
    do, key = spec["do"], spec["key"]
    if spec.get("stage", "predict") != stage:
        return
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "hang":
        time.sleep(100_000)
    elif do == "gil":
        ctypes.PyDLL(None).usleep(int(spec["s"] * 1e6))
    elif do == "oom" or (do == "tight" and size > TIGHT):
        raise MemoryError(f"no memory for a batch of {size}")
    elif do == "burst" or (do == "raise" and stage != "predict"):
        raise ModelError(key)
    elif do == "quote":
        raise ValueError(f"{key}: CUDA error: an illegal instruction was encountered, out of memory, connection lost")


def wants_retry(spec: Spec) -> bool:
    return bool(spec["do"] == "retry" and random.random() < 0.5)
