"""Waiting for a condition, and what is raised when it never comes true."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class ServiceError(RuntimeError):
    """A server or a worker did not start, or died; the message ends with what it wrote last."""


def wait_until(predicate: Callable[[], T], description: str, timeout: float = 30.0) -> T:
    """Ask `predicate` every 10 ms until it is true, and return its answer; `TimeoutError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s in vain for this: {description}")
        time.sleep(0.01)
    return value


def last_lines(path: Path, count: int = 30) -> str:
    with suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    return ""
