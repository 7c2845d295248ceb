"""The tasks of the app that tests start, and the lists in which they write down what they do."""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery

from batchery import BatchTask, ListBatcher

#: List at the broker: one entry for each batch that ran, the JSON list of its items.
BATCHES = "test:batches"
#: List at the broker: the calls of hooks and signals, as JSON lists.
SEEN = "test:seen"

#: The values for which `deadly` ends its worker's process, and for which it loses its device.
DEADLY, BREAKING = "deadly", "breaking"


class OddInput(Exception):
    """The error that the tests' models raise."""


class Flaky(Exception):
    """The error that `flaky` raises on the first two runs of a job."""


class Unserializable:
    """A value that JSON cannot hold."""


def note(app: Celery, key: str, value: Any) -> None:
    """Write down at the broker what happened in the worker."""
    with app.connection_for_write() as connection:
        connection.default_channel.client.rpush(key, json.dumps(value))


def first_time(app: Celery, value: Any) -> bool:
    """Whether no worker has asked for this value before."""
    with app.connection_for_write() as connection:
        return bool(connection.default_channel.client.set(f"test:once:{value}", 1, nx=True))


def pass_gates(paths: Iterable[str]) -> None:
    """Wait at each FIFO until a test has opened and closed its other end. A FIFO that is gone counts as open."""
    for path in sorted(set(paths)):
        with suppress(FileNotFoundError), open(path) as gate:
            gate.read()


class Missing(BatchTask):
    """A model that does not load."""

    name = "missing"

    def load(self, device: str) -> None:
        raise getattr(builtins, os.environ["LOAD_ERROR"])("the model is not there")

    def predict(self, batch: Any) -> Any:
        return batch


class Texts(BatchTask):
    """A model with a `preprocess` of its own, so that its worker has preprocess threads."""

    name = "texts"
    max_batch_size = 16

    def preprocess(self, text: str, suffix: str = "!") -> str:
        if text == "leave":
            raise SystemExit(3)
        return text.strip() + suffix

    def predict(self, texts: Sequence[str]) -> list[str]:
        return [text.upper() for text in texts]

    def postprocess(self, text: str) -> str:
        if text == "LEAVE LATE!":
            raise SystemExit(3)
        return text


class Prepared(BatchTask):
    """A model whose `preprocess` retries some jobs and refuses others."""

    name = "prepared"
    max_batch_size = 16
    default_retry_delay = 0

    def preprocess(self, value: Any) -> Any:
        if value == "bad":
            raise OddInput("bad in preprocess")
        if str(value).startswith("retry"):
            with self.app.connection_for_write() as connection:
                if connection.default_channel.client.incr(f"test:runs:{value}") < 3:
                    raise self.retry(exc=Flaky(value), countdown=0)
        return value

    def predict(self, values: Sequence[Any]) -> list[Any]:
        return list(values)


class GatedPreprocess(BatchTask):
    """A model whose `preprocess` waits at a gate."""

    name = "gated_preprocess"

    def preprocess(self, path: str, value: Any = None) -> Any:
        pass_gates([path])
        return value

    def predict(self, values: Sequence[Any]) -> list[Any]:
        return list(values)


class FatalBatcher(ListBatcher):
    """A batcher that ends its process, or hangs, for some items."""

    def batch(self, items: Sequence[Any]) -> tuple[list[Any], Any]:
        die_at("batch", items)
        return super().batch(items)

    def unbatch(self, outputs: Any, context: Any) -> list[Any]:
        die_at("unbatch", outputs)
        return super().unbatch(outputs, context)


class Fatal(BatchTask):
    """A model each of whose steps ends its process, or hangs, for the items that say so: "deadly preprocess"."""

    name = "fatal"
    max_batch_size = 8
    batcher = FatalBatcher()

    def preprocess(self, value: str) -> str:
        die_at("preprocess", [value])
        return value

    def predict(self, values: Sequence[str]) -> list[str]:
        note(self.app, BATCHES, values)
        time.sleep(0.01)  # so that the next batch is put together meanwhile
        die_at("predict", values)
        return list(values)

    def postprocess(self, value: str) -> str:
        die_at("postprocess", [value])
        return value


def die_at(step: str, values: Sequence[str]) -> None:
    """End this process for "deadly <step>" among the values, kill it for "killed <step>", hang for "hangs <step>"."""
    if f"{DEADLY} {step}" in values:
        os._exit(1)
    if f"killed {step}" in values:  # as the kernel does when memory is exhausted
        os.kill(os.getpid(), signal.SIGKILL)
    if f"hangs {step}" in values:
        threading.Event().wait()


class Hooked(BatchTask):
    """A model with Celery's own hooks, which are called for each job."""

    name = "hooked"
    max_batch_size = 16

    def predict(self, values: Sequence[Any]) -> list[Any]:
        return [OddInput("hooked") if value == "bad" else value for value in values]

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note(self.app, SEEN, ["on_success", retval, task_id, list(args)])

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(self.app, SEEN, ["on_failure", str(exc), task_id, list(args)])

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(self.app, SEEN, ["after_return", status, task_id, list(args)])


