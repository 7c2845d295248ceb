"""The plain Celery tasks of a chaos run, which all systems have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from . import work
from .work import Spec


def add_plain_tasks(app: Celery) -> None:
    @contextmanager
    def noted(task: Any, spec: Spec) -> Iterator[None]:
        # The tag is a message's own: the same one when it is delivered again, another one when it is sent again.
        properties = task.request.properties or {}
        with work.noted("plain", [spec], tag=properties.get("delivery_tag")):
            time.sleep(spec["ms"] / 1000)
            yield

    @app.task(name="plain", bind=True)
    def plain(self: Any, spec: Spec) -> Any:
        with noted(self, spec):
            if spec["do"] == "raise":
                raise work.ModelError(spec["key"])
            return work.answer(spec)

    @app.task(name="note", bind=True)
    def note(self: Any, previous: Any, spec: Spec) -> Any:
        with noted(self, spec):
            return work.follow(previous, spec)

    @app.task(name="gather", bind=True)
    def gather(self: Any, parts: list[Any], spec: Spec) -> Any:
        with noted(self, spec):
            return work.gather(parts, spec)
