"""The app of a worker whose log tells which logger wrote each line."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.support.apps import app

#: The name of this module, as `celery -A` takes it.
LOUD = "tests.support.loud"

__all__ = ["LOUD", "Record", "app", "records"]

app.conf.worker_hijack_root_logger = True
app.conf.worker_log_format = app.conf.worker_task_log_format = "RECORD %(name)s %(levelname)s %(message)s"


class Record(NamedTuple):
    """What a logger wrote, with its traceback."""

    logger: str
    level: str
    text: str


def records(log: str) -> list[Record]:
    """Return what the loggers wrote into a worker's log."""
    parts = re.split(r"^RECORD (\S+) (\S+) ", log, flags=re.MULTILINE)[1:]
    return [Record(*part) for part in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