def add_echoes(app: Celery, task: Callable[..., Any]) -> None:
    """Models that answer with their input, some of them at a gate."""

    @task(name="echo", max_batch_size=16)
    def echo(values: list[Any]) -> list[Any]:
        note(app, BATCHES, values)
        time.sleep(float(os.environ.get("LAUNCH_S", "0")))
        return values

    @task(name="gated", max_batch_size=4)
    def gated(paths: list[str], values: list[Any]) -> list[Any]:
        note(app, BATCHES, values)
        pass_gates(paths)
        return values

    @task(name="gil", max_batch_size=12)
    def gil(seconds: list[float], values: list[Any]) -> list[Any]:
        """Holds the GIL, once for each of the values."""
        note(app, BATCHES, values)
        for pause_s in {pause_s for pause_s, value in zip(seconds, values, strict=True) if first_time(app, value)}:
            ctypes.PyDLL(None).usleep(int(1e6 * pause_s))
        return values

    @task(name="silent", max_batch_size=4)
    def silent(paths: list[str], values: list[Any]) -> list[Any]:
        pass_gates(paths)
        return values

    @task(name="quiet", max_batch_size=16, ignore_result=True)
    def quiet(values: list[Any]) -> list[Any]:
        note(app, SEEN, ["quiet", values])
        return values


def add_computations(task: Callable[..., Any]) -> None:
    """Models that compute something."""

    @task(name="numbers", max_batch_size=16)
    def numbers(words: list[str]) -> list[float]:
        return [float(word) for word in words]

    @task(name="swell", max_batch_size=16)
    def swell(sizes: list[int]) -> list[str]:
        return ["x" * size for size in sizes]

    @task(name="measure", max_batch_size=16)
    def measure(texts: list[str]) -> list[int]:
        return list(map(len, texts))

    @task(name="add", max_batch_size=16)
    def add(xs: list[Any], ys: list[Any]) -> list[Any]:
        return [OddInput(x) if x == "bad" else x + y for x, y in zip(xs, ys, strict=True)]

    @task(name="total", max_batch_size=16)
    def total(lists: list[list[float]]) -> list[float]:
        return [sum(values) for values in lists]

    @task(name="double", max_batch_size=16, serializer="batchery")
    def double(arrays: list[Any]) -> list[Any]:
        return [array * 2 for array in arrays]


def add_failures(app: Celery, task: Callable[..., Any]) -> None:
    """Models that raise errors for some jobs."""

    @task(name="picky", max_batch_size=16, max_wait_ms=20_000, max_age_ms=60_000)
    def picky(values: list[Any]) -> list[Any]:
        note(app, BATCHES, values)
        if "bad" in values:
            raise OddInput("bad")
        return [OddInput("slot") if value == "slot" else value for value in values]

    @task(name="leaver", max_batch_size=16)
    def leaver(values: list[Any]) -> list[Any]:
        if "leave" in values:
            raise SystemExit(3)
        return values

    @task(name="deadly", max_batch_size=8, autoretry_for=(Exception,), default_retry_delay=0)
    def deadly(values: list[Any]) -> list[Any]:
        note(app, BATCHES, values)
        if DEADLY in values:
            os._exit(1)
        if BREAKING in values:
            raise RuntimeError("the device has lost an assert")
        return values

    @task(name="quotes", max_batch_size=16)
    def quotes(words: list[str]) -> list[int]:
        vocabulary = {f"word {number}": number for number in range(1000)}
        return [vocabulary[word] for word in words]

    @task(name="greedy", max_batch_size=16)
    def greedy(values: list[Any]) -> list[Any]:
        if "too much" in values:
            raise MemoryError("more than there is")
        return values

    @task(name="unserializable", max_batch_size=16)
    def unserializable(values: list[Any]) -> list[Any]:
        return [Unserializable() if value == "bad" else value for value in values]

    @task(name="flaky", max_batch_size=16, autoretry_for=(Flaky,), default_retry_delay=0, max_retries=5)
    def flaky(values: list[Any]) -> list[Any]:
        with app.connection_for_write() as connection:
            client = connection.default_channel.client
            runs = [client.incr(f"test:runs:{value}") for value in values]
        return [
            Flaky(f"run {run}") if str(value).startswith("flaky") and run < 3 else [value, run]
            for value, run in zip(values, runs, strict=True)
        ]

    @task(name="hopeless", max_batch_size=16, autoretry_for=(Flaky,), default_retry_delay=0, max_retries=1)
    def hopeless(values: list[Any]) -> list[Any]:
        return [Flaky(value) for value in values]


def add_miscounts(task: Callable[..., Any]) -> None:
    """Models that return the wrong number of results."""

    @task(name="short", max_batch_size=16)
    def short(values: list[Any]) -> list[Any]:
        return values[1:]

    @task(name="miscounts", max_batch_size=16)
    def miscounts(kinds: list[str]) -> Any:
        odd: dict[str, Any] = {
            "fewer": kinds[1:],
            "more": [*kinds, "one more"],
            "none": None,
            "a number": 7,
            "a text": "x" * len(kinds),
            "an object": dict.fromkeys(range(len(kinds))),
        }
        return next((odd[kind] for kind in kinds if kind in odd), kinds)


def add_plain_tasks(app: Celery) -> None:
    """Ordinary Celery tasks."""

    @app.task(name="plain", shared=False)
    def plain(value: Any) -> Any:
        return value

    @app.task(name="carry", shared=False, serializer="batchery")
    def carry(value: Any) -> Any:
        return value

    @app.task(name="plain_gated", shared=False)
    def plain_gated(path: str, value: Any) -> Any:
        pass_gates([path])
        return value

    @app.task(name="plain_noted", shared=False, acks_late=True)
    def plain_noted(path: str, value: Any) -> Any:
        note(app, SEEN, value)
        pass_gates([path])
        return value

    @app.task(name="note_error", shared=False)
    def note_error(request: Any, exc: Any, traceback: Any) -> None:
        note(app, SEEN, ["errback", request.id, str(exc)])

    @app.task(name="note_value", shared=False)
    def note_value(value: Any) -> Any:
        note(app, SEEN, ["link", value])
        return value
