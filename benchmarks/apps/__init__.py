"""The Celery apps of the benchmarks' workers. They read `REDIS_URL` and `QUEUE` when they are imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

from ..backlog import QUEUE


@contextmanager
def import_app(name: str, url: str, queue: str = QUEUE) -> Iterator[Any]:
    """Import a module of this folder, with the given server and queue, as its callers do."""
    full_name = f"{__name__}.{name}"
    with patch.dict(os.environ, {"REDIS_URL": url, "QUEUE": queue}):
        sys.modules.pop(full_name, None)
        module = import_module(full_name)
    try:
        yield module
    finally:
        module.app.close()
