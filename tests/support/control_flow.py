"""A batch task that asks for retries, ignores calls and rejects them, in each of its hooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from batchery import BatchTask
from tests.support.models import BATCHES, OddInput, note

#: How often a call asks for another try that it will get.
TRIES = 2


class Asks(BatchTask):
    """For each call: the value of its answer, the place where it asks, and what it asks for.

    The answer is the value, and how often the call was retried or delivered again.
    """

    name = "asks"
    max_batch_size = 16
    default_retry_delay = 0
    max_retries = 3

    def preprocess(self, value: Any, place: str = "", kind: str = "") -> Any:
        again = self.request.delivery_info.get("redelivered")
        item = {"value": value, "kind": kind, "tries": self.request.retries or int(bool(again))}
        if place == "preprocess":
            self._ask(item)
        return {**item, place: True}

    def predict(self, items: Sequence[Any]) -> list[Any]:
        note(self.app, BATCHES, [item["value"] for item in items])
        for item in items:
            if "predict" in item:
                self._ask(item)
        return [self._slot(item) if "slot" in item else item for item in items]

    def postprocess(self, item: Any) -> Any:
        if "postprocess" in item:
            self._ask(item)
        return [item["value"], item["tries"]]

    def _slot(self, item: Any) -> Any:
        if item["kind"] == "retry":
            return self.retry(countdown=0, throw=False) if item["tries"] < TRIES else item
        try:
            self._ask(item)
        except Exception as asked:
            return asked
        return item

    def _ask(self, item: Any) -> None:
        tries = item["tries"]
        match item["kind"]:
            case "retry" if tries < TRIES:
                raise self.retry(countdown=0)
            case "by hand" if tries < TRIES:
                raise Retry("later", when=0)
            case "exc":
                raise self.retry(exc=OddInput("used up"), max_retries=1, countdown=0)
            case "for ever":
                raise self.retry(countdown=0)
            case "args":
                raise self.retry(args=["other args"], kwargs={}, countdown=0)
            case "kwargs":
                raise self.retry(kwargs={"kind": "", "value": "other kwargs"}, countdown=0)
            case "ignore":
                raise Ignore
            case "reject":
                raise Reject("no", requeue=False)
            case "requeue" if not tries:
                raise Reject("later", requeue=True)


def add_rejecting(app: Any) -> None:
    """A plain task that rejects its message until it is redelivered."""

    @app.task(name="rejecting", bind=True, acks_late=True, shared=False)
    def rejecting(self: Any, value: Any) -> Any:
        note(app, BATCHES, json.dumps(value))
        if not self.request.delivery_info.get("redelivered"):
            raise Reject("later", requeue=True)
        return value
